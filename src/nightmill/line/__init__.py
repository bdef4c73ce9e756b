"""Request lines and output lines, and the JSON text they are made of."""

from nightmill.line.json_text import ascii_string
from nightmill.line.rows import OutputLine, RequestLine, answered, is_json, slice_line, unanswered

__all__ = ["OutputLine", "RequestLine", "answered", "ascii_string", "is_json", "slice_line", "unanswered"]
