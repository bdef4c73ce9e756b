import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from nightmill.core.batch import Status
from nightmill.core.clocks import Clocks
from nightmill.core.outcome import Answered, Broken, Outcome, TimedOut, Unreachable
from nightmill.core.request_line import RequestLine
from nightmill.ids import WorkerId
from nightmill.telemetry import UpstreamHeld, UpstreamResumed
from tests.roles.conftest import FunctionUpstream, Mill, answer, request_line, request_lines
from tests.store_doubles import with_verb


def content(body: bytes) -> str:
    return str(json.loads(body)["messages"][0]["content"])


def always(outcome: Outcome) -> Callable[[str, bytes], Awaitable[Outcome]]:
    async def send(_endpoint: str, _body: bytes) -> Outcome:
        await asyncio.sleep(0)
        return outcome

    return send


async def test_every_line_is_answered_and_the_output_keeps_the_order_of_the_input(mill: Mill):
    async def send(_endpoint: str, body: bytes) -> Outcome:
        number = int(content(body).removeprefix("line-"))
        await asyncio.sleep(0.001 * (number % 7))
        return answer(str(number), prompt_tokens=2, completion_tokens=3, total_tokens=5)

    batch = await mill.accepted(request_lines(23))
    [batch] = await mill.run_to_the_end(mill.worker(send), batch)
    assert batch.status is Status.COMPLETED
    assert (batch.total, batch.tally.completed, batch.tally.failed) == (23, 23, 0)
    assert batch.tally.usage.total_tokens == 23 * 5
    rows = await mill.rows(batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(23)]
    assert [row["response"]["body"]["choices"][0]["message"]["content"] for row in rows] == [
        str(number) for number in range(23)
    ]
    assert len({row["id"] for row in rows}) == 23
    assert batch.error_file_id is None


async def test_a_line_the_upstream_refuses_is_settled_at_once_in_the_error_file(mill: Mill):
    refusal = b'{"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": null}}'
    sent = Counter[str]()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent[content(body)] += 1
        return Answered(400, refusal) if content(body) == "line-1" else answer()

    batch = await mill.accepted(request_lines(3))
    [batch] = await mill.run_to_the_end(mill.worker(send), batch)
    [row] = await mill.rows(batch.error_file_id)
    assert (row["custom_id"], row["error"]) == ("line-1", None)
    assert row["response"]["status_code"] == 400
    assert row["response"]["body"] == json.loads(refusal)
    assert len(await mill.rows(batch.output_file_id)) == 2
    assert sent == {"line-0": 1, "line-1": 1, "line-2": 1}


async def test_a_batch_whose_every_line_failed_is_completed_without_an_output_file(mill: Mill):
    batch = await mill.accepted(request_lines(2))
    [batch] = await mill.run_to_the_end(mill.worker(always(Answered(404, b"{}"))), batch)
    assert batch.status is Status.COMPLETED
    assert batch.output_file_id is None
    assert (batch.tally.completed, batch.tally.failed) == (0, 2)


async def test_what_is_worth_retrying_is_sent_again_until_it_is_answered(mill: Mill):
    troubles: dict[str, list[Outcome]] = {
        "line-0": [Answered(500, b"{}"), Answered(503, b"{}")],
        "line-1": [Broken("reset"), TimedOut(1.0)],
        "line-2": [Answered(429, b"{}", None, 0.0)] * 3,
        "line-3": [Unreachable("refused")],
        "line-4": [Answered(200, b"<html>")],
    }

    async def send(_endpoint: str, body: bytes) -> Outcome:
        await asyncio.sleep(0)
        left = troubles.get(content(body))
        return left.pop() if left else answer()

    batch = await mill.accepted(request_lines(6))
    [batch] = await mill.run_to_the_end(mill.worker(send), batch)
    assert (batch.tally.completed, batch.tally.failed) == (6, 0)
    assert not any(troubles.values())


async def test_attempts_are_counted_by_their_outcome(mill: Mill):
    failures = [Answered(503, b"{}"), Answered(500, b"{}")]

    async def send(_endpoint: str, _body: bytes) -> Outcome:
        await asyncio.sleep(0)
        return failures.pop() if failures else answer(prompt_tokens=2, completion_tokens=3, total_tokens=5)

    worker = mill.worker(send)
    await mill.run_to_the_end(worker, await mill.accepted(request_lines(4)))
    (upstream,) = worker._dispatcher.upstreams
    counts = upstream.runtime.counts
    assert counts.attempts == {"answered": 4, "load": 1, "fault": 1}
    assert sum(counts.duration.buckets) == 6
    assert (counts.input_tokens, counts.output_tokens) == (8, 12)
    assert counts.retries == 2
    assert counts.retry_wait_s > 0


