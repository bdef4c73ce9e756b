"""The one place that picks concrete parts and wires them: a server, a worker process, or one file's run.

Nothing is imported here: a worker process must not load the API, nor a server what runs a file.
"""
