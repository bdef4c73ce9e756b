"""A child process of the local supervisor: what is needed of it, its first message, what it is not told."""

import asyncio
import os
from typing import Protocol


class Pipe(Protocol):
    def write(self, data: bytes) -> None: ...
    def is_closing(self) -> bool: ...


class Child(Protocol):
    """A part of `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> Pipe | None: ...
    @property
    def stdout(self) -> asyncio.StreamReader | None: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def kill(self) -> None: ...
    def send_signal(self, signal: int) -> None: ...


def is_hidden(name: str) -> bool:
    """Whether a variable of the environment is kept from children. They get their settings over their
    standard input, if they need any: a model's program needs no key.

    Crash points stay: a test arms them for whoever passes.
    """
    return name.startswith("NIGHTMILL_") and not name.startswith("NIGHTMILL_CRASH_")


def first_line(descriptor: int) -> str:
    """The child's side: its first message, read byte by byte, for what follows belongs to the event loop."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()
