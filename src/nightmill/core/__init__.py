"""Values and decisions of batches, lines and upstreams. No I/O."""
