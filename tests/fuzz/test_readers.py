"""Hypothesis feeds mixtures of meaningful pieces to every reader of external bytes. See `targets`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds, words


def mixtures(name: str) -> st.SearchStrategy[bytes]:
    """Pieces in any order, random bytes among them, and good inputs with some bytes changed."""
    pieces = st.lists(st.sampled_from(words()[name]) | st.binary(max_size=6), max_size=14).map(b"".join)
    return pieces | st.sampled_from(seeds()[name]).flatmap(changed)


def changed(text: bytes) -> st.SearchStrategy[bytes]:
    changes = st.lists(
        st.tuples(st.integers(0, len(text)), st.integers(0, 6), st.binary(max_size=4)), max_size=4
    )

    def change(edits: list[tuple[int, int, bytes]]) -> bytes:
        made = text
        for offset, gone, new in edits:
            made = made[:offset] + new + made[offset + gone :]
        return made

    return changes.map(change)


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_accepted(name):
    for seed in seeds()[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_violates_a_property(name):
    @given(data=mixtures(name))
    @settings(max_examples=400)
    def check(data):
        TARGETS[name](data)

    check()
