"""A batch server of the test's own: every batch is complete at once, with the answers that the test chooses.

It keeps uploaded files in memory, in the place of `Server.answer`.
"""

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.client.conftest import Asked

# The content of the part named "file" of a form.
FILE = re.compile(rb'name="file";.*?\r\n\r\n(.*?)\r\n--', re.DOTALL)
Reply = tuple[int, bytes, dict[str, str]]


def chat(text: str | None, **choice: object) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | choice]
    }


class BatchServer:
    """Answers each request line with `(status, body)` of `reply`, failures into the error file.

    Attributes:
        lines: the request lines of the newest batch.
        created: what the newest batch was created with.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], tuple[int, Any]]) -> None:
        self.reply = reply
        self.models = ["m"]
        self.lines: list[dict[str, Any]] = []
        self.created: dict[str, Any] = {}
        self.status = "completed"
        self._files: dict[str, bytes] = {}

    def __call__(self, asked: "Asked") -> Reply:
        path = asked.path.partition("?")[0]
        if path == "/v1/models":
            data = [{"id": name, "object": "model", "created": 1, "owned_by": "o"} for name in self.models]
            return self._json({"object": "list", "data": data})
        if (asked.method, path) == ("POST", "/v1/files"):
            return self._uploaded(asked)
        if (asked.method, path) == ("POST", "/v1/batches"):
            return self._batch_created(asked)
        if path == "/v1/batches/batch_1":
            return self._json(self._batch())
        if path.endswith("/content"):
            content = self._files[path.split("/")[-2]]
            return 200, content, {"content-type": "application/octet-stream"}
        return 404, json.dumps({"error": {"message": "Unknown."}}).encode(), {}

    def _uploaded(self, asked: "Asked") -> Reply:
        found = FILE.search(asked.body)
        assert found is not None
        self._files["file-1"] = found[1]
        self.lines = [json.loads(line) for line in found[1].splitlines()]
        file = {"id": "file-1", "object": "file", "bytes": 1, "created_at": 1, "filename": "f"}
        return self._json(file | {"purpose": "batch", "status": "processed"})

    def _batch_created(self, asked: "Asked") -> Reply:
        self.created = asked.json
        output, errors = [], []
        for line in self.lines:
            status, body = self.reply(line)
            response = {"status_code": status, "request_id": "r", "body": body}
            row = {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}
            (output if status == 200 else errors).append(row)
        for name, rows in (("file-out", output), ("file-err", errors)):
            self._files[name] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return self._json(self._batch())

    def _batch(self) -> dict[str, Any]:
        return {
            "id": "batch_1",
            "object": "batch",
            "endpoint": self.created["endpoint"],
            "input_file_id": "file-1",
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": "file-out",
            "error_file_id": "file-err",
            "created_at": 1,
            "expires_at": 86_401,
            "request_counts": {"total": len(self.lines), "completed": len(self.lines), "failed": 0},
        }

    @staticmethod
    def _json(document: dict[str, Any]) -> Reply:
        return 200, json.dumps(document).encode(), {}
