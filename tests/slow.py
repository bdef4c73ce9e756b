"""Which tests `make test` leaves to `make test-slow` and `make test-fleet`, which set the two variables.

CI has twenty minutes on two cores. A test that takes long and repeats with real processes what others prove
at less cost waits for the named target.
"""

import os

import pytest

IS_SLOW = bool(os.environ.get("TEST_SLOW"))
IS_FLEET = bool(os.environ.get("TEST_FLEET"))


def examples(most: int) -> int:
    """How many examples of a property are tried: `most` in `make test-slow`, a third of them otherwise."""
    return most if IS_SLOW else max(1, most // 3)


only_slow = pytest.mark.skipif(not IS_SLOW, reason="long: make test-slow")
only_fleet = pytest.mark.skipif(not IS_FLEET, reason="long: make test-fleet")
