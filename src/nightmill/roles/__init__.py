"""The long-running tasks of a server. `registry` lists them, `loop` runs them."""
