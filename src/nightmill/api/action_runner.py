"""Does what bulk actions ordered, in the API process of any server that shares the store.

Each turn does one page of every action that is due, so a long action does not keep a short one waiting. A
process may die anywhere: a page is one transaction, and the action goes on after it in another process. A
retry writes a file first; if the process dies before the file is in the store, the search for orphaned blobs
deletes it, and the retry is made again.
"""

import asyncio
from typing import Final

from nightmill.api.context import ApiContext
from nightmill.api.files import NOTHING_STORED
from nightmill.api.retries import LinesToRetry, check_origins, new_retry
from nightmill.core.bulk_action import BulkAction, BulkActionItem, ItemResult
from nightmill.errors import DamageError, QuotaError, RequestError, TooManyError, UnavailableError
from nightmill.failpoints import failpoint
from nightmill.ids import BatchId, WorkerId
from nightmill.store.bulk_action_pages import NewRetry
from nightmill.telemetry import BatchMoved

PAGE_BATCHES: Final = 50
"""In one transaction; on SQLite nothing else is written meanwhile."""
LEASE_S: Final = 60.0
"""For the retry of one batch. If it takes longer, another server may do it too; one of both is stored."""

_LOOK_S: Final = 1.0
_SWEEP_S: Final = 3_600.0
_KEPT_S: Final = 7 * 86_400.0
_PUT_OFF_S: Final = 60.0


class ActionRunner:
    """The role that does bulk actions.

    Args:
        runner_id: of this process.
    """

    name = "actions"

    def __init__(self, context: ApiContext, *, runner_id: WorkerId) -> None:
        self._context = context
        self._runner_id = runner_id
        self._next_sweep_at = 0.0

    async def turn(self) -> float:
        store = self._context.store
        has_worked = False
        for action_id in await store.bulk_action_pages.due(self._runner_id):
            try:
                has_worked |= await do_page(self._context, action_id) or await self._retry_next(action_id)
            except UnavailableError:
                raise
            except Exception:
                # The other actions go on.
                note = "The server had an error, which its log describes; it tries again."
                await store.bulk_action_pages.put_off(action_id, delay_s=_PUT_OFF_S, note=note)
                raise
        now = asyncio.get_running_loop().time()
        if now >= self._next_sweep_at:
            self._next_sweep_at = now + _SWEEP_S
            while await store.bulk_actions.delete_old(kept_s=_KEPT_S):
                pass
        return 0.0 if has_worked else _LOOK_S

    async def _retry_next(self, action_id: str) -> bool:
        """Whether there was a batch to retry, or the action has ended."""
        pages = self._context.store.bulk_action_pages
        leased = await pages.lease_retry(action_id, self._runner_id, ttl_s=LEASE_S)
        if leased is None:
            return False
        action, item = leased
        if item is None:
            return True
        try:
            await self._retry(action, item)
        except (TooManyError, QuotaError) as error:
            await pages.put_off(action_id, delay_s=_PUT_OFF_S, note=error.message)
        except RequestError as error:
            await pages.finish_retry(action_id, item, None, result=ItemResult.REFUSED, message=error.message)
        except DamageError as error:
            await pages.finish_retry(action_id, item, None, result=ItemResult.REFUSED, message=str(error))
        return True

    async def _retry(self, action: BulkAction, item: BulkActionItem) -> None:
        context = self._context
        pages = context.store.bulk_action_pages
        batch = await context.store.batches.get(None, BatchId(item.batch_id))
        if batch is None:
            await pages.finish_retry(action.id, item, None, result=ItemResult.NOT_FOUND)
            return
        check_origins([batch])
        lines = LinesToRetry(
            outcomes=action.values.get("outcomes"), codes=list(action.values.get("codes") or ())
        )
        new, _ = await new_retry(context, batch.project_id, [batch], lines)
        if new is None:
            message = "None of its lines is to be repeated."
            await pages.finish_retry(action.id, item, None, result=ItemResult.UNCHANGED, message=message)
            return
        await self._store(action, item, new)

    async def _store(self, action: BulkAction, item: BulkActionItem, new: NewRetry) -> None:
        context = self._context
        failpoint("api.before_batch")
        try:
            is_stored = await context.store.bulk_action_pages.finish_retry(
                action.id, item, new, result=ItemResult.CHANGED
            )
        except NOTHING_STORED:
            await context.blobs.delete(new.file.blob_key)
            raise
        failpoint("api.batch_created")
        if not is_stored:
            await context.blobs.delete(new.file.blob_key)
            return
        context.emit(BatchMoved(new.batch))
        context.notify()


async def do_pages(context: ApiContext, action_id: str, *, within_s: float) -> None:
    """Does pages of an action that is due, until it has ended or the time is over."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + within_s
    while await do_page(context, action_id) and loop.time() < ends_at:
        pass


async def do_page(context: ApiContext, action_id: str) -> bool:
    """Whether there was a page to do. Retries have no pages."""
    page = await context.store.bulk_action_pages.turn_page(action_id, most=PAGE_BATCHES)
    if page is None:
        return False
    for moved in page.moved:
        context.emit(BatchMoved(moved))
    if page.changed:
        context.notify()
    return True
