"""The section `[emulator]`: what it accepts, and what reaches the emulator's process."""

import argparse
import json
from pathlib import Path
from typing import get_args

import pytest

from nightmill.emulator import server
from nightmill.emulator.fault_plan import NO_CHANCES
from nightmill.emulator.faults import Fault, Kind, read_faults
from nightmill.errors import SetupError
from nightmill.runtime.upstreams import emulator_arguments
from nightmill.settings import EmulatorSettings, FaultSettings, as_message, from_message, load
from nightmill.settings.emulator import FaultKind

SECTION = """
[emulator]
enabled = true
delay_s = 0.2
delay_p99_s = 2
fail_rate = 0.05
fail_statuses = [429, 500]
seed = 7

[[emulator.faults]]
fault = "status"
match = "ticket-7"
times = "always"
status = 400
code = "context_length_exceeded"

[[emulator.faults]]
fault = "hang"
"""


def options_of(settings: EmulatorSettings) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    server.add_arguments(parser)
    return parser.parse_args(emulator_arguments(settings))


def test_the_settings_reach_the_process(tmp_path: Path) -> None:
    config = tmp_path / "nightmill.toml"
    config.write_text(SECTION)
    settings = load(config=config, environment={})
    assert from_message(as_message(settings)) == settings
    options = options_of(settings.emulator)
    assert read_faults(options.faults) == [
        Fault("status", match="ticket-7", times=None, status=400, code="context_length_exceeded"),
        Fault("hang"),
    ]
    chances = server.chances_of(options)
    assert (chances.delay_s, chances.delay_p99_s) == (0.2, 2.0)
    assert (chances.fail_rate, chances.fail_statuses, chances.seed) == (0.05, (429, 500), 7)


def test_without_settings_nothing_is_left_to_chance() -> None:
    assert server.chances_of(options_of(EmulatorSettings())) == NO_CHANCES


def test_faults_in_the_environment_are_json_and_statuses_a_list() -> None:
    environment = {
        "NIGHTMILL_EMULATOR__FAULTS": '[{"fault": "slow", "delay_s": 2}]',
        "NIGHTMILL_EMULATOR__FAIL_STATUSES": "429, 503",
    }
    emulator = load(environment=environment).emulator
    assert emulator.faults == (FaultSettings(fault="slow", delay_s=2),)
    assert emulator.fail_statuses == (429, 503)


def test_the_settings_and_the_emulator_know_the_same_faults() -> None:
    assert get_args(FaultKind) == get_args(Kind)
    in_settings = FaultSettings(fault="status").model_dump()
    assert in_settings == json.loads(
        json.dumps({name: getattr(Fault("status"), name) for name in in_settings})
    )
    assert set(in_settings) == set(Fault.__struct_fields__)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"NIGHTMILL_EMULATOR__FAULTS": "nonsense"}, "emulator.faults.*write a list in JSON"),
        ({"NIGHTMILL_EMULATOR__FAULTS": '[{"fault": "sloow"}]'}, "emulator.faults.0.fault"),
        ({"NIGHTMILL_EMULATOR__FAULTS": '[{"fault": "slow", "wait": 1}]'}, "no such setting"),
        ({"NIGHTMILL_EMULATOR__FAIL_RATE": "1.5"}, "emulator.fail_rate"),
        ({"NIGHTMILL_EMULATOR__FAIL_STATUSES": "99"}, "emulator.fail_statuses"),
        ({"NIGHTMILL_EMULATOR__DELAY_P99_S": "1"}, "delay_p99_s needs a smaller delay_s"),
    ],
)
def test_a_wrong_value_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SetupError, match=named):
        load(environment=environment)
