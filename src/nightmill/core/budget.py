"""Budgets of a batch: when failures, output tokens or cost are more than its options allow. No I/O."""

from nightmill.core.batch import Batch
from nightmill.core.batch_options import StopReason


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
