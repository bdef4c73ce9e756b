"""llama.cpp as a Serve application: each replica runs a server (`runtime.llama`) as a child and forwards
requests.

Bodies are forwarded byte for byte in both directions. A child that exits makes its replica unhealthy, and
Serve replaces the replica.
"""

import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nightmill.core.outcome import Answered
from nightmill.errors import SetupError
from nightmill.runtime.llama import fitted, llama_command
from nightmill.settings import ModelSettings, RayModelSettings, UpstreamSettings
from nightmill.upstream import Upstream
from nightmill.upstream.connect import open_upstream

_LOAD_S: Final = 1_800.0
_ANSWER_S: Final = 3_600.0
_POLL_S: Final = 0.05
_QUEUED: Final = 4
"""Requests that a replica takes at once, per slot; further requests wait in Serve."""


def llama_application(settings: RayModelSettings) -> Any:
    serve: Any = importlib.import_module("ray.serve")
    model = ModelSettings.model_validate({"path": settings.source, **settings.options})
    deployment = serve.deployment(
        LlamaReplica,
        num_replicas=settings.replicas,
        max_ongoing_requests=_QUEUED * model.slots,
        ray_actor_options={"num_cpus": settings.cpus},
    )
    return deployment.bind(model.model_dump_json(), settings.name)


class LlamaReplica:
    """One copy of the model: a llama.cpp process, and the requests that are passed on to it.

    Args:
        message: the model's settings as JSON.
        name: the model's name in request lines.

    Raises:
        SetupError: llama.cpp exited before it had loaded the model.
    """

    def __init__(self, message: str, name: str) -> None:
        self._name = name
        settings, choice = fitted(ModelSettings.model_validate_json(message))
        sys.stderr.write(f"{choice}\n")  # into the replica's log
        with tempfile.TemporaryDirectory() as folder:
            port_file = Path(folder, "port")
            command = llama_command(settings)
            self._child = subprocess.Popen(  # noqa: S603 - our own program
                [*command, "--port-file", str(port_file)],
                stdin=subprocess.PIPE,  # ends with this process, and the child exits then
            )
            give_up_at = time.monotonic() + _LOAD_S
            while not port_file.exists():
                if self._child.poll() is not None or time.monotonic() > give_up_at:
                    self._child.kill()
                    raise SetupError("llama.cpp ended before it had loaded the model; see the replica's log")
                time.sleep(_POLL_S)
            self._url = f"http://127.0.0.1:{port_file.read_text().strip()}/v1"
        assert self._child.stdin is not None
        self._child.stdin.write(b"\n")
        self._child.stdin.flush()
        self._upstream: Upstream | None = None

    def check_health(self) -> None:
        """Serve calls this every few seconds; an error makes Serve replace the replica."""
        if self._child.poll() is not None:
            raise RuntimeError("llama.cpp has ended")

    async def __call__(self, request: Request) -> Response:
        if self._upstream is None:
            self._upstream = open_upstream(UpstreamSettings(concurrency=1_000), url=self._url)
        path = "/v1" + request.url.path.partition("/v1")[2]
        if request.method == "GET":
            if path == "/v1/models" and await self._upstream.models() is not None:
                model = {"id": self._name, "object": "model", "created": 0, "owned_by": "nightmill"}
                return JSONResponse({"object": "list", "data": [model]})
            return Response(status_code=404)
        outcome = await self._upstream.send(path, await request.body(), timeout_s=_ANSWER_S)
        match outcome:
            case Answered(status, body):
                return Response(body, status_code=status, media_type="application/json")
            case _:
                return Response(status_code=502)

    def __del__(self) -> None:
        self._child.kill()
        self._child.wait()
