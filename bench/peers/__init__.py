"""One script for each peer, run by `bench.rows.peers` in a venv for that peer, without nightmill.

A loop: `python SCRIPT URL INPUT LINES` prints one line of JSON (see `peer_loop`). A server:
`python SCRIPT URL PORT` serves the Batch API on that port until it is ended.
"""
