"""How many slots of a model fit into memory, from headers that the tests write; llama.cpp is not run."""

import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from nightmill.errors import SetupError
from nightmill.runtime import llama_memory
from nightmill.runtime.llama_memory import GgufHeader, available_bytes, plan_slots, read_header
from nightmill.settings import ModelSettings

TINY_GGUF = Path(__file__).parents[1] / "tiny_gguf.py"
GIB = 1 << 30

# Of the size of an 8B model with grouped heads: 128 KiB of keys and values for each token.
EIGHT_BILLION = GgufHeader(
    context_tokens=8_192,
    token_bytes=128 << 10,
    vocabulary=128_000,
    weights_bytes=5 * GIB,
    makes_embeddings=False,
)


def header_file(path: Path, **numbers: int | list[int]) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in numbers.items():
        key = f"llama.{name.replace('__', '.')}"
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


SHAPE = {"context_length": 4_096, "block_count": 3, "embedding_length": 64, "attention__head_count": 4}


# --- the header --------------------------------------------------------------------------------------


def test_the_header_of_a_whole_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, str(TINY_GGUF), str(path)], check=True)
    header = read_header(path)
    assert header.context_tokens == 2_048
    assert header.token_bytes == 2 * 4 * (16 + 16) * 2  # layers, heads, size of key and value, bytes
    assert header.vocabulary > 256
    assert header.weights_bytes == path.stat().st_size
    assert not header.makes_embeddings


def test_a_model_that_pools_its_tokens_makes_embeddings(tmp_path: Path) -> None:
    assert read_header(header_file(tmp_path / "a.gguf", **SHAPE, pooling_type=1)).makes_embeddings


@pytest.mark.parametrize(
    ("more", "token_bytes"),
    [
        pytest.param({}, 3 * 4 * 32 * 2, id="as many heads as the attention has"),
        pytest.param({"attention__head_count_kv": 1}, 3 * 1 * 32 * 2, id="grouped heads"),
        pytest.param({"attention__head_count_kv": [4, 0, 1]}, 5 * 32 * 2, id="other heads in each layer"),
        pytest.param(
            {"attention__key_length": 40, "attention__value_length": 24},
            3 * 4 * 64 * 2,
            id="sizes of its own",
        ),
        pytest.param({"attention__head_count": 0}, 0, id="no attention"),
    ],
)
def test_the_cache_of_a_token_follows_from_the_shape_of_the_model(
    tmp_path: Path, more: dict[str, int | list[int]], token_bytes: int
) -> None:
    assert read_header(header_file(tmp_path / "a.gguf", **(SHAPE | more))).token_bytes == token_bytes


def test_all_files_of_a_split_model_count(tmp_path: Path) -> None:
    first = header_file(tmp_path / "big-00001-of-00002.gguf", **SHAPE)
    (tmp_path / "big-00002-of-00002.gguf").write_bytes(b"x" * 1_000)
    (tmp_path / "other-00002-of-00002.gguf").write_bytes(b"x" * 10_000)
    assert read_header(first).weights_bytes == first.stat().st_size + 1_000


def test_a_file_cut_anywhere_in_its_header_is_a_setup_error(tmp_path: Path) -> None:
    whole = header_file(tmp_path / "whole.gguf", **SHAPE, attention__head_count_kv=[1, 2, 3]).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(SetupError, match=r"damaged|not a GGUF file"):
            read_header(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no model", "is not a GGUF file"),
        (b"GGUF\x01\0\0\0", "version 1"),
        (b"GGUF\x03\0\0\0" + b"\0" * 16, "names no context length"),
        (b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\1" + b"\0" * 7 + b"\xff" * 8, "damaged"),
    ],
)
def test_a_file_that_is_no_model_is_a_setup_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=message):
        read_header(path)


# --- the number of slots -----------------------------------------------------------------------------


def test_every_slot_has_the_context_of_the_model_where_memory_allows() -> None:
    plan = plan_slots(ModelSettings(), EIGHT_BILLION, available_bytes=24 * GIB)
    assert (plan.slots, plan.context_tokens) == (4, 8_192)
    assert plan.reason == (
        "4 at once, each with 8,192 tokens of context, in 9.5 GiB of 24.0 GiB available memory"
    )


def test_where_memory_is_short_there_are_fewer_slots() -> None:
    plan = plan_slots(ModelSettings(), EIGHT_BILLION, available_bytes=10 * GIB)
    assert (plan.slots, plan.context_tokens) == (2, 8_192)
    assert plan.reason == (
        "2 at once and not 4, each with 8,192 tokens of context, in 7.5 GiB of 10.0 GiB available memory; "
        "more fit with a smaller model.context_tokens"
    )


def test_a_smaller_context_makes_room_for_more_slots() -> None:
    plan = plan_slots(ModelSettings(context_tokens=2_048), EIGHT_BILLION, available_bytes=10 * GIB)
    assert (plan.slots, plan.context_tokens) == (4, 2_048)


def test_one_slot_that_does_not_fit_gets_less_context() -> None:
    plan = plan_slots(ModelSettings(), EIGHT_BILLION, available_bytes=7 * GIB)
    assert plan.slots == 1
    assert 0 < plan.context_tokens < 8_192
    assert plan.context_tokens % 256 == 0
    assert "longer lines fail" in plan.reason


def test_a_model_larger_than_memory_is_still_tried_with_the_least_context() -> None:
    """Its weights are mapped from the file, so the model may run, if slowly."""
    plan = plan_slots(ModelSettings(), EIGHT_BILLION, available_bytes=GIB)
    assert (plan.slots, plan.context_tokens) == (1, 256)


def test_the_chosen_slots_never_need_more_than_is_available() -> None:
    for available in range(7, 40):
        plan = plan_slots(ModelSettings(slots=9), EIGHT_BILLION, available_bytes=available * GIB)
        cache = plan.slots * plan.context_tokens * EIGHT_BILLION.token_bytes
        assert EIGHT_BILLION.weights_bytes + cache < available * GIB


def test_without_a_figure_for_the_memory_the_settings_stand() -> None:
    plan = plan_slots(ModelSettings(slots=64), EIGHT_BILLION, available_bytes=None)
    assert (plan.slots, plan.context_tokens) == (64, 8_192)
    assert plan.reason.endswith("tokens of context, in 69.5 GiB")


# --- the memory of the machine -----------------------------------------------------------------------


def test_the_available_memory_of_this_machine_is_known() -> None:
    available = available_bytes()
    assert available is not None
    assert 0 < available < 1 << 50


def limited(folder: Path, *, limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\nactive_file 7\n")


def left(root: Path, group: str) -> list[int]:
    return list(llama_memory._left_in(root, group, limit="memory.max", used="memory.current"))


def test_the_limits_of_a_control_group_and_of_its_parents_count(tmp_path: Path) -> None:
    limited(tmp_path / "system", limit="1000", used=700, cached=50)
    limited(tmp_path / "system" / "unit", limit="max", used=10, cached=0)
    limited(tmp_path / "system" / "unit" / "inner", limit="500", used=300, cached=20)
    assert left(tmp_path, "/system/unit/inner") == [220, 350]


def test_in_a_container_the_root_is_the_group_of_the_container(tmp_path: Path) -> None:
    limited(tmp_path, limit="1000", used=700, cached=50)
    assert left(tmp_path, "/docker/0123") == [350]
