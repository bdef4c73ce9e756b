"""The long-running duties: intake, worker, finalizer, warden. `loop` runs any of them."""
