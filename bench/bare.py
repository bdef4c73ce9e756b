"""The bounds of moving a file: a socket read straight into a file, and a file sent straight from the cache.

`python bare.py PORT take FOLDER` answers each POST once its body is in a new file there (a new file needs new
pages, which are the largest cost; a file that is overwritten already has them); `python bare.py PORT give
PATH` answers each GET with PATH by `sendfile`. One connection at a time and no checks: the minimum in Python.
"""

import itertools
import os
import socket
import sys

_BUFFER_BYTES = 1 << 20


def _head(connection: socket.socket) -> tuple[bytes, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def _take(connection: socket.socket, path: str, buffer: memoryview) -> None:
    head, rest = _head(connection)
    length = next(
        int(row.partition(b":")[2])
        for row in head.split(b"\r\n")
        if row.lower().startswith(b"content-length:")
    )
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    left = length - os.write(target, rest) if rest else length
    while left:
        size = connection.recv_into(buffer)
        os.write(target, buffer[:size])
        left -= size
    os.fsync(target)
    os.close(target)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")


def _give(connection: socket.socket, path: str) -> None:
    _head(connection)
    with open(path, "rb") as file:  # noqa: PTH123 - as bare as can be
        size = os.fstat(file.fileno()).st_size
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        at = 0
        while at < size:
            at += os.sendfile(connection.fileno(), file.fileno(), at, size - at)


def _main() -> None:
    port, what, path = sys.argv[1:4]
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    names = map(str, itertools.count())
    with socket.create_server(("127.0.0.1", int(port))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                if what == "take":
                    _take(connection, os.path.join(path, next(names)), buffer)  # noqa: PTH118 - as bare as can be
                else:
                    _give(connection, path)


if __name__ == "__main__":
    _main()
