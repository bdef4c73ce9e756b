"""Validation of input files: a single line, the custom_ids of all lines, the whole file."""

from nightmill.validation.input_file import DuplicatePass, InputValidator, ValidationResult
from nightmill.validation.line_rules import InputRules, LineChecker
from nightmill.validation.report import ValidationReport, hint_of, report_row

__all__ = [
    "DuplicatePass",
    "InputRules",
    "InputValidator",
    "LineChecker",
    "ValidationReport",
    "ValidationResult",
    "hint_of",
    "report_row",
]
