"""The batch executor of LiteLLM with a stub for its database: parsing, the router, and joining the results.

The default of 4 requests in flight is kept, because more did not make the executor faster.
"""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.batches_endpoints import litellm_executed_batches as executor
from litellm.types.utils import LiteLLMBatch
from peer_loop import Stopwatch, arguments

_ENDPOINT = "/v1/chat/completions"


class _Batches:
    """A database with one batch, in memory."""

    def __init__(self, total: int) -> None:
        self.batch = LiteLLMBatch(
            id="batch_bench",
            object="batch",
            endpoint=_ENDPOINT,
            input_file_id="file_bench",
            completion_window="24h",
            status="validating",
            created_at=int(time.time()),
            request_counts={"completed": 0, "failed": 0, "total": total},
        )

    async def load_batch(self, _id: str) -> LiteLLMBatch:
        return self.batch

    async def load_status(self, _id: str) -> str:
        return self.batch.status

    async def compare_and_set(self, batch: LiteLLMBatch, *_: object) -> bool:
        self.batch = batch
        return True

    async def touch(self, *_: object) -> None:
        return


async def _upload(file_data: dict, **_: object) -> SimpleNamespace:
    await asyncio.to_thread(Path("output.jsonl").write_bytes, file_data["content"])
    return SimpleNamespace(id="file_output")


async def _execute(url: str, content: bytes, lines: int) -> None:
    parameters = {"model": "hosted_vllm/bench", "api_base": url, "api_key": "bench"}
    router = Router(model_list=[{"model_name": "bench", "litellm_params": parameters}])
    batches = _Batches(lines)
    runner = executor.LiteLLMExecutedBatchRunner(
        router, None, None, batches, None, {}, upload_result_file=_upload
    )
    watch = Stopwatch()
    parsed = executor.parse_batch_input(content, _ENDPOINT)
    run = executor._BatchRun(  # noqa: SLF001 - there is no door that needs no database
        unified_batch_id="batch_bench",
        llm_batch_id="batch_bench",
        model="bench",
        endpoint=_ENDPOINT,
        lines=parsed,
        user_api_key_dict=UserAPIKeyAuth(),
        request_tags=(),
        deadline=time.time() + 86_400,
    )
    await runner._execute(run)  # noqa: SLF001 - as above
    if batches.batch.status != "completed" or batches.batch.request_counts.completed != lines:
        raise SystemExit(f"ended as {batches.batch.status} with {batches.batch.request_counts}")
    watch.print_result(lines, "its database stubbed; 4 in flight, its default")


def _run(url: str, path: Path, lines: int) -> None:
    asyncio.run(_execute(url, path.read_bytes(), lines))


_run(*arguments())
