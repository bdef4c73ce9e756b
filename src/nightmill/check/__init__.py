"""Is an input file one the batch can run? One line, the custom_ids of all lines, the whole file."""

from nightmill.check.input_file import Findings, Inspection, SecondLook
from nightmill.check.request_line import InputRules, LineChecker

__all__ = ["Findings", "InputRules", "Inspection", "LineChecker", "SecondLook"]
