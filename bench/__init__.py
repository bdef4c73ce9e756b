"""Measures nightmill against wrk, against targets, and against its peers: `make bench`."""
