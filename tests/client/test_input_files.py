"""The validation report as the client reads it: lines end at a line feed only."""

import asyncio
import io
import json

from openai import AsyncOpenAI

from nightmill.client.input_files import AsyncInputApi

ROWS = [{"line": 1, "custom_id": "a\u2028b\u0085c"}, {"line": 2, "custom_id": None}]
REPORT = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


def test_a_custom_id_with_a_line_separator_stays_in_its_row(server, client):
    server.answer = lambda _: (200, REPORT, {"content-type": "application/x-ndjson"})
    assert list(client.input.validation("batch_1")) == ROWS
    copied = io.BytesIO()
    assert client.input.copy_validation("batch_1", copied) == 2
    assert copied.getvalue() == REPORT

    async def read() -> list[dict]:
        async with AsyncOpenAI(base_url=str(client.openai.base_url), api_key="none") as openai:
            return [row async for row in AsyncInputApi(openai).validation("batch_1")]

    assert asyncio.run(read()) == ROWS
    assert {asked.path for asked in server.asked} == {"/nightmill/v1/batches/batch_1/validation"}
