"""One script for each peer, run by `bench.rows.peers` in the peer's own venv; it imports nothing of ours.

A loop: `python SCRIPT URL INPUT LINES` prints one line of JSON (see `told`). A server:
`python SCRIPT URL PORT` serves the Batch API on that port until it is ended.
"""
