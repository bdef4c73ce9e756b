"""Input files and the one answer of the instant upstream."""

import json
from pathlib import Path

LINE_BYTES = 680
ANSWER_BYTES = 488
_BODY_HEAD = b'{"model": "bench", "messages": [{"role": "user", "content": "'
_BODY_TAIL = b'"}], "max_tokens": 64}'
_TEXT = (
    b"The mill stands by the river and grinds what the day has left; nobody watches, and it never hurries. "
)
TEXT_BYTES = len(_TEXT)


def line(number: int, size_bytes: int = LINE_BYTES) -> bytes:
    """A chat request line of exactly `size_bytes`, line break included."""
    head = b'{"custom_id": "line-%08d", "method": "POST", "url": "/v1/chat/completions", "body": ' % number
    prompt_bytes = size_bytes - len(head) - len(_BODY_HEAD) - len(_BODY_TAIL) - len(b"}\n")
    prompt = (b"%08d " % number + _TEXT * (1 + prompt_bytes // len(_TEXT)))[:prompt_bytes]
    return head + _BODY_HEAD + prompt + _BODY_TAIL + b"}\n"


def body(number: int, size_bytes: int = LINE_BYTES) -> bytes:
    """The body of the line, as the upstream receives it."""
    whole = line(number, size_bytes)
    return whole[whole.index(b'"body": ') + len(b'"body": ') : -2]


def text(size_bytes: int) -> str:
    """Filler text of `size_bytes` bytes."""
    return (_TEXT * (1 + size_bytes // TEXT_BYTES)).decode()[:size_bytes]


def input_file(folder: Path, lines: int, *, line_bytes: int = LINE_BYTES) -> Path:
    """A file with `lines` lines; created once."""
    path = folder / f"input-{lines}-{line_bytes}.jsonl"
    if not path.exists():
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            for first in range(0, lines, 10_000):
                file.write(b"".join(line(n, line_bytes) for n in range(first, min(first + 10_000, lines))))
        unfinished.rename(path)
    return path


def answer(size_bytes: int = ANSWER_BYTES) -> bytes:
    """A chat completion of exactly `size_bytes`, as a model server sends it: compact, one line."""
    shell = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 128,
            "completion_tokens": 32,
            "total_tokens": 160,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": "fp_bench",
    }
    empty = json.dumps(shell, separators=(",", ":")).encode()
    shell["choices"][0]["message"]["content"] = text(size_bytes - len(empty))
    return json.dumps(shell, separators=(",", ":")).encode()
