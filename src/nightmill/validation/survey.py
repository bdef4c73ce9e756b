"""Surveys the valid lines of an input file: sizes, models, equal bodies and shared beginnings. No I/O.

Memory use is eight bytes for each line, a bounded number of hashes of beginnings, and a sample of bodies.
"""

import random
from array import array
from typing import Final

from nightmill.core import json_text
from nightmill.core.estimate import FileSurvey, ModelLines
from nightmill.core.request_line import slice_line
from nightmill.core.segment import unpack_lines

SAMPLED_LINES: Final = 32
_LARGEST_SAMPLED_BYTES: Final = 256 << 10
_BLOCK_BYTES: Final = 256
"""A beginning is shared in whole blocks, as the caches of engines share it."""
_MOST_BLOCKS: Final = 1 << 19
"""Blocks behind that many different ones are not remembered: what is shared is then a lower bound."""
_PROMPT: Final = ("messages", "input", "prompt", "instructions", "tools")
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_LONGEST_NUMBER: Final = 12


class InputSurvey:
    """Give each chunk of the file to `take`, with the index records of its valid lines."""

    def __init__(self) -> None:
        self.found = FileSurvey()
        self.sample: list[bytes] = []
        """Bodies chosen at random, those of all lines while there are few."""
        self._window = b""
        self._window_offset = 0
        self._hashes = array("q")
        self._blocks: set[int] = set()
        self._chance = random.Random(0)  # noqa: S311 - the same file has the same sample

    def take(self, chunk: bytes, records: bytes) -> None:
        window = self._window + chunk
        for line in unpack_lines(records):
            start = line.offset - self._window_offset
            self._add(window[start : start + line.length_bytes])
        kept_from = window.rfind(b"\n") + 1
        self._window = window[kept_from:]
        self._window_offset += kept_from

    def finish(self) -> FileSurvey:
        """Call once, at the end."""
        self.found.duplicates = len(self._hashes) - len(set(self._hashes))
        self._hashes = array("q")
        return self.found

    def _add(self, line: bytes) -> None:
        body = slice_line(line).body
        members = json_text.members(body, "model", *_PROMPT, *_LIMITS)
        model = members.get("model", b"")
        name = json_text.string(model) if model[:1] == b'"' else None
        prompt = b"".join([members[part] for part in _PROMPT if part in members])
        of_model = self.found.by_model.setdefault(name, ModelLines())
        of_model.lines += 1
        of_model.prompt_bytes += len(prompt)
        limit = next((number for member in _LIMITS if (number := _number(members.get(member, b"")))), None)
        if limit is None:
            of_model.unlimited += 1
        else:
            of_model.most_output_tokens += limit
        self.found.lines += 1
        self.found.prompt_bytes += len(prompt)
        self.found.shared_bytes += self._shared(prompt)
        self._hashes.append(hash(body))
        self._keep(body)

    def _shared(self, prompt: bytes) -> int:
        blocks, beginning, shared = self._blocks, 0, 0
        is_shared = True
        for start in range(0, len(prompt) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
            beginning = hash((beginning, prompt[start : start + _BLOCK_BYTES]))
            if beginning in blocks:
                shared += _BLOCK_BYTES if is_shared else 0
                continue
            is_shared = False
            if len(blocks) >= _MOST_BLOCKS:
                break
            blocks.add(beginning)
        return shared

    def _keep(self, body: bytes) -> None:
        if len(body) > _LARGEST_SAMPLED_BYTES:
            return
        if len(self.sample) < SAMPLED_LINES:
            self.sample.append(body)
        elif (place := self._chance.randrange(self.found.lines)) < SAMPLED_LINES:
            self.sample[place] = body


def prompt_bytes(body: bytes) -> int:
    """The bytes of the members of a body that a model reads."""
    return sum(map(len, json_text.members(body, *_PROMPT).values()))


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) <= _LONGEST_NUMBER else None
