"""What a person types to follow a batch, fetch its answers and make it again, in three languages. Pure."""

import json
import shlex
from collections.abc import Mapping
from typing import Any, Final, cast

_DEFAULT_WINDOW: Final = "24h"
_OPTIONS: Final = {
    "on_invalid": "--on-invalid",
    "canary": "--canary",
    "max_failures": "--max-failures",
    "max_output_tokens": "--max-output-tokens",
    "max_cost": "--max-cost",
}
_DEFAULTS: Final = {"on_invalid": "fail", "canary": 0, "canary_max_failed": 0.1, "record_attempts": False}


def code_of(base_url: str, batch: Mapping[str, Any], own: Mapping[str, Any]) -> list[dict[str, str]]:
    """The three texts.

    Args:
        base_url: of the API for clients, such as `http://localhost:8080/v1`.
        batch: the published object of the API.
        own: the batch's own document.
    """
    options = chosen_options(own)
    return [
        {"name": "Python", "text": _python(base_url, batch, options)},
        {"name": "curl", "text": _curl(base_url, batch, options)},
        {"name": "nightmill", "text": _nightmill(base_url, batch, options)},
    ]


def chosen_options(own: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a batch that are not the default, and its priority."""
    options = {name: value for name, value in own["options"].items() if value != _DEFAULTS.get(name)}
    return {**options, **({"priority": own["priority"]} if own["priority"] else {})}


def _python(base_url: str, batch: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    extra = f'    extra_body={{"nightmill": {_literal(options)}}},\n' if options else ""
    metadata = f"    metadata={_literal(batch['metadata'])},\n" if batch["metadata"] else ""
    return f"""from openai import OpenAI

client = OpenAI(base_url={_literal(base_url)}, api_key="...")

batch = client.batches.retrieve({_literal(batch["id"])})
print(batch.status, batch.request_counts)
if batch.output_file_id:
    client.files.content(batch.output_file_id).write_to_file("answers.jsonl")

# the same batch again
again = client.batches.create(
    input_file_id={_literal(batch["input_file_id"])},
    endpoint={_literal(batch["endpoint"])},
    completion_window={_literal(batch["completion_window"])},
{metadata}{extra})"""


def _literal(value: Any) -> str:
    """A text, a number, a truth value or a mapping of these as Python."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value).items()
        return "{" + ", ".join(f"{_literal(name)}: {_literal(inner)}" for name, inner in pairs) + "}"
    return repr(value)


def _curl(base_url: str, batch: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    body = {
        "input_file_id": batch["input_file_id"],
        "endpoint": batch["endpoint"],
        "completion_window": batch["completion_window"],
        **({"metadata": batch["metadata"]} if batch["metadata"] else {}),
        **({"nightmill": options} if options else {}),
    }
    file_id = batch["output_file_id"] or "OUTPUT_FILE_ID"
    return f"""export OPENAI_BASE_URL={shlex.quote(base_url)} OPENAI_API_KEY=...

curl -s "$OPENAI_BASE_URL/batches/{batch["id"]}" -H "Authorization: Bearer $OPENAI_API_KEY"
curl -s "$OPENAI_BASE_URL/files/{file_id}/content" -H "Authorization: Bearer $OPENAI_API_KEY" -o answers.jsonl

# the same batch again
curl -s "$OPENAI_BASE_URL/batches" -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}"""


def _nightmill(base_url: str, batch: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    metadata = cast("Mapping[str, str]", batch["metadata"] or {})
    flags = [f"--metadata {shlex.quote(f'{name}={value}')}" for name, value in metadata.items()]
    flags += [f"{flag} {options[name]}" for name, flag in _OPTIONS.items() if name in options]
    if "priority" in options:
        flags.append(f"--priority {options['priority']}")
    if "record_attempts" in options:
        flags.append("--record-attempts")
    if batch["completion_window"] != _DEFAULT_WINDOW:
        flags.append(f"--window {batch['completion_window']}")
    again = " ".join(["nightmill submit lines.jsonl", *flags])
    return f"""export OPENAI_BASE_URL={shlex.quote(base_url)} OPENAI_API_KEY=...

nightmill watch {batch["id"]}
nightmill results {batch["id"]} -o answers.jsonl -e errors.jsonl
nightmill retry {batch["id"]}

# the same batch again
nightmill files download {batch["input_file_id"]} -o lines.jsonl
{again}"""
