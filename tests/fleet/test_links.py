"""A `Link` forwards bytes in both directions, and each `Manner` disturbs it in its own way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from nightmill_torture.link import Link
from nightmill_torture.plan import Manner

LIMIT_S = 10


class EchoServer:
    """An echo server that records the lines it receives."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.lines.append(line)
                writer.write(line)
        except ConnectionError:
            pass  # the link broke
        finally:
            writer.close()

    async def reach(self, _: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@pytest.fixture
async def echo_server() -> AsyncIterator[EchoServer]:
    made = EchoServer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
async def link(echo_server: EchoServer) -> AsyncIterator[Link]:
    async with Link(echo_server.reach) as made:
        yield made


@pytest.fixture
async def connected(link: Link) -> AsyncIterator[Callable[..., object]]:
    async with AsyncExitStack() as stack:

        async def connect(port: int = link.port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            return reader, writer

        yield connect


async def answer_to(ends, line: bytes) -> bytes:
    reader, writer = ends
    writer.write(line)
    async with asyncio.timeout(LIMIT_S):
        return await reader.readline()


async def has_broken(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(LIMIT_S):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


async def test_an_open_link_forwards_in_both_directions_and_forwards_the_end_of_the_stream(
    connected, echo_server
):
    reader, writer = await connected()
    assert await answer_to((reader, writer), b"one\n") == b"one\n"
    writer.write_eof()
    assert await reader.read() == b""
    assert echo_server.lines == [b"one\n"]


async def test_a_refusing_link_breaks_open_connections_and_refuses_new_ones(connected, link, echo_server):
    reader, _ = old = await connected()
    assert await answer_to(old, b"one\n") == b"one\n"
    link.cut(Manner.REFUSED)
    assert await has_broken(reader)
    assert await has_broken((await connected())[0])
    link.heal()
    assert await answer_to(await connected(), b"two\n") == b"two\n"
    assert echo_server.lines == [b"one\n", b"two\n"]


async def test_a_silent_link_delays_all_bytes_until_it_heals(connected, link, echo_server):
    old = await connected()
    assert await answer_to(old, b"one\n") == b"one\n"
    link.cut(Manner.SILENT)
    new = await connected()
    answers = [asyncio.create_task(answer_to(ends, b"two\n")) for ends in (old, new)]
    done, _ = await asyncio.wait(answers, timeout=0.2)
    assert not done
    assert echo_server.lines == [b"one\n"]
    link.heal()
    assert await asyncio.gather(*answers) == [b"two\n", b"two\n"]


async def test_a_deaf_link_delivers_requests_and_drops_the_answers(connected, link, echo_server):
    reader, writer = ends = await connected()
    assert await answer_to(ends, b"one\n") == b"one\n"
    link.cut(Manner.DEAF)
    writer.write(b"two\n")
    async with asyncio.timeout(LIMIT_S):
        while echo_server.lines != [b"one\n", b"two\n"]:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
    link.heal()
    assert await has_broken(reader)


async def test_a_slow_link_delays_every_chunk(connected, link):
    ends = await connected()
    link.delay_s = 0.1
    began = asyncio.get_running_loop().time()
    assert await answer_to(ends, b"one\n") == b"one\n"
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_a_tunnel_connects_to_the_host_that_connect_names(connected, echo_server):
    asked: list[str] = []

    async def reach(name: str):
        asked.append(name)
        return await echo_server.reach(name)

    async with Link(reach, is_tunnel=True) as tunnel:
        reader, writer = await connected(tunnel.port)
        writer.write(b"CONNECT bucket.example:443 HTTP/1.1\r\nHost: bucket.example:443\r\n\r\n")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert await answer_to((reader, writer), b"one\n") == b"one\n"
    assert asked == ["bucket.example:443"]


async def test_a_link_to_an_unreachable_server_breaks(connected):
    async def refuse(_: str):
        raise ConnectionRefusedError

    async with Link(refuse) as link:
        assert await has_broken((await connected(link.port))[0])
