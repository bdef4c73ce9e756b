"""Validation of input files: a single line, the custom_ids of all lines, the whole file."""

from nightmill.validation.error_groups import ErrorGroup, ErrorGroups
from nightmill.validation.foreign_format import ForeignFormat, foreign_format
from nightmill.validation.input_file import DuplicatePass, InputValidator, ValidationResult
from nightmill.validation.line_rules import InputRules, LineChecker
from nightmill.validation.report import ValidationReport, hint_of, report_row
from nightmill.validation.survey import InputSurvey, prompt_bytes

__all__ = [
    "DuplicatePass",
    "ErrorGroup",
    "ErrorGroups",
    "ForeignFormat",
    "InputRules",
    "InputSurvey",
    "InputValidator",
    "LineChecker",
    "ValidationReport",
    "ValidationResult",
    "foreign_format",
    "hint_of",
    "prompt_bytes",
    "report_row",
]
