"""Measures nightmill and compares it with wrk, with targets and with its peers: `make bench`."""
