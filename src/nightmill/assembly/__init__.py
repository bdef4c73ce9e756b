"""The one place that picks concrete parts and wires them: a server, a worker process, or one file's run."""

from nightmill.assembly.run import Progress, RunSummary, run_file
from nightmill.assembly.serve import serve

__all__ = ["Progress", "RunSummary", "run_file", "serve"]
