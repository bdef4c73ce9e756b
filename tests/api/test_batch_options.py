"""The reserved key `nightmill` on create: what it sets, and what it refuses."""

import openai
import pytest

from nightmill.core.batch_options import BatchOptions, OnInvalid
from nightmill.ids import BatchId, ProjectId
from tests.api.test_batches import create

EVERYTHING = {
    "priority": 4,
    "on_invalid": "skip",
    "canary": 20,
    "canary_max_failed": 0.25,
    "canary_pause": True,
    "max_failures": 0.05,
    "max_output_tokens": 1_000_000,
    "max_cost": 12.5,
    "record_attempts": True,
}


@pytest.fixture
def stored(server, project):
    def get(batch):
        return server.do(server.context.store.batches.get(ProjectId(project), BatchId(batch.id)))

    return get


def own(**given):
    return {"extra_body": {"nightmill": given}}


def test_every_option_is_kept_with_the_batch(client, input_file_id, stored):
    batch = stored(create(client, input_file_id, **own(**EVERYTHING)))
    assert batch.priority == 4
    assert batch.options == BatchOptions(
        on_invalid=OnInvalid.SKIP,
        canary=20,
        canary_max_failed=0.25,
        canary_pause=True,
        max_failures=0.05,
        max_output_tokens=1_000_000,
        max_cost=12.5,
        record_attempts=True,
    )


def test_a_batch_without_the_key_has_the_defaults(client, input_file_id, stored):
    assert stored(create(client, input_file_id)).options == BatchOptions()
    assert stored(create(client, input_file_id, **own(max_failures=None))).options == BatchOptions()


def test_whole_numbers_and_shares_of_failures_are_kept_as_given(client, input_file_id, stored):
    assert stored(create(client, input_file_id, **own(max_failures=3))).options.max_failures == 3
    assert stored(create(client, input_file_id, **own(max_failures=0))).options.max_failures == 0


@pytest.mark.parametrize(
    ("given", "param", "code", "said"),
    [
        ({"canry": 1}, "nightmill.canry", "unknown_parameter", "Did you mean 'canary'?"),
        ({"on_invald": "skip"}, "nightmill.on_invald", "unknown_parameter", "Did you mean 'on_invalid'?"),
        ({"zzz": 1}, "nightmill.zzz", "unknown_parameter", "Unknown parameter: 'nightmill.zzz'."),
        ({"on_invalid": "ignore"}, "nightmill.on_invalid", "invalid_value", "'fail' and 'skip'"),
        ({"on_invalid": 1}, "nightmill.on_invalid", "invalid_type", "expected a string"),
        ({"canary": -1}, "nightmill.canary", "integer_below_min_value", ">= 0, but got -1"),
        ({"canary": 2.5}, "nightmill.canary", "invalid_type", "expected an integer"),
        ({"canary": True}, "nightmill.canary", "invalid_type", "got a boolean"),
        (
            {"canary_max_failed": 1.1},
            "nightmill.canary_max_failed",
            "decimal_above_max_value",
            "<= 1, but got 1.1",
        ),
        ({"canary_max_failed": "0.1"}, "nightmill.canary_max_failed", "invalid_type", "expected a decimal"),
        ({"max_failures": -0.5}, "nightmill.max_failures", "decimal_below_min_value", ">= 0, but got -0.5"),
        ({"max_failures": 2.5}, "nightmill.max_failures", "invalid_value", "neither a whole number"),
        ({"max_output_tokens": 0}, "nightmill.max_output_tokens", "integer_below_min_value", ">= 1"),
        (
            {"max_output_tokens": 2**60},
            "nightmill.max_output_tokens",
            "integer_above_max_value",
            "<= 9007199254740992",
        ),
        ({"max_cost": -1}, "nightmill.max_cost", "decimal_below_min_value", ">= 0"),
        ({"record_attempts": "yes"}, "nightmill.record_attempts", "invalid_type", "expected a boolean"),
        ([], "nightmill", "invalid_type", "expected an object"),
    ],
)
def test_a_wrong_option_is_refused_by_name(client, input_file_id, given, param, code, said):
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, input_file_id, extra_body={"nightmill": given})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert said in str(caught.value)


def test_the_same_idempotency_key_with_other_options_is_a_conflict(client, input_file_id):
    once = {"extra_headers": {"Idempotency-Key": "options-1"}}
    first = create(client, input_file_id, **own(canary=20), **once)
    assert create(client, input_file_id, **own(canary=20), **once).id == first.id
    with pytest.raises(openai.ConflictError, match="different request"):
        create(client, input_file_id, **own(canary=21), **once)