async def test_a_poison_line_is_settled_with_a_clear_error_after_bounded_attempts(mill: Mill):
    sent = Counter[str]()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent[content(body)] += 1
        if content(body) == "line-0":
            return TimedOut(0.5)
        return Broken("reset by the upstream") if content(body) == "line-1" else answer()

    mill.settings = mill.settings.model_copy(
        update={"upstream": mill.settings.upstream.model_copy(update={"max_attempts": 3, "timeout_s": 0.5})}
    )
    batch = await mill.accepted(request_lines(7))
    [batch] = await mill.run_to_the_end(mill.worker(send), batch)
    timed_out, broken = await mill.rows(batch.error_file_id)
    assert (timed_out["custom_id"], timed_out["response"]) == ("line-0", None)
    assert timed_out["error"]["code"] == "request_timeout"
    assert broken["error"]["code"] == "upstream_broken"
    # A failure counts only as far as other lines were answered since the one before.
    assert 3 <= sent["line-0"] <= 12
    assert 3 <= sent["line-1"] <= 8
    assert (batch.status, batch.tally.completed, batch.tally.failed) == (Status.COMPLETED, 5, 2)


async def test_an_upstream_that_is_down_pauses_its_lines_without_using_up_their_attempts(mill: Mill):
    refused = 0

    async def send(_endpoint: str, _body: bytes) -> Outcome:
        nonlocal refused
        await asyncio.sleep(0)
        if refused < 12 or not any(isinstance(event, UpstreamHeld) for event in mill.events):
            refused += 1
            return Unreachable("connection refused")
        return answer()

    mill.settings = mill.settings.model_copy(
        update={"upstream": mill.settings.upstream.model_copy(update={"max_attempts": 1})}
    )
    batch = await mill.accepted(request_lines(12))
    [batch] = await mill.run_to_the_end(mill.worker(send), batch, timeout_s=60)
    assert (batch.tally.completed, batch.tally.failed) == (12, 0)
    kinds = [type(event) for event in mill.events if isinstance(event, UpstreamHeld | UpstreamResumed)]
    assert kinds == [UpstreamHeld, UpstreamResumed]


async def test_a_key_the_upstream_refuses_holds_the_batch_instead_of_failing_it(mill: Mill):
    is_mended = asyncio.Event()
    refusals = 0

    async def send(_endpoint: str, _body: bytes) -> Outcome:
        nonlocal refusals
        await asyncio.sleep(0)
        if is_mended.is_set():
            return answer()
        refusals += 1
        if refusals > 12:
            is_mended.set()
        return Answered(401, b"{}")

    batch = await mill.accepted(request_lines(10))
    [batch] = await mill.run_to_the_end(mill.worker(send), batch, timeout_s=60)
    assert (batch.tally.completed, batch.tally.failed) == (10, 0)
    assert any("key" in event.reason for event in mill.events if isinstance(event, UpstreamHeld))


async def test_a_cancelled_batch_sends_nothing_more_and_keeps_what_it_has(mill: Mill):
    sent: list[str] = []
    release = asyncio.Event()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent.append(content(body))
        if len(sent) > 3:
            await release.wait()
        return answer()

    batch = await mill.accepted(request_lines(40))
    worker = mill.worker(send, slots=4)

    async def some_are_in_flight() -> bool:
        return len(sent) == 7

    async def is_over() -> bool:
        return (await mill.now(batch)).status.is_terminal

    async def cancel_when_some_are_in_flight() -> bool:
        if await some_are_in_flight() and (await mill.now(batch)).status is Status.IN_PROGRESS:
            await mill.cancel(batch)
        return await is_over()

    await mill.run(worker, until=cancel_when_some_are_in_flight)
    ended = await mill.now(batch)
    assert ended.status is Status.CANCELLED
    assert len(sent) == 7
    outputs, errors = await mill.rows(ended.output_file_id), await mill.rows(ended.error_file_id)
    assert [row["custom_id"] for row in outputs] == ["line-0", "line-1", "line-2"]
    assert {row["custom_id"] for row in errors} == {f"line-{number}" for number in range(3, 40)}
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    assert (ended.tally.completed, ended.tally.failed, ended.total) == (3, 0, 40)
    assert ended.finalizing_at is None


async def test_a_cancel_does_not_wait_for_the_next_beat(mill: Mill):
    worker_settings = mill.settings.worker.model_copy(update={"beat_s": 60.0})
    mill.settings = mill.settings.model_copy(update={"worker": worker_settings})
    sent = 0

    async def send(_endpoint: str, _body: bytes) -> Outcome:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0.02)
        return answer()

    batch = await mill.accepted(request_lines(2_000))

    async def cancel_once_some_are_answered() -> bool:
        if sent > 20 and (await mill.now(batch)).status is Status.IN_PROGRESS:
            await mill.cancel(batch)
        return (await mill.now(batch)).status.is_terminal

    await mill.run(mill.worker(send), until=cancel_once_some_are_answered)
    ended = await mill.now(batch)
    assert ended.status is Status.CANCELLED
    assert ended.tally.completed == len(await mill.rows(ended.output_file_id)) == sent < 2_000


