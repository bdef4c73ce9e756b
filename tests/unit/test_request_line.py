"""What a request line says of its model and its endpoint."""

import pytest

from nightmill.core.request_line import RequestLine, endpoint_in


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "gpt-4o-mini", "messages": []}', "gpt-4o-mini"),
        (b'{"messages": [{"model": "inner"}], "model" : "outer"}', "outer"),
        (b'{"model": "caf\\u00e9"}', "caf\u00e9"),
        (b'{"messages": []}', None),
        (b'{"model": null}', None),
        (b'{"model": 7}', None),
    ],
)
def test_a_request_line_knows_its_model(body: bytes, model: str | None):
    assert RequestLine(b'"a"', body).model == model


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        (b'\xef\xbb\xbf{"url": "/v1/embeddings"}', "/v1/embeddings"),
        (b'{"url": 5}', None),
        (b"{}", None),
        (b"[]", None),
        (b"no JSON", None),
        (b"\xff", None),
    ],
)
def test_a_line_that_need_not_be_valid_names_its_endpoint(line: bytes, endpoint: str | None):
    assert endpoint_in(line) == endpoint
