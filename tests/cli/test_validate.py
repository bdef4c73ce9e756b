"""`nightmill validate` lists every invalid line of a file, by the rules of the server."""

import json

import pytest


def test_a_valid_file_exits_with_0(nightmill, input_file):
    ran = nightmill("validate", input_file(3))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("in.jsonl is valid: 3 requests to /v1/chat/completions for m\n")


def test_equal_errors_are_shown_once_with_their_first_lines(nightmill, input_file):
    repeated = '{"custom_id": "line-0", "method": "POST", "url": "/v1/chat/completions", "body": %s}'
    body = '{"model": "m", "messages": []}'
    bad = ["{", *["[]"] * 1500, repeated % body, repeated % '{"model": "m"}']
    ran = nightmill("validate", input_file(2, bad=tuple(bad)))
    assert ran.code == 2
    assert [line for line in ran.out.splitlines() if not line.startswith("  ")] == [
        "line 3: invalid_json_line",
        "1,500 lines: invalid_type (lines 4, 5, 6, 7, 8 and 1,495 more)",
        "line 1,504: duplicate_custom_id",
        "line 1,505: invalid_request",
    ]
    assert "  Give each line a custom_id of its own, for example its row number.\n" in ran.out
    assert "1,503 of 1,505 lines are invalid" in ran.err
    assert "--report FILE" in ran.err


def test_the_report_and_json_have_every_bad_line(nightmill, input_file, tmp_path):
    path = input_file(1, bad=("{",) * 300)
    report = tmp_path / "report.jsonl"
    ran = nightmill("validate", path, "--report", report)
    assert f"every invalid line is in {report}" in ran.err
    assert len(report.read_text().splitlines()) == 300
    assert len(nightmill("validate", path, "--json").json["errors"]) == 300


def test_a_table_is_named_with_the_command_that_converts_it(nightmill, tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("id,review\n1,Nice shoes\n")
    report = tmp_path / "report.jsonl"
    ran = nightmill("validate", path, "--report", report)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"nightmill: {path} is a CSV table with the columns id, review; turn it into")
    assert json.loads(report.read_text())["code"] == "invalid_file"


def test_stdin_is_checked_like_a_file(nightmill, input_file, monkeypatch):
    with input_file(3).open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        ran = nightmill("validate", "-")
    assert ran.out == "stdin is valid: 3 requests to /v1/chat/completions for m\n"


def test_json_contains_the_errors_in_the_form_of_a_batch(nightmill, input_file):
    ran = nightmill("validate", input_file(1, bad=("{",)), "--json")
    assert (ran.code, ran.err) == (2, "")
    assert ran.json == {
        "valid": False,
        "endpoint": "/v1/chat/completions",
        "model": "m",
        "requests": 1,
        "errors": [
            {
                "code": "invalid_json_line",
                "message": "This line is not parseable as valid JSON.",
                "param": None,
                "line": 2,
            }
        ],
    }


def test_the_endpoint_is_found_after_an_invalid_first_line(nightmill, tmp_path):
    good = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
    path = tmp_path / "in.jsonl"
    path.write_text("{\n" + json.dumps(good) + "\n")
    ran = nightmill("validate", path, "--json")
    assert ran.json["endpoint"] == "/v1/embeddings"
    assert [error["line"] for error in ran.json["errors"]] == [1]


def test_an_endpoint_that_differs_from_the_lines_is_an_error_on_each_line(nightmill, input_file):
    ran = nightmill("validate", input_file(2), "--endpoint", "/v1/embeddings", "--json")
    assert [error["code"] for error in ran.json["errors"]] == ["invalid_url", "invalid_url"]


def test_an_empty_file_and_a_compressed_one_are_refused(nightmill, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"")
    assert nightmill("validate", path, "--json").json["errors"][0]["code"] == "empty_file"
    path.write_bytes(b"\x1f\x8b\x08")
    assert nightmill("validate", path, "--json").json["errors"][0]["code"] == "invalid_file"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_in_another_encoding_is_named_before_any_line_is_read(
    nightmill, input_file, tmp_path, encoding
):
    path = tmp_path / "encoded.jsonl"
    path.write_text(input_file(2).read_text(), encoding=encoding)
    [error] = nightmill("validate", path, "--json").json["errors"]
    assert (error["code"], error["line"]) == ("invalid_file", None)
    assert encoding[:6].upper() in error["message"]


def test_limits_come_from_the_settings(nightmill, input_file, tmp_path):
    config = tmp_path / "nightmill.toml"
    config.write_text("[limits]\nlines_per_file = 2\n")
    ran = nightmill("validate", input_file(3), "--config", config, "--json")
    assert [error["code"] for error in ran.json["errors"]] == ["too_many_tasks"]
    config.write_text("[limits]\ninput_file_bytes = 10\n")
    ran = nightmill("validate", input_file(3), "--config", config, "--json")
    assert [error["code"] for error in ran.json["errors"]] == ["file_too_large"]


def test_the_models_of_all_upstreams_may_be_named(nightmill, input_file, tmp_path):
    config = tmp_path / "nightmill.toml"
    upstream = '[[upstreams]]\nname = "{0}"\nurl = "http://{0}/v1"\nmodels = ["{0}"]\n{1}\n'
    config.write_text(upstream.format("a", 'aliases = { "m" = "a" }') + upstream.format("b", ""))
    assert nightmill("validate", input_file(1), "--config", str(config)).code == 0
    config.write_text(upstream.format("a", "") + upstream.format("b", ""))
    ran = nightmill("validate", input_file(1), "--config", str(config))
    assert ran.code == 2
    assert "model_not_found" in ran.out


def test_an_estimate_groups_errors_and_names_foreign_files(nightmill, input_file, tmp_path):
    ran = nightmill("validate", input_file(2, bad=("[]",) * 90), "--estimate")
    assert (ran.code, "2 valid, 90 invalid" in ran.out) == (2, True)
    assert "90 lines: invalid_type (lines 3, 4, 5, 6, 7 and 85 more)\n" in ran.err
    path = tmp_path / "reviews.csv"
    path.write_text("id,review\n1,Nice\n")
    ran = nightmill("validate", path, "--estimate")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "nightmill convert" in ran.err