async def test_what_is_in_flight_at_a_cancel_may_finish_within_the_grace(mill: Mill):
    is_cancelled = asyncio.Event()

    async def send(_endpoint: str, _body: bytes) -> Outcome:
        await is_cancelled.wait()
        while not any(segment.stopped_by for segment in worker._segments.values()):  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.01)
        return answer()

    batch = await mill.accepted(request_lines(9))
    worker = mill.worker(send, slots=4)

    async def cancel_once_in_flight() -> bool:
        if worker.in_flight == 4 and not is_cancelled.is_set():
            await mill.cancel(batch)
            is_cancelled.set()
        return (await mill.now(batch)).status.is_terminal

    await mill.run(worker, until=cancel_once_in_flight)
    ended = await mill.now(batch)
    assert len(await mill.rows(ended.output_file_id)) == 4
    assert len(await mill.rows(ended.error_file_id)) == 5


async def test_an_overdue_batch_expires_with_what_it_has(mill: Mill):
    async def send(_endpoint: str, body: bytes) -> Outcome:
        if int(content(body).removeprefix("line-")) < 4:
            return answer()
        await asyncio.sleep(30)
        return answer()

    batch = await mill.accepted(request_lines(12), window_s=2)
    [ended] = await mill.run_to_the_end(mill.worker(send), batch)
    assert ended.status is Status.EXPIRED
    assert ended.finalizing_at is not None
    assert ended.completed_at is None
    outputs, errors = await mill.rows(ended.output_file_id), await mill.rows(ended.error_file_id)
    assert [row["custom_id"] for row in outputs] == [f"line-{number}" for number in range(4)]
    assert [row["custom_id"] for row in errors] == [f"line-{number}" for number in range(4, 12)]
    assert {row["error"]["code"] for row in errors} == {"batch_expired"}
    assert {row["response"] for row in errors} == {None}


async def test_many_batches_share_the_slots(mill: Mill):
    batches = [await mill.accepted(request_lines(count)) for count in (1, 17, 5, 40)]
    ended = await mill.run_to_the_end(mill.worker(always(answer())), *batches)
    assert [batch.tally.completed for batch in ended] == [1, 17, 5, 40]


async def test_slots_are_refilled_before_the_slow_lines_of_a_segment_are_answered(mill: Mill):
    """One slow line per segment must not delay the rest: most slots would be unused."""
    slow = asyncio.Event()
    answered: list[str] = []

    async def send(_endpoint: str, body: bytes) -> Outcome:
        if int(content(body).removeprefix("line-")) % 5 == 0:
            await slow.wait()
        answered.append(content(body))
        return answer()

    batch = await mill.accepted(request_lines(40))
    worker = mill.worker(send, slots=16)

    async def all_but_the_slow_ones_are_answered() -> bool:
        if len(answered) == 32:
            slow.set()
        return (await mill.now(batch)).status.is_terminal

    await mill.run(worker, until=all_but_the_slow_ones_are_answered)
    assert len(answered) == 40


async def test_a_drained_worker_gives_its_segments_back_with_their_answers(mill: Mill):
    sent = Counter[str]()
    hold = asyncio.Event()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent[content(body)] += 1
        if sum(sent.values()) > 6 and not hold.is_set():
            await hold.wait()
        return answer()

    batch = await mill.accepted(request_lines(20))
    first = mill.worker(send, slots=3)

    async def is_stuck() -> bool:
        return sum(sent.values()) == 9

    await mill.run(first, until=is_stuck)
    assert (await mill.now(batch)).status is Status.IN_PROGRESS
    assert (await mill.now(batch)).tally.completed == 6
    hold.set()
    [ended] = await mill.run_to_the_end(mill.worker(send, name="worker_2"), batch)
    assert ended.tally.completed == 20
    assert len(await mill.rows(ended.output_file_id)) == 20
    assert sum(sent.values()) == 20 + 3


