"""The dry run of an input file, as far as the API and the command line share it."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from nightmill.core.estimate import FileSurvey, ModelEstimate, TokenCount, total
from nightmill.errors import SetupError
from nightmill.settings import UpstreamSettings
from nightmill.upstream.tokenize import count_tokens
from nightmill.validation import ValidationResult, prompt_bytes

_TOKENIZE_S: Final = 20.0
_LISTED: Final = 20


def document_of(
    result: ValidationResult, found: FileSurvey, counted: TokenCount, parts: Sequence[ModelEstimate]
) -> dict[str, Any]:
    """The estimate as JSON values, also for `nightmill validate --estimate`."""
    expected_s = total([part.expected_s for part in parts])
    return {
        "valid": not result.errors,
        "lines": result.total,
        "invalid_lines": result.invalid,
        "errors": [asdict(error) for error in result.errors[:_LISTED]],
        "tokens": {
            "input": sum(part.input_tokens for part in parts),
            "method": counted.method(found),
            "counted_lines": counted.lines,
            "most_output": total([part.most_output_tokens for part in parts]),
        },
        "duplicates": found.duplicates,
        "shared_prefix_share": round(found.shared_prefix_share, 4),
        "cost": {
            "input": total([part.input_cost for part in parts]),
            "most": total([part.most_cost for part in parts]),
        },
        "expected_s": expected_s,
        "expected_from": None if expected_s is None else "the present rate of the upstreams",
        "models": [asdict(part) for part in parts],
    }


async def counted_by(settings: UpstreamSettings, sample: list[bytes], *, url: str) -> TokenCount:
    """What an upstream counts in the sample; nothing if it can't within some seconds."""
    if not sample or url == "auto":
        return TokenCount()
    try:
        async with asyncio.timeout(_TOKENIZE_S):
            counts = await count_tokens(settings, sample, url=url)
    except (TimeoutError, SetupError):
        return TokenCount()
    if counts is None:
        return TokenCount()
    return TokenCount(len(counts), sum(counts), sum(map(prompt_bytes, sample)))
