"""The level of a running server's log, over `/nightmill/v1/log_level`. The key must be an admin key."""

from typing import Literal, TypeAlias, cast

from openai import AsyncOpenAI, OpenAI

from nightmill.client.own_api import own_url

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]


class LogApi:
    """Reads and changes the level.

    Args:
        openai_client: a client of the server's `/v1`.
    """

    def __init__(self, openai_client: OpenAI) -> None:
        self._openai = openai_client
        self._url = own_url(openai_client, "log_level")

    def level(self) -> LogLevel:
        """The lowest level that is logged."""
        return _level_in(self._openai.get(self._url, cast_to=object))

    def set_level(self, level: LogLevel) -> LogLevel:
        """Logs lines of this level and above from now on, until the server restarts."""
        return _level_in(self._openai.post(self._url, body={"level": level}, cast_to=object))


class AsyncLogApi:
    """As `LogApi`, on asyncio."""

    def __init__(self, openai_client: AsyncOpenAI) -> None:
        self._openai = openai_client
        self._url = own_url(openai_client, "log_level")

    async def level(self) -> LogLevel:
        return _level_in(await self._openai.get(self._url, cast_to=object))

    async def set_level(self, level: LogLevel) -> LogLevel:
        return _level_in(await self._openai.post(self._url, body={"level": level}, cast_to=object))


def _level_in(answer: object) -> LogLevel:
    return cast("dict[str, LogLevel]", answer)["level"]
