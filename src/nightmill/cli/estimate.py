"""What a batch of a local file would need, for `nightmill validate --estimate`."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from nightmill.cli.checked_input import CheckedInput, error_text
from nightmill.cli.screen import out_fields, out_json, out_table, say
from nightmill.core.estimate import TokenCount, estimates_by_model
from nightmill.roles.estimate import counted_by, document_of
from nightmill.roles.intake import input_rules
from nightmill.settings import Settings
from nightmill.validation import ErrorGroups, InputSurvey, InputValidator

_CHUNK_BYTES = 1 << 20


def estimate_of(
    path: Path, settings: Settings, endpoint: str, *, url: str | None
) -> tuple[dict[str, Any], CheckedInput]:
    """The estimate as JSON values, and the errors of the file.

    Args:
        url: the upstream whose tokenizer is asked; else that of the settings.
    """
    groups = ErrorGroups()
    validator = InputValidator(input_rules(settings.limits, endpoint, models=settings.models), groups)
    survey = InputSurvey()
    with path.open("rb") as stream:
        while not validator.is_over and (chunk := stream.read(_CHUNK_BYTES)):
            survey.take(chunk, validator.take(chunk))
        survey.take(b"\n", validator.finish())
        duplicate_pass = validator.duplicate_pass()
        if duplicate_pass is not None:
            stream.seek(0)
            groups.clear()
            survey = InputSurvey()  # without the lines that repeat a custom_id
            while not duplicate_pass.is_over and (chunk := stream.read(_CHUNK_BYTES)):
                survey.take(chunk, duplicate_pass.take(chunk))
            survey.take(b"\n", duplicate_pass.finish())
    found = survey.finish()
    counted = TokenCount()
    asked = url or settings.upstream.url
    if asked is not None:
        counted = asyncio.run(counted_by(settings.upstream, survey.sample, url=asked))
    served: dict[str | None, bool] = {}
    if settings.models:
        served = {model: model in settings.models for model in found.by_model}
    parts = estimates_by_model(found, counted, prices=settings.token_prices, served=served, lines_per_s={})
    result = validator.result(duplicate_pass)
    document = {"endpoint": endpoint, **document_of(result, found, counted, parts)}
    return document, CheckedInput(result, groups)


def show(document: dict[str, Any], errors: CheckedInput, *, as_json: bool) -> None:
    if as_json:
        out_json(document)
        return
    tokens, cost = document["tokens"], document["cost"]
    most_output = tokens["most_output"]
    out_fields(
        [
            ("endpoint", document["endpoint"]),
            ("lines", f"{document['lines']:,} valid, {document['invalid_lines']:,} invalid"),
            ("input tokens", f"{tokens['input']:,} ({_said(tokens)})"),
            ("output tokens", "no limit is set" if most_output is None else f"at most {most_output:,}"),
            ("equal bodies", f"{document['duplicates']:,}"),
            ("shared beginnings", f"{document['shared_prefix_share']:.0%} of the prompts"),
            ("cost", _cost(cost)),
            (
                "time",
                "unknown: no upstream answers such lines at present"
                if document["expected_s"] is None
                else f"{document['expected_s']:,.0f} s",
            ),
        ]
    )
    if len(document["models"]) > 1:
        headings = ("MODEL", "LINES", "INPUT TOKENS")
        out_table(
            headings,
            ((it["model"] or "", str(it["lines"]), str(it["input_tokens"])) for it in document["models"]),
        )
    for text in error_text(errors, sys.stderr):
        say(text)


def _said(tokens: dict[str, Any]) -> str:
    match tokens["method"]:
        case "exact":
            return "counted by the upstream"
        case "sampled":
            return f"from {tokens['counted_lines']} lines that the upstream counted"
        case _:
            return "estimated: a quarter of the bytes"


def _cost(cost: dict[str, Any]) -> str:
    if cost["input"] is None:
        return "unknown: the settings have no price of the model"
    most = "" if cost["most"] is None else f", at most {cost['most']:.4f} with the output"
    return f"{cost['input']:.4f} for the input{most}"
