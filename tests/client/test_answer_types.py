"""Answers as instances of a type, and what is said of those that are not."""

from dataclasses import dataclass
from typing import Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from nightmill.client.answer_types import AnswerType, strict
from nightmill.client.answers import Answer
from nightmill.client.request_rows import CHAT
from nightmill.errors import RequestError
from tests.client.batch_server import chat


class Part(BaseModel):
    name: str
    weight_g: float | None = None


class Ticket(BaseModel):
    kind: Literal["bug", "wish"]
    parts: list[Part] = []
    urgency: int = Field(default=1, ge=0, le=5, alias="level")


def answered(body: object, status: int = 200) -> Answer:
    return Answer(custom_id="a", request={}, status_code=status, body=body, error=None)


def parsed(kind: type, body: object) -> Answer:
    [answer] = AnswerType(kind).parsed([answered(body)])
    return answer


def test_an_answer_becomes_an_instance():
    answer = parsed(Ticket, chat('{"kind": "bug", "parts": [{"name": "wheel"}], "level": 4}'))
    assert answer.is_ok
    assert answer.parsed == Ticket(kind="bug", parts=[Part(name="wheel")], level=4)


def test_the_text_of_a_response_becomes_an_instance():
    text = [{"type": "output_text", "text": '{"kind": '}, {"type": "output_text", "text": '"wish"}'}]
    body = {"output": [{"type": "reasoning"}, {"type": "message", "content": text}]}
    assert parsed(Ticket, body).parsed == Ticket(kind="wish")


@dataclass
class Point:
    x: int


class Place(TypedDict):
    name: str


def test_other_types_of_pydantic_work_too():
    assert parsed(Point, chat('{"x": 3}')).parsed == Point(3)
    assert parsed(Place, chat('{"name": "here"}')).parsed == {"name": "here"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"kind": "secret-word"}', "kind: Input should be 'bug' or 'wish'"),
        ('{"kind": "bug", "level": 9}', "level: Input should be less than or equal to 5"),
        ("secret-word", "Invalid JSON"),
    ],
)
def test_an_answer_that_is_not_of_the_type_is_kept_as_a_failure(text, reason):
    answer = parsed(Ticket, chat(text))
    assert not answer.is_ok
    assert answer.parsed is None
    assert answer.text == text
    assert answer.error["code"] == "invalid_answer"
    assert reason in answer.error_message
    assert "secret-word" not in answer.error_message


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (chat('{"kind": "bug"', finish_reason="length"), "cut off"),
        (chat(None, message={"content": None, "refusal": "No."}), "refused"),
        (chat("{}", finish_reason="content_filter"), "content filter"),
        ({"output": [], "incomplete_details": {"reason": "max_output_tokens"}}, "cut off"),
        ({"output": [{"content": [{"type": "refusal", "refusal": "No."}]}]}, "refused"),
        ({"data": []}, "no text"),
        ("not an object", "no text"),
    ],
)
def test_an_answer_without_a_whole_text_says_why(body, reason):
    answer = parsed(Ticket, body)
    assert not answer.is_ok
    assert answer.error["code"] == "incomplete_answer"
    assert reason in answer.error_message


def test_a_failed_request_stays_as_it_is():
    refused = answered({"error": {"message": "long"}}, status=400)
    assert list(AnswerType(Ticket).parsed([refused])) == [refused]


def test_the_schema_asks_for_every_field_and_no_other():
    parameters = AnswerType(Ticket).parameters(CHAT)
    described = parameters["response_format"]["json_schema"]
    schema = described["schema"]
    assert (described["name"], described["strict"]) == ("Ticket", True)
    assert schema["required"] == ["kind", "parts", "level"]
    part = schema["$defs"]["Part"]
    assert part["required"] == ["name", "weight_g"]
    assert part["additionalProperties"] is False
    assert "default" not in schema["properties"]["level"]
    whole = {"kind": "bug", "parts": [{"name": "a", "weight_g": None}], "level": 1}
    jsonschema.validate(whole, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"kind": "bug"}, schema)


def test_a_response_is_asked_for_in_its_own_form():
    text = AnswerType(Part).parameters("/v1/responses")["text"]["format"]
    assert (text["type"], text["name"], text["strict"]) == ("json_schema", "Part", True)


class Free(BaseModel):
    required: dict[str, int]
    default: str = "x"


def test_a_type_with_free_keys_is_not_strict():
    described = AnswerType(Free).parameters(CHAT)["response_format"]["json_schema"]
    assert described["strict"] is False
    jsonschema.validate({"required": {"a": 1}, "default": "y"}, described["schema"])
    assert described["schema"]["required"] == ["required", "default"]


def test_a_schema_without_objects_is_unchanged():
    schema = {"anyOf": [{"type": "string", "enum": ["required"]}, {"type": "null"}]}
    assert strict(schema) == schema


def test_an_endpoint_without_json_is_refused():
    with pytest.raises(RequestError, match="no typed answers"):
        AnswerType(Part).parameters("/v1/embeddings")


def test_the_name_of_a_type_is_one_that_servers_take():
    class Box(BaseModel):
        value: int

    Box.__name__ = "Box[int]" * 20
    name = AnswerType(Box).parameters(CHAT)["response_format"]["json_schema"]["name"]
    assert name.startswith("Box_int_Box")
    assert len(name) == 64
