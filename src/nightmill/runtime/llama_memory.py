"""How many slots of a GGUF model fit into the memory of this machine.

llama.cpp allocates the keys and values of every slot when it loads a model, so their size follows from the
header of the file. Each slot gets the whole context: slots that shared one context would end each other's
lines with "Context size has been exceeded". Where memory is short there are fewer slots, and at last one slot
with less context. llama.cpp is not needed here.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from nightmill.errors import SetupError
from nightmill.settings import ModelSettings

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_STRING: Final = 8
_ARRAY: Final = 9
_UINT32: Final = struct.Struct("<I")
_UINT64: Final = struct.Struct("<Q")
_SCALARS: Final = {
    number: struct.Struct(f"<{code}") for number, code in enumerate("BbHhIif?--Qqd") if code != "-"
}
"""Layouts by the numbers of their types. Types 8 and 9 are texts and arrays."""
_CGROUP: Final = Path("/sys/fs/cgroup")
_CACHED: Final = re.compile(r"^(?:total_)?inactive_file (\d+)$", re.MULTILINE)
"""Counted as used, but given up when memory is short."""

_KEY_OR_VALUE_BYTES: Final = 2
"""One number of the cache, as llama.cpp stores it by default (f16)."""
_LOGIT_BYTES: Final = 4
_PROMPT_BATCH_TOKENS: Final = 512
"""Tokens of a prompt that llama.cpp computes at once."""
_FIXED_BYTES: Final = 256 << 20
"""Intermediate results and the process itself; 40 to 150 MB were measured."""
_USED_SHARE: Final = 0.8
"""The rest of the available memory is left to the other processes."""
_CONTEXT_STEP_TOKENS: Final = 256
"""llama.cpp rounds the context of a slot up to a multiple of this."""
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the header of a GGUF file says about the memory that the model needs.

    Attributes:
        context_tokens: the longest context that the model was trained for.
        token_bytes: keys and values of one token of context, in all layers.
        vocabulary: the number of tokens that the model knows.
        weights_bytes: the size of all files of the model.
        makes_embeddings: whether the model pools its tokens; llama.cpp then serves nothing else.
    """

    context_tokens: int
    token_bytes: int
    vocabulary: int
    weights_bytes: int
    makes_embeddings: bool


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """The slots to start llama.cpp with. `reason` continues "the model answers" for the operator."""

    slots: int
    context_tokens: int
    reason: str


