"""A line is found by its custom_id in the newest batches, however many requests that takes."""

import json
from urllib.parse import urlencode

import pytest

from nightmill.api import custom_id_search
from tests.api.conftest import LINE
from tests.api.test_batches import create


def line(custom_id: str, prompt: str = "Hi", **form) -> str:
    request = json.loads(LINE) | {"custom_id": custom_id}
    request["body"]["messages"][0]["content"] = prompt
    return json.dumps(request, **form) + "\n"


def batch_of(client, *lines: str) -> str:
    content = "".join(lines).encode()
    return create(client, client.files.create(file=content, purpose="batch").id).id


def search(server, key, custom_id, *, expected=200, **query):
    answer = server.send(
        "GET", f"/nightmill/v1/batches/search?{urlencode({'custom_id': custom_id, **query})}", key=key
    )
    assert answer.status == expected, answer.body
    return answer.json()


def found(answer) -> list[tuple[str, int]]:
    return [(hit["batch"]["id"], hit["line"]) for hit in answer["data"]]


def test_every_batch_with_the_line_is_found_newest_first(server, client, key):
    first = batch_of(client, line("other"), "\n", line("night-7"))
    batch_of(client, line("night-77", prompt='"night-7"'))
    last = batch_of(client, line("night-7"))
    answer = search(server, key, "night-7")
    assert found(answer) == [(last, 1), (first, 3)]
    assert (answer["searched"], answer["unreadable"], answer["has_more"]) == (3, 0, False)
    assert answer["next_after"] is None
    assert answer["data"][0]["batch"]["object"] == "nightmill.batch"


@pytest.mark.parametrize("custom_id", ['a "b" \\', "zürich-1", "日本", "<script>", "a\nb"])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_a_custom_id_is_found_however_it_is_escaped(server, client, key, custom_id, is_ascii):
    one = batch_of(client, line("x"), line(custom_id, ensure_ascii=is_ascii).rstrip("\n"))
    assert found(search(server, key, custom_id)) == [(one, 2)]
    assert found(search(server, key, custom_id[:-1] or "y")) == []


def test_a_search_goes_on_where_the_time_was_up_also_within_a_file(server, client, key, monkeypatch):
    monkeypatch.setattr(custom_id_search, "_CHUNK_BYTES", 300)
    old = batch_of(client, *(line(f"n-{number}") for number in range(9)))
    batch_of(client, *(line(f"m-{number}") for number in range(9)))
    hits, cursor, requests = [], None, 0
    while requests == 0 or cursor is not None:
        answer = search(server, key, "n-7", within_s=1e-6, **({} if cursor is None else {"after": cursor}))
        assert answer["has_more"] == (answer["next_after"] is not None)
        hits += found(answer)
        cursor, requests = answer["next_after"], requests + 1
    assert hits == [(old, 8)]
    assert requests > 9


def test_a_page_of_hits_goes_on_behind_its_last_batch(server, client, key):
    made = [batch_of(client, line("same")) for _ in range(3)]
    answer = search(server, key, "same", limit=2)
    assert (found(answer), answer["has_more"]) == ([(made[2], 1), (made[1], 1)], True)
    rest = search(server, key, "same", limit=2, after=answer["next_after"])
    assert (found(rest), rest["has_more"]) == ([(made[0], 1)], False)


def test_only_batches_of_the_filter_and_of_the_project_are_searched(server, client, key):
    one = batch_of(client, line("mine"))
    assert search(server, key, "mine", status="completed")["searched"] == 0
    assert found(search(server, server.new_key("proj_else"), "mine")) == []
    assert found(search(server, key, "mine", q=one)) == [(one, 1)]
    assert search(server, key, "mine", after="batch_none", expected=404)
    assert search(server, key, "mine", after="batch_none@0:0", expected=404)
    assert search(server, key, "", expected=400)["error"]["param"] == "custom_id"


def test_a_batch_without_its_input_is_counted(server, client, key):
    one = batch_of(client, line("gone"))
    server.do(server.context.blobs.delete(input_blob(server, one)))
    answer = search(server, key, "gone")
    assert (answer["data"], answer["searched"], answer["unreadable"]) == ([], 1, 1)


def input_blob(server, batch_id: str) -> str:
    stored = server.do(server.context.store.batches.get(None, batch_id))
    assert stored is not None
    return stored.input_blob_key
