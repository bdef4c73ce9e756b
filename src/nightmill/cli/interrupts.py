"""Ctrl-C while a command loads its modules.

Python makes a KeyboardInterrupt of it, which a library may turn into an error of its own: pydantic reports a
schema that can't be built. Once a command works, Ctrl-C belongs to that command.
"""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, NoReturn

from nightmill.cli.screen import say

_STOPPED: Final = "nightmill stopped while it was being loaded; nothing had begun"


@contextmanager
def stop_while_loading() -> Generator[None]:
    """For `serve` and `work`: Ctrl-C ends the process with exit code 0, as later.

    The event loop replaces this handler. Children that were forked by then exit with this process.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # such as SIG_IGN of `nohup`
        yield
        return
    signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _stop:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def is_interrupt(error: BaseException | None) -> bool:
    """Whether a library made the error of a KeyboardInterrupt."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or KeyboardInterrupt.__name__ in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _stop(*_: object) -> NoReturn:
    try:
        say(_STOPPED)
    finally:
        os._exit(0)
