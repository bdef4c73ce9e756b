"""The corpus of schemas, and questions to the emulator's pure function.

`schemas.json` has schemas as people send them: written after the public specifications of the libraries and
services that they are named for.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema

from nightmill.emulator.answers import answer
from nightmill.emulator.schema_sample import sample

CORPUS: dict[str, Any] = json.loads((Path(__file__).parent / "schemas.json").read_text())
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def assert_satisfied(schema: Any, value: Any) -> None:
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    errors = list(validator(schema, format_checker=validator.FORMAT_CHECKER).iter_errors(value))
    assert not errors, f"{errors[0].message[:300]} in {json.dumps(value)[:300]}"


def made(schema: Any, number: int = 0) -> Any:
    return json.loads(sample(json.dumps(schema).encode(), bytes([number])))


def asked(endpoint: str, body: dict[str, Any]) -> Any:
    found = answer(endpoint, json.dumps({"model": "m", **body}).encode())
    assert found.status == 200, found.body
    return json.loads(found.body)


def hello(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}], **more}
