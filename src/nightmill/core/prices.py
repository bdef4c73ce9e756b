"""What tokens cost, and when a batch has spent its budget. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass

from nightmill.core.batch import Batch, Usage
from nightmill.core.batch_options import StopReason

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


def spent_budget(batch: Batch, *, cost: float | None) -> StopReason | None:
    """Why the batch has to be stopped; None while it is within its budgets.

    Args:
        cost: of the answers so far; None if it is not known, then it limits nothing.
    """
    options, tally = batch.options, batch.tally
    if options.max_failures is not None:
        limit = options.max_failures
        most = limit if limit >= 1 else limit * batch.total
        if tally.failed > most:
            allowed = f"{limit:g}" if limit >= 1 else f"{limit:.6g} of {batch.total}"
            message = f"{tally.failed} lines have failed, and the batch allows {allowed}."
            return StopReason("max_failures", message)
    if options.max_output_tokens is not None and tally.usage.output_tokens > options.max_output_tokens:
        message = (
            f"The answers have {tally.usage.output_tokens} output tokens, and the batch allows "
            f"{options.max_output_tokens}."
        )
        return StopReason("max_output_tokens", message)
    if options.max_cost is not None and cost is not None and cost > options.max_cost:
        message = f"The answers cost {cost:.6g}, and the batch allows {options.max_cost:g}."
        return StopReason("max_cost", message)
    return None
