"""Validation of input files: a single line, the custom_ids of all lines, the whole file."""

from nightmill.validation.input_file import DuplicatePass, InputValidator, ValidationResult
from nightmill.validation.line_rules import InputRules, LineChecker
from nightmill.validation.report import ValidationReport, hint_of, report_row
from nightmill.validation.survey import InputSurvey, prompt_bytes

__all__ = [
    "DuplicatePass",
    "InputRules",
    "InputSurvey",
    "InputValidator",
    "LineChecker",
    "ValidationReport",
    "ValidationResult",
    "hint_of",
    "prompt_bytes",
    "report_row",
]
