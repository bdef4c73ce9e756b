"""The client of a run: uploads, batches and cancels with the official package, while servers die.

Each step is repeated until it is known to have happened. A step whose answer was lost is sent again under the
same idempotency key. The outcome is checked by `watch` and `proof`.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from random import Random
from typing import TypeVar
from uuid import UUID

from openai import (
    APIConnectionError,
    APIStatusError,
    AsyncOpenAI,
    BadRequestError,
    ConflictError,
    InternalServerError,
)

from nightmill.failpoints import FAILPOINTS, Failpoint
from nightmill_torture.plan import UPSTREAMS, Plan, seeded
from nightmill_torture.proof import Expected, Variety
from nightmill_torture.stored import TAG
from nightmill_torture.upstream import SLOW
from nightmill_torture.watch import DIED_CONNECTING, Watch

T = TypeVar("T")

ENDPOINT = "/v1/chat/completions"
_RETRY_S = 0.05
_FEW_LINES = 20
_MODELS = sorted({model for models in UPSTREAMS.values() for model in models})
_SLOW_LINES = 3
_MIX: Mapping[Variety, int] = {
    Variety.PLAIN: 12,
    Variety.PARTS: 3,
    Variety.CANCELLED: 2,
    Variety.EXPIRING: 2,
    Variety.BAD: 1,
}
# What makes the server reach a failpoint soon; all other failpoints are reached with any batch.
_PROVOKED_BY: Mapping[Failpoint, Variety] = {
    "api.before_part": Variety.PARTS,
    "api.part_added": Variety.PARTS,
    "api.before_complete": Variety.PARTS,
    "api.upload_completed": Variety.PARTS,
    "api.before_cancel": Variety.CANCELLED,
    "api.batch_cancelling": Variety.CANCELLED,
    "intake.before_reject": Variety.BAD,
    "intake.rejected": Variety.BAD,
    "worker.before_release": Variety.CANCELLED,
    "worker.released": Variety.CANCELLED,
    "maintenance.before_lapse": Variety.EXPIRING,
    "maintenance.lapsed": Variety.EXPIRING,
}
_TAKES_MANY_LINES = frozenset(name for name in FAILPOINTS if "slice" in name or name.endswith("cut"))
_CANCELS_AN_UPLOAD = frozenset({"api.before_upload_cancel", "api.upload_cancelled"})
_FILE_OF_UPLOAD = re.compile(r"file-\w+")


class Load:
    """Keeps batches open until `end` is called, and makes further batches on demand."""

    def __init__(self, client: AsyncOpenAI, watch: Watch, plan: Plan) -> None:
        self._client = client.with_options(max_retries=0)
        self._watch = watch
        self._plan = plan
        self._random = seeded(plan, "load")
        self._tags = count(1)
        self._is_ending = False
        self._making: set[asyncio.Task[Expected]] = set()
        self.expected: list[Expected] = []
        self.slow_lines: set[str] = set()
        """Markers of the lines that the upstream answers after `SLOW_S`."""

    def end(self) -> None:
        """Makes no new batches; the open batches go on."""
        self._is_ending = True

    async def abandon(self) -> None:
        """Ends the making of batches, which outlives a cancelled run; the client is closed then."""
        for making in self._making:
            making.cancel()
        await asyncio.gather(*self._making, return_exceptions=True)

    async def keep_busy(self) -> None:
        """Returns after `end`, once every batch has ended, including those made by `provoke`."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._plan.batches):
                group.create_task(self._one_after_another(seeded(self._plan, f"load {number}")))
        while self._making:
            await asyncio.wait(self._making)
        for batch in list(self.expected):
            await self._watch.end_of(batch.batch_id)

    async def provoke(self, points: tuple[Failpoint, ...]) -> None:
        """Makes small batches that reach the failpoints, until it is cancelled."""
        while True:
            async with asyncio.TaskGroup() as group:
                for name in points:
                    if name in _CANCELS_AN_UPLOAD:
                        group.create_task(self._cancel_an_upload())
                    else:
                        variety = _PROVOKED_BY.get(name, Variety.PLAIN)
                        lines = self._plan.lines if name in _TAKES_MANY_LINES else _FEW_LINES
                        group.create_task(self._run(variety, lines=lines))

    async def _one_after_another(self, random: Random) -> None:
        while not self._is_ending:
            (variety,) = random.choices(list(_MIX), weights=list(_MIX.values()))
            lines = self._plan.lines if variety in (Variety.PLAIN, Variety.PARTS) else _FEW_LINES
            await self._run(variety, lines=lines)

    async def _run(self, variety: Variety, *, lines: int) -> None:
        # Shielded: a batch that was begun must be recorded as expected, or it counts as made twice.
        making = asyncio.create_task(self._make(variety, lines=lines))
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        batch = await asyncio.shield(making)
        if variety is Variety.CANCELLED:
            await self._cancel(batch.batch_id)
        await self._watch.end_of(batch.batch_id)

    async def _make(self, variety: Variety, *, lines: int) -> Expected:
        number_of_batch = next(self._tags)
        tag, model = f"t{number_of_batch}", _MODELS[number_of_batch % len(_MODELS)]
        has_slow_lines = variety in (Variety.CANCELLED, Variety.EXPIRING)
        bodies: dict[str, bytes] = {}
        rows: list[bytes] = []
        for number in range(lines):
            custom_id = f"{tag}-{number}"
            is_slow = has_slow_lines and number < _SLOW_LINES
            if is_slow:
                self.slow_lines.add(custom_id)
            words = SLOW if is_slow else ""
            message = {"role": "user", "content": f"marker:{custom_id} {words}"}
            body = json.dumps({"model": model, "messages": [message]}).encode()
            bodies[custom_id] = body
            row = b'{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n'
            rows.append(row % (custom_id.encode(), ENDPOINT.encode(), body))
        if variety is Variety.BAD:
            rows.append(rows[0])  # a custom_id twice
        text = b"".join(rows)
        file_id = await (self._upload_in_parts(text) if variety is Variety.PARTS else self._upload(text))
        once = {"Idempotency-Key": self._new_key()}
        made = await until_done(
            lambda: self._client.batches.create(
                input_file_id=file_id,
                endpoint=ENDPOINT,
                completion_window="2s" if variety is Variety.EXPIRING else "24h",  # pyright: ignore[reportArgumentType] - the package knows only 24h
                metadata={TAG: tag},
                extra_headers=once,
            )
        )
        batch = Expected(batch_id=made.id, variety=variety, endpoint=ENDPOINT, bodies=bodies)
        self.expected.append(batch)
        return batch

    async def _upload(self, text: bytes) -> str:
        once = {"Idempotency-Key": self._new_key()}
        made = await until_done(
            lambda: self._client.files.create(
                file=("torture.jsonl", text), purpose="batch", extra_headers=once
            )
        )
        return made.id

    async def _upload_in_parts(self, text: bytes) -> str:
        upload = await self._open_upload(len(text))
        half = len(text) // 2
        part_ids = [
            (await until_done(lambda piece=piece: self._client.uploads.parts.create(upload, data=piece))).id
            for piece in (text[:half], text[half:])
        ]
        try:
            done = await until_done(lambda: self._client.uploads.complete(upload, part_ids=part_ids))
        except BadRequestError as error:
            # The upload was completed before the answer was lost; the error names the file.
            found = _FILE_OF_UPLOAD.search(str(error))
            if found is None:
                raise
            return found[0]
        assert done.file is not None
        return done.file.id

    async def _cancel_an_upload(self) -> None:
        upload = await self._open_upload(10)
        await until_done(lambda: self._client.uploads.cancel(upload))

    async def _open_upload(self, size_bytes: int) -> str:
        made = await until_done(
            lambda: self._client.uploads.create(
                bytes=size_bytes, filename="parts.jsonl", mime_type="application/jsonl", purpose="batch"
            )
        )
        return made.id

    async def _cancel(self, batch_id: str) -> None:
        await asyncio.sleep(self._random.uniform(0.0, 0.4))
        try:
            await until_done(lambda: self._client.batches.cancel(batch_id))
        except ConflictError:
            return  # the batch had ended

    def _new_key(self) -> str:
        return str(UUID(int=self._random.getrandbits(128)))


async def until_done(step: Callable[[], Awaitable[T]]) -> T:
    """Repeats the step while no server answers, and while the answer is to try again later.

    Raises:
        APIStatusError: any other error.
    """
    while True:
        try:
            return await step()
        except (APIConnectionError, InternalServerError, *DIED_CONNECTING):
            await asyncio.sleep(_RETRY_S)
        except APIStatusError as error:
            # An earlier attempt may still be at work on the same upload.
            is_temporary = error.status_code == 429 or "already" in str(error)
            if not is_temporary or error.status_code == 400:
                raise
            await asyncio.sleep(_RETRY_S)
