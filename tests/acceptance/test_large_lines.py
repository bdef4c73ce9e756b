"""Lines of 20 MB with pictures, an answer of 70 MB with embeddings, and the longest answer that is read."""

import json
from hashlib import sha256

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


def large_lines(count: int, size_bytes: int) -> list[bytes]:
    """Bodies with a picture of so many bytes."""
    rest = b'"}}]}]}'
    start = b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%d'
    return [start % number + b"A" * size_bytes + rest for number in range(count)]


def file_of(bodies: list[bytes], *, url: str = CHAT) -> bytes:
    line = b'{"custom_id":"line-%d","method":"POST","url":"%b","body":%b}\n'
    return b"".join(line % (number, url.encode(), body) for number, body in enumerate(bodies))


def test_lines_of_20_mb_are_sent_whole(stubbed):
    server, upstream = stubbed
    bodies = large_lines(3, 20_000_000)
    batch = server.run(file_of(bodies))
    assert batch.status == "completed", batch
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 3, "failed": 0}
    assert sorted(body for _, _, body in upstream.requests if body) == bodies
    assert [row["custom_id"] for row in server.rows(batch.output_file_id)] == ["line-0", "line-1", "line-2"]


def test_an_answer_of_70_mb_can_be_downloaded(stubbed):
    server, upstream = stubbed
    upstream.answer = b'{"object":"list","data":[{"embedding":[%b1]}]}' % (b"0.12345," * (70_000_000 // 8))
    batch = server.run(file_of([b'{"model":"m","input":"a"}'], url=EMBEDDINGS), endpoint=EMBEDDINGS)
    assert batch.status == "completed", batch
    assert batch.request_counts.to_dict() == {"total": 1, "completed": 1, "failed": 0}
    assert len(upstream.requests) == 1
    content = server.client().files.content(batch.output_file_id).content
    start, body = content.split(b'"body": ', 1)
    assert b'"custom_id": "line-0"' in start
    assert sha256(body.removesuffix(b'}, "error": null}\n')).digest() == sha256(upstream.answer).digest()


def test_an_answer_over_the_limit_is_paid_once_and_its_line_is_in_the_error_file(serve, stub):
    upstream = stub()
    upstream.answer = json.dumps({"choices": ["x" * 1_000_000]}).encode()
    server = serve(
        *("--upstream", upstream.url), environment={"NIGHTMILL_UPSTREAM__MAX_ANSWER_BYTES": "1000000"}
    )
    batch = server.run(file_of(large_lines(3, 10)))
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.request_counts.to_dict() == {"total": 3, "completed": 0, "failed": 3}
    assert len(upstream.requests) == 3
    for row in server.rows(batch.error_file_id):
        assert (row["response"], row["error"]["code"]) == (None, "answer_too_long")
        assert "upstream.max_answer_bytes" in row["error"]["message"]
