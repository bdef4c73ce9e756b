"""Any request gets an envelope or a success, never a 5xx."""

import json
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

texts = st.text(max_size=20) | st.sampled_from(
    ["file-x", "/v1/embeddings", "24h", "created_at", "\0", "\u2028"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
creates = st.fixed_dictionaries(
    {},
    optional={
        "input_file_id": values | st.just("file-x"),
        "endpoint": values | st.just("/v1/embeddings"),
        "completion_window": values | st.just("24h"),
        "metadata": values | st.dictionaries(texts, texts, max_size=18),
        "output_expires_after": values | st.fixed_dictionaries({"anchor": scalars, "seconds": scalars}),
        "extra": values,
    },
)
often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def is_fine(answer, *statuses):
    assert answer.status in statuses
    if answer.status != 200:
        assert answer.error["type"] == "invalid_request_error"


@often
@given(document=creates)
def test_any_create_succeeds_or_is_refused_with_an_envelope(server, key, document):
    answer = server.send_json("/v1/batches", document, key=key)
    is_fine(answer, 200, 400)
    if answer.status == 200:
        batch = server.send("GET", f"/v1/batches/{answer.json()['id']}", key=key).json()
        assert batch == answer.json()
        assert batch["metadata"] == document.get("metadata")


@often
@given(body=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: json.dumps(text).encode()))
def test_any_bytes_are_refused(server, key, body):
    is_fine(server.send("POST", "/v1/batches", body, key=key), 400)


@often
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    steps=st.lists(st.text(max_size=12) | st.sampled_from(["batches", "batch_1", "cancel", ""]), max_size=4),
    query=st.dictionaries(st.sampled_from(["limit", "after", "x"]), st.text(max_size=12), max_size=3),
)
def test_any_path_and_query_gets_a_response_below_500(server, key, method, steps, query):
    path = "/".join(quote(step, safe="") for step in ["", "v1", *steps])
    asked = "&".join(f"{name}={quote(value)}" for name, value in query.items())
    is_fine(server.send(method, f"{path}?{asked}", key=key), 200, 400, 404, 405)


@often
@given(value=st.binary(max_size=40))
def test_any_authorization_is_refused(server, value):
    header = "".join(chr(byte) for byte in value if byte >= 32 and byte != 127).strip()
    answer = server.send("GET", "/v1/batches", headers={"Authorization": header})
    is_fine(answer, 401)
