"""What tokens cost. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass

from nightmill.core.batch import Usage

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a million tokens of one model cost, for example 0.15 of input and 0.60 of output.

    Args:
        cached_input: of input tokens that the upstream had in its cache; None for the price of `input`.
    """

    input: float = 0.0
    output: float = 0.0
    cached_input: float | None = None

    def cost(self, usage: Usage) -> float:
        """What so many tokens cost."""
        cached_price = self.input if self.cached_input is None else self.cached_input
        plain_tokens = usage.input_tokens - usage.cached_tokens
        total = plain_tokens * self.input + usage.cached_tokens * cached_price
        return (total + usage.output_tokens * self.output) / _MILLION


def price_of(prices: Mapping[str, Price], model: str | None) -> Price | None:
    """The price of a model, or that of `*`; None if neither is known. A batch of several models has the
    price of `*`.
    """
    return prices.get(model or "*", prices.get("*"))
