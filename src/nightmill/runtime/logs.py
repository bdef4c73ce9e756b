"""Sends log lines to standard error, with time and level.

Promise: whatever words of a client or an upstream a message holds, they begin no line of the log and move no
cursor: further lines are indented, and other control characters are written out.
"""

import logging


class _Safe(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(_written_out(line) for line in super().format(record).split("\n"))


def start_logs(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Safe("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("nightmill").setLevel(level.upper())


def _written_out(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
