"""Which hosts are this machine's loopback."""

import pytest

from nightmill.core.loopback import is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_a_host_is_loopback_only_if_no_other_machine_reaches_it(host: str, expected: bool):
    assert is_loopback(host) is expected
