"""A built-in upstream that makes its answers up, says so, and misbehaves only on order.

Duty: answer every batch endpoint at once and always the same way for the same body. Promise: no answer looks
like a model's; `system_fingerprint`, `metadata` or the header `x-nightmill-emulator` give it away. Not its
duty: to be started unasked.
"""

from nightmill.emulator.answers import FINGERPRINT, Answer, answer
from nightmill.emulator.app import emulator_app
from nightmill.emulator.faults import Fault, read_faults

__all__ = ["FINGERPRINT", "Answer", "Fault", "answer", "emulator_app", "read_faults"]
