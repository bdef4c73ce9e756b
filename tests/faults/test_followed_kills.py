"""A follower over three `kill -9` of the server: each line exactly once, with the bytes of the files."""

import json
import threading
from contextlib import ExitStack
from pathlib import Path

from nightmill.client import Client
from nightmill.runtime.supervisor import free_port
from tests.faults.served import Served, assert_each_line_once, request_lines, serving, wait_until

LINES = 240
KILLS = 3
SETTINGS = {
    "emulator__delay_s": 0.15,
    "upstream__concurrency": 6,
    "worker__lines_per_segment": 20,
    "worker__beat_s": 0.1,
    "retention__free_bytes": 0,
}


def test_a_follower_is_given_each_line_once_over_three_kills(tmp_path: Path) -> None:
    port = free_port()
    lines: list[bytes] = []

    with ExitStack() as stack:

        def start() -> Served:
            return stack.enter_context(serving(tmp_path / "data", port=port, **SETTINGS))

        def follow(batch_id: str) -> None:
            with Client(f"http://127.0.0.1:{port}/v1") as client:
                lines.extend(line.text for line in client.follow(batch_id))

        server = start()
        batch_id = server.batch(request_lines(LINES))
        follower = threading.Thread(target=follow, args=(batch_id,))
        follower.start()
        for number in range(1, KILLS + 1):
            wait_until(lambda least=number * 40: len(lines) >= least)
            server.kill()
            server = start()
        batch = server.until_ended(batch_id, timeout_s=120)
        follower.join(60)
        assert not follower.is_alive()
        assert batch["request_counts"]["completed"] == LINES
        assert_each_line_once([json.loads(line) for line in lines], LINES)
        _, _, output = server.send("GET", f"/v1/files/{batch['output_file_id']}/content")
        assert sorted(lines) == sorted(output.splitlines())
        assert lines != output.splitlines()  # in the order of the answers, so they came while the batch ran
