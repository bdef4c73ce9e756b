"""The actor that has Ray Serve run a model, and reports the URL where the model answers.

The actor deploys one Serve application, polls it until it answers, and deletes it at the end. It reports no
URL before a request was answered there. The application is deleted when this actor leaves, even when every
nightmill process is gone. Serve restarts replicas; the launcher decides when the model is needed.
"""

import asyncio
import importlib
import logging
from typing import Any, Final

from nightmill.runtime.ray.leased_actor import LeasedActor
from nightmill.runtime.ray.model_apps import application_of
from nightmill.settings import RayModelSettings, UpstreamSettings
from nightmill.upstream.connect import open_upstream

_POLL_S: Final = 1.0
_ANSWER_S: Final = 10.0
_RETRY_S: Final = 5.0


class ModelActor(LeasedActor):
    """Runs the application of a model in Ray Serve as long as a launcher needs it.

    Args:
        message: the model's settings as JSON.
        application: the name of the application in Serve, and its route.
        host: address on which Serve's proxies listen, if this actor starts Serve.
    """

    def __init__(self, message: str, *, application: str, host: str, unattended_s: float) -> None:
        super().__init__(unattended_s=unattended_s)
        self._settings = RayModelSettings.model_validate_json(message)
        self._application = application
        self._host = host
        self._url: str | None = None
        self._trouble: str | None = None
        self.start()

    @property
    def url(self) -> str | None:
        return self._url

    @property
    def trouble(self) -> str | None:
        return self._trouble

    async def work(self) -> None:
        try:
            while not self.is_leaving:
                pause_s = _POLL_S
                try:
                    await self._update()
                except Exception as error:  # any error of Serve is reported, and the next turn tries again
                    logging.getLogger("nightmill").error("the model's application failed", exc_info=error)
                    self._url, self._trouble = None, f"the model can't be run: {_one_line(error)}"
                    pause_s = _RETRY_S
                await self.wait(timeout_s=pause_s)
        finally:
            self._url = None
            await asyncio.to_thread(self._delete)

    async def _update(self) -> None:
        """Deploys the application when it is missing; sets `url` and `trouble`."""
        status = await asyncio.to_thread(self._status)
        if status is None or status in ("DEPLOY_FAILED", "NOT_STARTED"):
            await asyncio.to_thread(self._deploy)
            return
        if status != "RUNNING":
            self._trouble = f"the model is not ready: Ray Serve reports {status}"
            self._url = self._url if status == "UNHEALTHY" else None
            return
        urls = await asyncio.to_thread(self._urls)
        if self._url in urls:
            return
        for url in urls:
            if await _answers(url):
                self._url, self._trouble = url, None
                return
        self._url, self._trouble = None, "Ray Serve runs the model, but it does not answer"

    # --- calls of Serve, which block -------------------------------------------------------------------

    def _deploy(self) -> None:
        serve = _serve()
        serve.start(
            proxy_location="EveryNode", http_options={"host": self._host, "port": self._settings.port}
        )
        serve.run(
            application_of(self._settings), name=self._application, route_prefix=f"/{self._application}"
        )

    def _status(self) -> str | None:
        applications: dict[str, Any] = _serve().status().applications
        if self._application not in applications:
            return None
        found = applications[self._application]
        status = str(found.status.value)
        if status == "DEPLOY_FAILED":
            self._trouble = f"the model can't be run: {_one_line(found.message)}"
        return status

    def _urls(self) -> list[str]:
        """The URL behind each healthy proxy."""
        addresses = {
            node["NodeID"]: node["NodeManagerAddress"]
            for node in importlib.import_module("ray").nodes()
            if node["Alive"]
        }
        return [
            f"http://{addresses[node_id]}:{self._settings.port}/{self._application}/v1"
            for node_id, status in sorted(_serve().status().proxies.items())
            if status == "HEALTHY" and node_id in addresses
        ]

    def _delete(self) -> None:
        serve = _serve()
        if self._application in serve.status().applications:
            serve.delete(self._application)


async def _answers(url: str) -> bool:
    upstream = open_upstream(UpstreamSettings(), url=url)
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await upstream.models() is not None
    except TimeoutError:
        return False
    finally:
        await upstream.close()


def _serve() -> Any:
    return importlib.import_module("ray.serve")


def _one_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
