"""OpenAI's published operations over HTTP, and nightmill's own.

This package holds the shapes, checks and texts of the wire. Except for downloads, every response is JSON in
the published shape or OpenAI's error envelope. Routes write only the client's request; the roles process
batches. Routers of published operations declare paths without `/v1`; `app` adds the prefix.
"""
