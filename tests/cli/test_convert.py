"""`nightmill convert` makes request lines of tables, arrays, bodies and text."""

import bz2
import gzip
import json
import lzma

import pytest

BODY = {"model": "m", "messages": [{"role": "user", "content": "Grüße"}]}


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prompts(path) -> list[str]:
    return [line["body"]["messages"][-1]["content"] for line in lines_of(path)]


@pytest.fixture
def written(tmp_path):
    """Writes a file of this name."""

    def write(name: str, text: str | bytes, encoding: str = "utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


def test_a_table_becomes_prompts(nightmill, written, tmp_path):
    path = written("reviews.csv", 'id, review\nr1,"Nice, \nshoes"\nr2,Torn\n')
    ran = nightmill("convert", path, "--model", "m", "--prompt", "Good or bad? {review}", "--id", "id")
    target = tmp_path / "reviews.jsonl"
    assert (ran.code, ran.out) == (0, f"{target}\n")
    assert (
        f"2 request lines for /v1/chat/completions; check them with: nightmill validate {target}" in ran.err
    )
    assert lines_of(target)[0] == {
        "custom_id": "r1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "messages": [{"role": "user", "content": "Good or bad? Nice, \nshoes"}],
            "model": "m",
        },
    }
    assert prompts(target)[1] == "Good or bad? Torn"
    assert nightmill("validate", target).code == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("array.json", json.dumps([BODY, BODY])),
        ("pretty.json", json.dumps([BODY, BODY], indent=2)),
        ("objects.json", json.dumps(BODY, indent=1) + "\n" + json.dumps(BODY, indent=1)),
        ("bodies.jsonl", json.dumps(BODY) + "\n\n" + json.dumps(BODY) + "\n"),
        ("bodies.jsonl.gz", gzip.compress((json.dumps(BODY) + "\n").encode() * 2, mtime=0)),
        ("bodies.jsonl.bz2", bz2.compress(json.dumps([BODY, BODY]).encode())),
        ("bodies.jsonl.xz", lzma.compress(json.dumps([BODY, BODY]).encode())),
        *(
            (f"{name}.json", json.dumps([BODY, BODY], ensure_ascii=False).encode(name))
            for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
        ),
    ],
)
def test_bodies_of_any_form_become_request_lines(nightmill, written, tmp_path, name, text):
    target = tmp_path / "out.jsonl"
    ran = nightmill("convert", written(name, text), "-o", target)
    assert (ran.code, ran.out) == (0, f"{target}\n")
    assert [line["custom_id"] for line in lines_of(target)] == ["request-1", "request-2"]
    assert [line["body"] for line in lines_of(target)] == [BODY, BODY]
    assert nightmill("validate", target).code == 0


def test_compressed_request_lines_are_unpacked(nightmill, input_file, tmp_path):
    path = input_file(2, name="day.jsonl")
    packed = tmp_path / "night.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert nightmill("convert", packed).out == f"{tmp_path / 'night.jsonl'}\n"
    assert lines_of(tmp_path / "night.jsonl") == lines_of(path)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/responses", {"input": "Say: Why?"}),
        ("/v1/completions", {"prompt": "Say: Why?"}),
        ("/v1/embeddings", {"input": "Say: Why?"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Say: Why?"}]}),
    ],
)
def test_text_becomes_a_prompt_per_line(nightmill, written, tmp_path, endpoint, body):
    path = written("questions.txt", "Why?\n\nHow?\n")
    words = ["--model", "m", "--prompt", "Say: {text}", "--endpoint", endpoint]
    assert nightmill("convert", path, *words).code == 0
    first, second = lines_of(tmp_path / "questions.jsonl")
    assert (first["url"], second["custom_id"]) == (endpoint, "request-2")
    assert first["body"] == {**body, "model": "m"}


def test_bodies_take_their_custom_id_from_a_column(nightmill, written, tmp_path):
    path = written("in.json", json.dumps([BODY | {"key": 7}]))
    ran = nightmill("convert", path, "--id", "key", "-o", "-")
    assert json.loads(ran.out) == {
        "custom_id": "7",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": BODY,
    }


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("id,review\n1,x\n", [], "make prompts of its columns with --prompt, from {id}, {review}"),
        ("id,review\n1,x\n", ["--model", "m", "--prompt", "{text}"], "row 1 has only: id, review"),
        ("id,review\n1,x\n", ["--prompt", "{review}"], "row 1 names no model; name one with --model"),
        ("id,review\n1,x\n", ["--prompt", "x", "--model", "m", "--id", "key"], "no column 'key'"),
        ("id,review\n", ["--prompt", "{review}"], "there are no rows to send"),
        ('{"model": "m", "input": "x"}', [], "row 1 does not show its endpoint; name it with --endpoint"),
        ('[{"model": "m"},', [], "the JSON is wrong or ends early behind 0 elements"),
        ("[1]", [], "element 1 is neither an object nor a text"),
        ('{"messages": [], "model": "m"}\nx\n', [], "line 2 is not JSON"),
        ("", [], "is empty; write one request per line"),
        (b"PAR1x", [], "is a Parquet file"),
        (b"ab\xb7" * 40 + b"\x01", [], "is binary data, not UTF-8 text (byte 0xb7 at offset 2, in line 1)"),
        (gzip.compress(b'{"model": "m"}', mtime=0)[:-9], [], "is damaged and can't be unpacked"),
        (b'{"messages": [], "model": "\xff"}', [], "has bytes that are not UTF-8"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_written(nightmill, written, tmp_path, text, words, message):
    ran = nightmill("convert", written("in.csv", text), *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert message in ran.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.csv"]


def test_an_existing_file_is_not_replaced(nightmill, written, input_file, tmp_path):
    kept = input_file(2).read_text()
    ran = nightmill("convert", written("in.json", json.dumps([BODY])))
    assert (ran.code, ran.out) == (2, "")
    assert "in.jsonl exists; name another file with --output" in ran.err
    assert (tmp_path / "in.jsonl").read_text() == kept


def test_request_lines_get_a_name_of_their_own(nightmill, input_file, tmp_path):
    assert nightmill("convert", input_file(1)).out == f"{tmp_path / 'in_requests.jsonl'}\n"