def plan_slots(settings: ModelSettings, header: GgufHeader, *, available_bytes: int | None) -> SlotPlan:
    """As many slots as the settings name, or as many as fit.

    Args:
        available_bytes: None if it is unknown; then the settings stand.
    """
    wanted_tokens = settings.context_tokens or header.context_tokens
    logits_bytes = _PROMPT_BATCH_TOKENS * header.vocabulary * _LOGIT_BYTES
    fixed_bytes = header.weights_bytes + logits_bytes + _FIXED_BYTES
    slot_bytes = header.token_bytes * _rounded_up(wanted_tokens)

    def size(slots: int, slot_bytes: int) -> str:
        needed = f"{(fixed_bytes + slots * slot_bytes) / _GIB:.1f} GiB"
        if available_bytes is None:
            return needed
        return f"{needed} of {available_bytes / _GIB:.1f} GiB available memory"

    plan = f"{settings.slots} at once, each with {wanted_tokens:,} tokens of context, in "
    if available_bytes is None or slot_bytes == 0:
        return SlotPlan(settings.slots, wanted_tokens, plan + size(settings.slots, slot_bytes))
    free_bytes = max(0, int(available_bytes * _USED_SHARE) - fixed_bytes)
    slots = min(settings.slots, free_bytes // slot_bytes)
    if slots == settings.slots:
        return SlotPlan(slots, wanted_tokens, plan + size(slots, slot_bytes))
    if slots >= 1:
        reason = (
            f"{slots} at once and not {settings.slots}, each with {wanted_tokens:,} tokens of context, in"
            f" {size(slots, slot_bytes)}; more fit with a smaller model.context_tokens"
        )
        return SlotPlan(slots, wanted_tokens, reason)
    fitting_tokens = free_bytes // header.token_bytes // _CONTEXT_STEP_TOKENS * _CONTEXT_STEP_TOKENS
    tokens = max(_CONTEXT_STEP_TOKENS, fitting_tokens)
    reason = (
        f"1 at once, with {tokens:,} tokens of context and not {wanted_tokens:,}, in"
        f" {size(1, tokens * header.token_bytes)}; longer lines fail, so free memory or take a smaller model"
    )
    return SlotPlan(1, tokens, reason)


def _rounded_up(tokens: int) -> int:
    return -(-tokens // _CONTEXT_STEP_TOKENS) * _CONTEXT_STEP_TOKENS


# --- the header of a model ---------------------------------------------------------------------------


def read_header(path: Path) -> GgufHeader:
    """Reads the header of a model.

    Raises:
        SetupError: the file can't be read, is not a GGUF file, or lacks the model's context.
    """
    values = _read_values(path)
    architecture = values.get("general.architecture")

    def number(key: str, default: int = 0) -> int:
        value = values.get(f"{architecture}.{key}", default)
        return value if isinstance(value, int) else default

    def per_layer(key: str, default: list[int]) -> list[int]:
        value = values.get(f"{architecture}.{key}")
        if isinstance(value, int):
            return [value] * layers
        return value if isinstance(value, list) else default

    context_tokens = number("context_length")
    if context_tokens <= 0:
        raise SetupError(f"{path} is not a language model: its header names no context length")
    layers = number("block_count")
    heads = per_layer("attention.head_count", [0] * layers)
    head_size = number("embedding_length") // max(1, *heads, 1)
    sizes = number("attention.key_length", head_size) + number("attention.value_length", head_size)
    cache_heads = sum(per_layer("attention.head_count_kv", heads))
    vocabulary = values.get("tokenizer.ggml.tokens")
    return GgufHeader(
        context_tokens=context_tokens,
        token_bytes=cache_heads * sizes * _KEY_OR_VALUE_BYTES,
        vocabulary=vocabulary if isinstance(vocabulary, int) else number("vocab_size"),
        weights_bytes=sum(file.stat().st_size for file in _files(path)),
        makes_embeddings=f"{architecture}.pooling_type" in values,
    )


def _files(path: Path) -> list[Path]:
    """The files of a model, which may be split: llama.cpp gets the first one and finds the others."""
    split = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", path.name)
    if split is None:
        return [path]
    name = re.compile(re.escape(split[1]) + r"\d{5}" + re.escape(split[2]))
    return [file for file in path.parent.iterdir() if name.fullmatch(file.name)]


_Value = int | float | str | list[int]


def _read_values(path: Path) -> dict[str, _Value]:
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise SetupError(f"{path} is not a GGUF file")
            version = _number(file, _UINT32)
            if version not in _VERSIONS:
                raise SetupError(
                    f"{path} has version {version} of the GGUF format, which llama.cpp can't read"
                )
            _number(file, _UINT64)  # tensors, which follow the header
            return {_text(file): _value(file, _number(file, _UINT32)) for _ in range(_number(file, _UINT64))}
    except OSError as error:
        raise SetupError(f"the model {path} can't be read: {error.strerror}") from None
    except (EOFError, KeyError, OverflowError, MemoryError):
        raise SetupError(f"the header of {path} is damaged; copy or download the file again") from None


def _value(file: BinaryIO, kind: int) -> _Value:
    """One value of the header; of an array whose entries are no integers, the number of its entries."""
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _number(file, _SCALARS[kind])
    entry_kind, count = _number(file, _UINT32), _number(file, _UINT64)
    if entry_kind == _STRING:
        for _ in range(count):
            _bytes(file, _number(file, _UINT64))
        return count
    entry = _SCALARS[entry_kind]
    entries = [value for (value,) in entry.iter_unpack(_bytes(file, entry.size * count))]
    return entries if all(isinstance(value, int) for value in entries) else count


def _number(file: BinaryIO, layout: struct.Struct) -> int:
    (value,) = layout.unpack(_bytes(file, layout.size))
    return value


def _text(file: BinaryIO) -> str:
    return _bytes(file, _number(file, _UINT64)).decode(errors="replace")


def _bytes(file: BinaryIO, count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise EOFError
    return found


# --- the memory of this machine ----------------------------------------------------------------------


def available_bytes() -> int | None:
    """Memory for new processes: the machine's, or less where a control group limits it; None if unknown."""
    known = [size for size in (_machine_bytes(), *_control_group_bytes()) if size is not None]
    return max(0, min(known)) if known else None


def _machine_bytes() -> int | None:
    try:
        rows = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(row.split()[1]) << 10 for row in rows if row.startswith("MemAvailable:")), None)


def _control_group_bytes() -> Iterator[int]:
    """What each limit over this process leaves: a container's, or that of a systemd unit."""
    try:
        rows = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for row in rows:
        _, controllers, group = row.split(":", 2)
        if controllers == "":
            yield from _left_in(_CGROUP, group, limit="memory.max", used="memory.current")
        elif "memory" in controllers.split(","):
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            yield from _left_in(_CGROUP / "memory", group, limit=limit, used=used)


def _left_in(root: Path, group: str, *, limit: str, used: str) -> Iterator[int]:
    """In a container the group's path may not exist below `root`, but `root` is then the group itself."""
    folder = root / group.lstrip("/")
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            return
        try:
            most, now = (place / limit).read_text().strip(), int((place / used).read_text())
            cached = _CACHED.search((place / "memory.stat").read_text())
        except (OSError, ValueError):
            continue
        if most.isdecimal():  # "max" is no limit
            yield int(most) - now + (int(cached[1]) if cached else 0)
