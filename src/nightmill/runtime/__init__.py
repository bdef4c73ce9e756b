"""How a command becomes processes: chooses implementations by the settings and connects them.

    serve, work, run_file   the commands of these names
    supervisor, prefork     start, restart, notify and drain child processes
    child                   the main function of every child process
    role_process, llama     what children do: run roles, serve a model file; also `ray.launcher_process`
    programs                which child processes hold which roles
    components, storage     what the roles of a process share; the store and the blobs

Nothing is imported here: a worker process must not load the API, and a server must not load `run_file`.
"""
