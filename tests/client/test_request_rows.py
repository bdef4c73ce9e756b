"""Texts and rows of fields become the bodies that an endpoint takes."""

import pytest

from nightmill.client.request_rows import CHAT, RowFormat, only_model
from nightmill.errors import RequestError


def body(row, **given) -> dict:
    return RowFormat(**given).line(row, 1)["body"]


def sent_text(row, **given) -> str:
    return body(row, **given)["messages"][0]["content"]


def test_a_text_becomes_a_chat_request():
    line = RowFormat(model="m", parameters={"temperature": 0}).line("Hello {you}", 7)
    message = {"role": "user", "content": "Hello {you}"}
    assert line == {
        "custom_id": "request-7",
        "method": "POST",
        "url": CHAT,
        "body": {"messages": [message], "model": "m", "temperature": 0},
    }


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        ("/v1/responses", "input"),
        ("/v1/embeddings", "input"),
        ("/v1/completions", "prompt"),
        ("/v1/moderations", "input"),
        ("/v1/images/generations", "prompt"),
        ("/v1/videos", "prompt"),
    ],
)
def test_a_text_goes_into_the_field_of_its_endpoint(endpoint, field):
    assert body("a cat", endpoint=endpoint) == {field: "a cat"}


def test_an_endpoint_without_a_text_wants_bodies():
    with pytest.raises(RequestError, match="pass bodies"):
        body("a cat", endpoint="/v1/images/edits")


def test_placeholders_are_filled_with_the_fields_of_the_row():
    prompt = "{subject}, {order id}: {text} and {subject} of {count}"
    row = {"subject": "S", "order id": 7, "text": "{subject}", "count": 0}
    assert sent_text(row, prompt=prompt) == "S, 7: {subject} and S of 0"


def test_other_braces_of_a_prompt_stay():
    prompt = 'As JSON {"name": {"first": "x"}}, {{text}}, { }: {text}'
    assert sent_text("T", prompt=prompt) == 'As JSON {"name": {"first": "x"}}, {text}, { }: T'


def test_a_prompt_without_a_placeholder_is_put_before_the_text():
    assert sent_text("T", prompt="Translate to French.") == "Translate to French.\n\nT"
    assert sent_text({"text": "T", "n": 1}, prompt="Translate.") == "Translate.\n\nT"


def test_a_field_that_is_not_there_is_named():
    with pytest.raises(RequestError, match=r"names \{boddy\}, but row 1 has only: subject, body"):
        body({"subject": "s", "body": "b"}, prompt="{subject}: {boddy}")


def test_a_prompt_without_a_placeholder_for_rows_without_a_text_is_refused():
    with pytest.raises(RequestError, match=r"such as \{subject\}"):
        body({"subject": "s"}, prompt="Translate.")


def test_a_field_without_a_value_is_not_sent_as_a_text():
    with pytest.raises(RequestError, match="row 1 has no value for 'text'"):
        body({"text": None}, prompt="{text}")


@pytest.mark.parametrize(("row", "found"), [(None, "has no value"), (1.5, "is of type float")])
def test_what_is_no_row_is_named_by_its_number(row, found):
    for given in ({}, {"prompt": "{text}"}):
        with pytest.raises(RequestError, match=f"row 3 {found}; a row is a text or a mapping"):
            RowFormat(**given).line(row, 3)


def test_a_row_of_fields_may_have_its_own_custom_id():
    made = RowFormat(prompt="{text}").line({"custom_id": 12, "text": "T"}, 1)
    assert made["custom_id"] == "12"


def test_what_a_body_has_is_kept():
    made = body({"messages": [], "model": "own", "temperature": 1}, model="m", parameters={"temperature": 0})
    assert made == {"messages": [], "model": "own", "temperature": 1}


def test_parameters_of_the_endpoint_are_asked_for_once():
    asked: list[str] = []

    def parameters_of(endpoint):
        asked.append(endpoint)
        return {"n": 1, "temperature": 1}

    made = RowFormat(parameters_of=parameters_of, parameters={"temperature": 0})
    bodies = [made.line(text, 1)["body"] for text in ("a", "b")]
    assert [(body["n"], body["temperature"]) for body in bodies] == [(1, 0), (1, 0)]
    assert asked == [CHAT]


def test_only_bodies_that_are_made_here_need_a_model():
    assert RowFormat().needs_model("text")
    assert RowFormat(prompt="{text}").needs_model({"text": "T"})
    assert not RowFormat().needs_model({"messages": []})
    assert not RowFormat(model="m").needs_model("text")
    assert not RowFormat(parameters={"model": "m"}).needs_model("text")


def test_the_model_of_a_server_with_one_is_taken():
    assert only_model(["m"]) == "m"
    with pytest.raises(RequestError, match="pass model=, one of: a, b"):
        only_model(["a", "b"])
    with pytest.raises(RequestError, match="names no model"):
        only_model([])
