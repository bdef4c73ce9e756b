"""The flags of `submit` that only nightmill understands."""

import pytest

from nightmill.cli.batch_options import OnInvalidChoice, batch_options
from nightmill.client import BatchOptions, OnInvalid

NOTHING = {
    "on_invalid": None,
    "canary": None,
    "canary_max_failed": None,
    "canary_pause": False,
    "max_failures": None,
    "max_output_tokens": None,
    "max_cost": None,
    "record_attempts": False,
}


def test_without_flags_nothing_is_sent_so_any_server_can_be_used():
    assert batch_options(**NOTHING) is None


def test_each_flag_sets_its_option():
    given = {
        "canary": 20,
        "canary_max_failed": 0.5,
        "canary_pause": True,
        "max_failures": 0.05,
        "max_output_tokens": 9,
        "max_cost": 1.5,
        "record_attempts": True,
    }
    options = batch_options(**NOTHING | given | {"on_invalid": OnInvalidChoice.SKIP})
    assert options == BatchOptions(on_invalid=OnInvalid.SKIP, **given)


@pytest.mark.parametrize(
    "flag",
    [("--on-invalid", "ignore"), ("--canary", "-1"), ("--canary-max-failed", "2"), ("--max-cost", "x")],
)
def test_a_wrong_flag_is_refused_before_anything_is_uploaded(nightmill, input_file, monkeypatch, flag):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    ran = nightmill("submit", input_file(1), *flag)
    assert ran.code == 2
    assert flag[0] in ran.err
