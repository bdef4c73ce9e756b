"""The `nightmill` command, also as `python -m nightmill`.

Loads little before the commands, because Ctrl-C while they are loaded must end the process without a
traceback.
"""

import signal
import sys


def main() -> None:
    """The entry point."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # another one, such as SIG_IGN of `nohup`, stays
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from nightmill.cli import invoke  # noqa: PLC0415 - see above

    signal.signal(signal.SIGINT, handler)
    code = invoke(sys.argv[1:])
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the interpreter's own exit has nothing to finish
    sys.exit(code)


if __name__ == "__main__":
    main()
