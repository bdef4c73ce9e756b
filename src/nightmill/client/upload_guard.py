"""What makes an upload safe: values that the server takes, and no upload left behind by a refused batch.

The lines of a file are checked by the callers. Everything here works with any OpenAI-compatible server, and
knows more of a nightmill server, whose OpenAPI document names its endpoints and completion windows.
"""

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from openai import APIError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAI

from nightmill.errors import RequestError

_REQUEST: Final = ("components", "schemas", "CreateBatchRequest", "properties")
_TIMEOUT_S: Final = 10.0
_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class AcceptedValues:
    """What a server takes in the creation of a batch. Empty where it does not say so."""

    endpoints: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()

    def refuse_others(self, *, endpoint: str, window: str) -> None:
        """Raises:
        RequestError: the server would refuse one of the two.
        """
        if self.endpoints and endpoint not in self.endpoints:
            raise RequestError(
                f"this server has no endpoint '{endpoint}' for batches; it has {_listed(self.endpoints)}",
                param="endpoint",
            )
        if self.windows and window not in self.windows:
            raise RequestError(
                f"this server has no completion window '{window}'; it has {_listed(self.windows)}",
                param="completion_window",
            )


def accepted_values(openai: OpenAI) -> AcceptedValues:
    """The values in the server's OpenAPI document, if it is one of a nightmill server.

    Raises:
        openai.APIConnectionError: there is no server.
    """
    url = str(openai.base_url).rstrip("/").removesuffix("/v1") + "/openapi.json"
    try:
        found: object = openai.get(url, cast_to=object, options={"timeout": _TIMEOUT_S})
    except (APIStatusError, APITimeoutError):
        return AcceptedValues()
    for name in _REQUEST:
        found = cast("Mapping[str, Any]", found).get(name) if isinstance(found, Mapping) else None
    return AcceptedValues(_enum(found, "endpoint"), _enum(found, "completion_window"))


@contextmanager
def discarded_if_refused(openai: OpenAI, file_id: str) -> Generator[None]:
    """Deletes the uploaded file if the batch that is created of it is refused.

    While it is unknown whether the batch exists, the file stays, and a note of the exception says so.
    """
    try:
        yield
    except BaseException as error:
        if _is_refusal(error, file_id):
            # What has to be reported is the refusal of the batch.
            with suppress(APIError):
                openai.files.delete(file_id)
        raise


@asynccontextmanager
async def discarded_if_refused_async(openai: AsyncOpenAI, file_id: str) -> AsyncGenerator[None]:
    """`discarded_if_refused` for asyncio."""
    try:
        yield
    except BaseException as error:
        if _is_refusal(error, file_id):
            with suppress(APIError):
                await openai.files.delete(file_id)
        raise


def _is_refusal(error: BaseException, file_id: str) -> bool:
    """Whether there is no batch for certain. Otherwise a note of the error says that the file stays."""
    if isinstance(error, APIStatusError) and error.status_code < _SERVER_ERROR:
        return True
    error.add_note(
        f"{file_id} stays on the server, where its batch may exist (nightmill list); "
        f"delete it with: nightmill files delete {file_id}"
    )
    return False


def _enum(properties: object, name: str) -> tuple[str, ...]:
    field: object = (
        cast("Mapping[str, Any]", properties).get(name) if isinstance(properties, Mapping) else None
    )
    values: object = cast("Mapping[str, Any]", field).get("enum") if isinstance(field, Mapping) else None
    return tuple(map(str, cast("list[object]", values))) if isinstance(values, list) else ()


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(values)
