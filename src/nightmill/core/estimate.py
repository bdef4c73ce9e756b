"""What a batch would need, before it is created: tokens, time and cost of an input file. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from nightmill.core.prices import Price

BYTES_PER_TOKEN = 4
"""Of a prompt, where no tokenizer was asked."""
_MILLION = 1_000_000


class TokenMethod(StrEnum):
    """Where a number of input tokens comes from."""

    EXACT = "exact"
    """The upstream counted every line."""
    SAMPLED = "sampled"
    """The upstream counted some lines, and the others are in proportion to their bytes."""
    ESTIMATED = "estimated"
    """A quarter of the bytes of the prompts."""


@dataclass(slots=True)
class ModelLines:
    """The lines of one model.

    Args:
        prompt_bytes: of the members of the bodies that a model reads.
        most_output_tokens: the sum of the limits that the lines set.
        unlimited: lines that set no limit.
    """

    lines: int = 0
    prompt_bytes: int = 0
    most_output_tokens: int = 0
    unlimited: int = 0


@dataclass(slots=True)
class FileSurvey:
    """What one read of an input file has found.

    Args:
        lines: valid lines.
        duplicates: lines whose body an earlier line has.
        shared_bytes: bytes at the beginning of prompts that an earlier prompt begins with too.
        by_model: by the model that the lines name; None for none.
    """

    lines: int = 0
    duplicates: int = 0
    prompt_bytes: int = 0
    shared_bytes: int = 0
    by_model: dict[str | None, ModelLines] = field(default_factory=dict)

    @property
    def shared_prefix_share(self) -> float:
        return self.shared_bytes / self.prompt_bytes if self.prompt_bytes else 0.0


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How many tokens a sample of prompts has.

    Args:
        lines: of the sample; 0 where no upstream counted.
        prompt_bytes: of the sample.
    """

    lines: int = 0
    tokens: int = 0
    prompt_bytes: int = 0

    def method(self, survey: FileSurvey) -> TokenMethod:
        if not self.lines or not self.prompt_bytes:
            return TokenMethod.ESTIMATED
        return TokenMethod.EXACT if self.lines == survey.lines else TokenMethod.SAMPLED

    def of(self, prompt_bytes: int) -> int:
        """The tokens of prompts with so many bytes."""
        if not self.lines or not self.prompt_bytes:
            return -(-prompt_bytes // BYTES_PER_TOKEN)
        return round(prompt_bytes * self.tokens / self.prompt_bytes)


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """The part of an estimate that concerns one model.

    Args:
        is_served: whether an upstream serves it; None if that is not known.
        most_output_tokens: None if a line sets no limit.
        most_cost: with as many output tokens as the lines allow; None if no price or no limit is known.
        expected_s: at the rate at which its lines are answered at present; None if none are.
    """

    model: str | None
    lines: int
    input_tokens: int
    most_output_tokens: int | None
    is_served: bool | None
    input_cost: float | None
    most_cost: float | None
    expected_s: float | None


def estimates_by_model(
    survey: FileSurvey,
    counted: TokenCount,
    *,
    prices: Mapping[str, Price],
    served: Mapping[str | None, bool],
    lines_per_s: Mapping[str | None, float],
) -> Sequence[ModelEstimate]:
    """One estimate for each model of the file, the one with the most lines first."""
    return [
        _estimate(model, lines, counted, prices, served.get(model), lines_per_s.get(model, 0.0))
        for model, lines in sorted(survey.by_model.items(), key=lambda it: (-it[1].lines, it[0] or ""))
    ]


def _estimate(
    model: str | None,
    of: ModelLines,
    counted: TokenCount,
    prices: Mapping[str, Price],
    is_served: bool | None,
    lines_per_s: float,
) -> ModelEstimate:
    tokens = counted.of(of.prompt_bytes)
    most_output = None if of.unlimited else of.most_output_tokens
    price = prices.get(model or "*", prices.get("*"))
    input_cost = None if price is None else tokens * price.input / _MILLION
    most_cost = None
    if price is not None and input_cost is not None and most_output is not None:
        most_cost = input_cost + most_output * price.output / _MILLION
    expected_s = of.lines / lines_per_s if lines_per_s > 0 else None
    return ModelEstimate(model, of.lines, tokens, most_output, is_served, input_cost, most_cost, expected_s)


def total(parts: Sequence[float | None]) -> float | None:
    """The sum; None if a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None
