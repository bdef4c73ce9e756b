"""Input files against a real server: the validation report, `--on-invalid skip`, and Python on both."""

import asyncio

from nightmill.client import AsyncBatchApi, BatchOptions, Client, OnInvalid
from tests.api.tokenizers import VllmTokenizer, tokenizer
from tests.cli.test_end_to_end import base_url, rows, use_the_server

__all__ = ["base_url", "use_the_server"]

BAD = ("{'custom_id': 'a'}", '{"custom_id": "late", "method": "POST", "url": "/v1/x", "body": {}}')


def test_the_report_of_a_failed_batch_names_every_invalid_line(base_url, nightmill, input_file, tmp_path):
    failed = nightmill("submit", input_file(2, bad=BAD), "--no-check", "--watch", "--json").json
    assert failed["status"] == "failed"
    target = tmp_path / "report.jsonl"
    ran = nightmill("validation", failed["id"], "-o", target)
    assert (ran.code, ran.err) == (0, f"wrote {target} (2 invalid lines)\n")
    report = rows(target.read_text())
    assert [(row["line"], row["code"], row["field"], row["custom_id"]) for row in report] == [
        (3, "invalid_json_line", None, None),
        (4, "invalid_url", "url", "late"),
    ]
    assert "json.dumps" in report[0]["hint"]
    assert rows(nightmill("validation", failed["id"]).out) == report
    with Client(base_url) as client:
        assert list(client.input.validation(failed["id"])) == report

    async def read():
        async with AsyncBatchApi(base_url) as api:
            return [row async for row in api.input.validation(failed["id"])]

    assert asyncio.run(read()) == report
    local = tmp_path / "local.jsonl"
    checked = nightmill("validate", input_file(2, bad=BAD), "--report", local)
    assert checked.code == 2
    assert rows(local.read_text()) == report


def test_invalid_lines_are_skipped_on_demand_from_the_command_line(base_url, nightmill, input_file, tmp_path):
    batch = nightmill("submit", input_file(3, bad=BAD), "--on-invalid", "skip", "--watch", "--json").json
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
    errors = tmp_path / "errors.jsonl"
    nightmill("results", batch["id"], "-e", errors)
    found = rows(errors.read_text())
    assert [(row["custom_id"], row["response"], row["error"]["code"]) for row in found] == [
        (None, None, "invalid_json_line"),
        ("late", None, "invalid_url"),
    ]


def test_python_gets_an_answer_for_each_line_skipped_or_not(base_url, input_file):
    with Client(base_url) as client:
        batch = client.submit_file(
            input_file(2, bad=BAD),
            endpoint="/v1/chat/completions",
            options=BatchOptions(on_invalid=OnInvalid.SKIP),
        )
        answers = list(client.answers(client.wait(batch.id)))
    assert [answer.is_ok for answer in answers] == [True, True, False, False]
    assert [answer.custom_id for answer in answers[2:]] == ["", "late"]
    assert answers[2].error["code"] == "invalid_json_line"


def test_a_valid_batch_has_an_empty_report(base_url, nightmill, input_file):
    batch = nightmill("submit", input_file(1), "--watch", "--json").json
    ran = nightmill("validation", batch["id"])
    assert (ran.code, ran.out, ran.err) == (0, "", "0 invalid lines\n")


def test_validate_writes_an_empty_report_for_a_valid_file(nightmill, input_file, tmp_path):
    target = tmp_path / "report.jsonl"
    assert nightmill("validate", input_file(2), "--report", target).code == 0
    assert target.read_text() == ""


def test_a_canary_passes_or_stops_the_batch_and_is_shown(base_url, nightmill, input_file):
    passed = nightmill("submit", input_file(8), "--canary", "3", "--watch", "--json").json
    assert passed["status"] == "completed"
    shown = nightmill("canary", passed["id"], "--json").json
    assert (shown["state"], shown["lines"], shown["completed"], shown["failed"]) == ("passed", 3, 3, 0)
    assert "canary" in nightmill("canary", passed["id"]).out
    assert "lines=3, completed=3, failed=0" in nightmill("events", passed["id"]).out
    with Client(base_url) as client:
        assert client.input.canary(passed["id"]) == shown

    async def read():
        async with AsyncBatchApi(base_url) as api:
            return await api.input.canary(passed["id"])

    assert asyncio.run(read()) == shown


def test_a_batch_without_a_canary_has_none_to_show(base_url, nightmill, input_file):
    batch = nightmill("submit", input_file(1), "--watch", "--json").json
    ran = nightmill("canary", batch["id"])
    assert ran.code == 2
    assert "has no canary" in ran.err


def test_a_dry_run_tells_what_a_batch_would_need_and_sends_nothing(base_url, nightmill, input_file):
    local = nightmill("validate", input_file(3), "--estimate")
    assert local.code == 0
    assert "3 valid, 0 invalid" in local.out
    assert "estimated: a quarter of the bytes" in local.out
    assert "unknown: the settings have no price of the model" in local.out
    document = nightmill("validate", input_file(3), "--estimate", "--json").json
    with tokenizer(VllmTokenizer) as url:
        exact = nightmill("validate", input_file(3), "--estimate", "--upstream", url, "--json").json
    assert exact["tokens"] | {"input": 18, "method": "exact", "counted_lines": 3} == exact["tokens"]
    assert nightmill("validate", input_file(1, bad=BAD), "--estimate").code == 2

    async def read(file_id):
        async with AsyncBatchApi(base_url) as api:
            return await api.input.estimate(file_id, endpoint="/v1/chat/completions")

    with Client(base_url) as client:
        file_id = client.upload(input_file(3)).id
        found = client.input.estimate(file_id, endpoint="/v1/chat/completions")
    assert asyncio.run(read(file_id)) == found
    assert {name: found[name] for name in ("lines", "tokens", "duplicates")} == {
        name: document[name] for name in ("lines", "tokens", "duplicates")
    }