async def test_the_next_holder_sends_only_lines_without_a_durable_answer(mill: Mill):
    """A holder dies without a word: its part is found, pinned, and never answered twice."""
    batch = await mill.accepted(request_lines(5))
    [lease] = await mill.store.segments.lease(WorkerId("dead"), limit=1, ttl_s=0.01)
    parts = mill.parts()
    writer = parts.open(lease.segment, lease.token)
    from nightmill.core.output_line import answered

    for ordinal in (0, 3):
        line = RequestLine(f'"line-{ordinal}"'.encode(), b"{}")
        writer.append(
            ordinal,
            answered(
                b"x",
                line,
                endpoint="/v1/chat/completions",
                status=200,
                request_id=b'"r"',
                body=b'{"choices": [], "by": "dead"}',
            ),
        )
    await writer.close()
    await parts.close()

    sent = Counter[str]()

    async def send(_endpoint: str, body: bytes) -> Outcome:
        sent[content(body)] += 1
        return answer()

    [ended] = await mill.run_to_the_end(mill.worker(send), batch)
    assert sent == {"line-1": 1, "line-2": 1, "line-4": 1}
    rows = await mill.rows(ended.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"line-{number}" for number in range(5)]
    assert rows[0]["response"]["body"] == {"choices": [], "by": "dead"}
    assert (ended.tally.completed, ended.total) == (5, 5)


async def test_a_worker_past_its_confirmed_lease_starts_nothing_new(mill: Mill):
    """A worker that was suspended has lost its lease before it can know."""
    ahead_s = 0.0
    sent: list[str] = []

    def monotonic() -> float:
        return asyncio.get_running_loop().time() + ahead_s

    async def send(_endpoint: str, body: bytes) -> Outcome:
        nonlocal ahead_s
        sent.append(content(body))
        if len(sent) == 2:
            ahead_s = 3_600.0
        await asyncio.sleep(0)
        return answer()

    async def failing(*_: object, **__: object) -> None:
        raise OSError

    await mill.accepted(request_lines(5))
    worker = mill.worker(
        send, slots=1, monotonic=monotonic, store=with_verb(mill.store, "segments", "renew", failing)
    )

    async def has_turned_in_vain() -> bool:
        return len(mill.events) > 4

    await mill.run(worker, until=has_turned_in_vain)
    assert len(sent) == 2


async def test_bodies_reach_the_upstream_byte_for_byte(mill: Mill):
    received: list[bytes] = []

    async def send(_endpoint: str, body: bytes) -> Outcome:
        received.append(body)
        return answer()

    body = (
        b'{"model": "m", "messages": [], "seed": 12345678901234567890123, "x": 1.0, "y": "\\ud83d", "x": -0}'
    )
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": ' + body + b"}"
    batch = await mill.accepted(line + b"\n" + request_line("b"))
    await mill.run_to_the_end(mill.worker(send), batch)
    assert body in received


async def test_a_free_upstream_gets_lines_although_many_segments_wait_for_a_busy_one(folder_mill: Mill):
    mill = folder_mill
    is_answered = asyncio.Event()

    async def busy(_endpoint: str, _body: bytes) -> Outcome:
        await is_answered.wait()
        return answer()

    async def free(_endpoint: str, _body: bytes) -> Outcome:
        await asyncio.sleep(0)
        return answer()

    many = [await mill.accepted(request_line(f"line-{number}", model="0")) for number in range(60)]
    few = await mill.accepted(b"".join(request_line(f"line-{number}", model="1") for number in range(5)))
    clocks = Clocks(wall=time.time, monotonic=time.monotonic, random=lambda: 0.01)
    worker = mill.sending(
        FunctionUpstream(busy), FunctionUpstream(free), models=("0", "1"), clocks=clocks, slots=1
    )

    async def few_are_answered() -> bool:
        return (await mill.now(few)).status is Status.COMPLETED

    await mill.run(worker, until=few_are_answered)
    assert (await mill.now(many[-1])).status is Status.IN_PROGRESS


async def test_a_line_is_sent_to_the_upstream_that_serves_its_model(mill: Mill):
    sent: dict[str, list[str]] = {"0": [], "1": []}

    def client(name: str) -> FunctionUpstream:
        async def send(_endpoint: str, body: bytes) -> Outcome:
            await asyncio.sleep(0)
            sent[name].append(json.loads(body)["model"])
            return answer()

        return FunctionUpstream(send)

    limits = mill.settings.limits.model_copy(update={"models_per_file": 2})
    mill.settings = mill.settings.model_copy(update={"limits": limits})
    batch = await mill.accepted(
        b"".join(request_line(f"line-{number}", model=str(number % 2)) for number in range(23))
    )
    clocks = Clocks(wall=time.time, monotonic=time.monotonic, random=lambda: 0.01)
    worker = mill.sending(client("0"), client("1"), models=("0", "1"), clocks=clocks, slots=2)
    [batch] = await mill.run_to_the_end(worker, batch)
    assert (batch.tally.completed, batch.tally.failed) == (23, 0)
    assert sent == {"0": ["0"] * 12, "1": ["1"] * 11}
