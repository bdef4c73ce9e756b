"""Log lines of a process on standard error: JSON for machines, text on a terminal; the level may change.

Every line has time, level and message. What an event names is a field of its own (`batch_id`, `upstream`,
`segment`), and the process has fields too (`role`, `worker_id`). No line holds a prompt, an answer or a key.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias, get_args

from nightmill.telemetry import FIELDS

LogFormat: TypeAlias = Literal["auto", "json", "text"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)

_OURS: Final = logging.getLogger("nightmill")


class TextFormatter(logging.Formatter):
    """Escapes control characters and indents further lines.

    No text from a client or an upstream can therefore begin a line of the log or move the cursor.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(_escaped(line) for line in super().format(record).split("\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object on one line of ASCII, so no foreign text can begin a line or move the cursor.

    Args:
        bound: fields of every line.
    """

    def __init__(self, bound: Mapping[str, str]) -> None:
        super().__init__()
        self._bound = dict(bound)

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "time": time.removesuffix("+00:00") + "Z",
            "level": record.levelname,
            "message": record.getMessage(),
            **self._bound,
            **getattr(record, FIELDS, {}),
        }
        if record.name != _OURS.name:
            fields["logger"] = record.name
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def start_logs(level: str, log_format: LogFormat = "auto", **bound: str) -> None:
    """Sends log lines to standard error from now on.

    Args:
        log_format: "auto" is text if standard error is a terminal, else JSON.
        bound: fields of every JSON line, such as the role of the process.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(bound) if _is_json(log_format) else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    set_level(level)


def set_level(level: str) -> None:
    """Logs lines of this level and above from now on."""
    _OURS.setLevel(level.upper())


def level() -> Level:
    """The level that is in effect."""
    return next(name for name in LEVELS if name.upper() == logging.getLevelName(_OURS.level))


def operator_lines(say: Callable[[str], None], log_format: LogFormat) -> Callable[[str], None]:
    """A function that shows lines to the operator: with `say`, or as JSON at every level."""
    if not _is_json(log_format):
        return say

    def log(text: str) -> None:
        _OURS.handle(_OURS.makeRecord(_OURS.name, logging.INFO, __file__, 0, text, (), None))

    return log


def _is_json(log_format: LogFormat) -> bool:
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
