"""Small servers that count tokens as vLLM and llama.cpp do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.threaded_server import AnsweringHandler, listening


class VllmTokenizer(AnsweringHandler):
    """A token for each word of the messages, and 4 of the chat template."""

    def respond(self) -> None:
        asked = json.loads(self.read())
        if self.path != "/tokenize" or "messages" not in asked or "model" not in asked:
            self.answer(404, b"{}")
            return
        count = 4 + sum(len(message["content"].split()) for message in asked["messages"])
        self.answer(200, json.dumps({"count": count, "max_model_len": 4096, "tokens": [1] * count}).encode())


class LlamaTokenizer(AnsweringHandler):
    """A token for each word of the content."""

    def respond(self) -> None:
        asked = json.loads(self.read())
        if self.path != "/tokenize" or "content" not in asked:
            self.answer(400, b"{}")
            return
        self.answer(200, json.dumps({"tokens": [1] * len(asked["content"].split())}).encode())


class NoTokenizer(AnsweringHandler):
    """Has no such route."""

    def respond(self) -> None:
        self.read()
        self.answer(404, b'{"detail": "Not Found"}')


@contextmanager
def tokenizer(handler: type[AnsweringHandler]) -> Iterator[str]:
    """The base URL of the server."""
    server = listening(handler, backlog=8)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
