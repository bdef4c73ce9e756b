"""Validation of input files: a single line, the custom_ids of all lines, the whole file."""

from nightmill.validation.input_file import DuplicatePass, InputValidator, ValidationResult
from nightmill.validation.line_rules import InputRules, LineChecker

__all__ = ["DuplicatePass", "InputRules", "InputValidator", "LineChecker", "ValidationResult"]
