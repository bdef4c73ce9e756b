"""`watch` against a server that answers as the test says: what is said at the end, and after Ctrl-C."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress

import pytest

from nightmill.client import progress
from tests.client.conftest import Asked, Server, answering_server

FIRST, SECOND = ("batch_" + digit * 32 for digit in "12")
LINE = {"custom_id": "a", "response": {"status_code": 404, "body": {"error": "no such model"}}, "error": None}


@pytest.fixture
def server(monkeypatch):
    with answering_server() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        yield running


def document(batch_id: str, status: str, *, failed: int = 0) -> dict:
    return {
        "id": batch_id,
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": status,
        "created_at": 1,
        "output_file_id": "file-2",
        "error_file_id": "file-3" if failed else None,
        "request_counts": {"total": 3, "completed": 3 - failed, "failed": failed},
    }


def serve(server: Server, *batches: dict, is_nightmill: bool = False) -> None:
    """Gives each batch, once it has been read before, its status; an error file has one line."""

    def answer(asked: Asked) -> tuple[int, bytes, dict[str, str]]:
        path = asked.path
        if path.startswith("/nightmill/v1/batches/") and is_nightmill:
            return 200, json.dumps({"why": None, "forecast": None}).encode(), {}
        if path.endswith("/content"):
            return 200, json.dumps(LINE).encode() + b"\n", {}
        if path.startswith("/v1/batches?"):
            page = {"object": "list", "data": batches, "has_more": False}
            return 200, json.dumps(page).encode(), {}
        found = [batch for batch in batches if path == f"/v1/batches/{batch['id']}"]
        return (200, json.dumps(found[0]).encode(), {}) if found else (404, b"{}", {})

    server.answer = answer


def test_a_batch_with_failures_says_which_and_what_to_type_next(server, nightmill):
    serve(server, document(FIRST, "completed", failed=1), is_nightmill=True)
    ran = nightmill("watch", "1111")
    assert (ran.code, ran.out) == (1, f"{FIRST} is completed\n")
    assert ran.err.splitlines()[1:] == [
        '1 failed: 1x 404 "no such model"',
        "get its lines with: nightmill results 11111111 -o FILE",
        "get the failed ones with: nightmill results 11111111 -e FILE",
        "send the failed ones again with: nightmill retry 11111111",
    ]


def test_the_lines_that_a_batch_leaves_are_sent_again_by_their_kind(server, nightmill):
    cancelled = document(FIRST, "cancelled", failed=1)
    cancelled["request_counts"] = {"total": 9, "completed": 2, "failed": 1}
    serve(server, cancelled, is_nightmill=True)
    ran = nightmill("watch", FIRST)
    assert ran.err.splitlines()[0].startswith("cancelled: 3 of 9 done (2 ok, 1 failed), 6 left")
    assert ran.err.splitlines()[-2:] == [
        "get the others with: nightmill results 11111111 -e FILE",
        "send the others again with: nightmill retry 11111111 --failed --cancelled",
    ]


def test_a_batch_of_another_server_is_not_sent_again(server, nightmill):
    serve(server, document(FIRST, "expired", failed=1))
    ran = nightmill("watch", FIRST)
    assert ran.code == 3
    assert "retry" not in ran.err


def test_the_next_command_names_the_server_where_the_environment_does_not(server, nightmill, monkeypatch):
    serve(server, document(FIRST, "completed"))
    monkeypatch.delenv("OPENAI_BASE_URL")
    ran = nightmill("watch", FIRST, "--base-url", server.url)
    assert f"nightmill results 11111111 --base-url {server.url} -o FILE" in ran.err


def test_of_several_batches_the_exit_code_is_that_of_the_worst(server, nightmill):
    serve(server, document(FIRST, "cancelled"), document(SECOND, "completed"))
    ran = nightmill("watch", FIRST, SECOND)
    assert ran.code == 4
    assert ran.out.splitlines() == [f"{FIRST} is cancelled", f"{SECOND} is completed"]
    as_json = nightmill("watch", FIRST, SECOND, "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in as_json] == [FIRST, SECOND]


def test_without_an_id_and_without_unfinished_batches_there_is_nothing_to_watch(server, nightmill):
    serve(server, document(FIRST, "completed"))
    ran = nightmill("watch")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "every batch has ended; list them with: nightmill list\n"


@pytest.fixture
def interrupted(monkeypatch) -> Callable[[], None]:
    """Makes the display raise what Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    return lambda: monkeypatch.setattr(progress, "sentence", stop)


def test_ctrl_c_says_that_the_batch_continues_and_how_to_watch_it_again(server, nightmill, interrupted):
    serve(server, document(FIRST, "in_progress"))
    interrupted()
    ran = nightmill("watch", FIRST)
    assert (ran.code, ran.out) == (130, "")
    assert ran.err == (
        "nightmill: stopped; the batch continues on the server\nwatch again with: nightmill watch 11111111\n"
    )


def test_ctrl_c_names_a_few_batches_and_watches_all_of_many(server, nightmill, interrupted):
    ids = ["batch_" + f"{number:x}" * 32 for number in range(7)]
    serve(server, *(document(batch_id, "in_progress") for batch_id in ids))
    interrupted()
    assert nightmill("watch", *ids[:2]).err.endswith("nightmill watch 00000000 11111111\n")
    assert nightmill("watch").err == (
        "nightmill: stopped; the batches continue on the server\nwatch again with: nightmill watch\n"
    )


def test_list_of_another_server_has_no_limits_and_is_filtered_here(server, nightmill):
    serve(server, document(FIRST, "in_progress"), document(SECOND, "completed", failed=1))
    heading, *rows = nightmill("list").out.splitlines()
    assert heading.split() == ["ID", "STATUS", "DONE", "FAILED", "AGE", "ENDPOINT"]
    assert [row.split()[:4] for row in rows] == [
        ["11111111", "in_progress", "3/3", "0"],
        ["22222222", "completed", "3/3", "1"],
    ]
    assert nightmill("list", "-q", "--status", "completed").out == f"{SECOND}\n"


def test_show_says_why_lines_failed(server, nightmill):
    serve(server, document(FIRST, "completed", failed=1))
    ran = nightmill("show", "1111")
    shown = dict(line.split("  ", 1) for line in ran.out.splitlines())
    assert shown["lines"].strip() == "3 of 3 done (2 ok, 1 failed)"
    assert shown["failures"].strip() == '1 failed: 1x 404 "no such model"'
    assert "get the failed ones with: nightmill results 11111111 -e FILE" in ran.err


def test_results_say_which_lines_are_missing(server, nightmill):
    serve(server, document(FIRST, "completed", failed=1))
    ran = nightmill("results", "1111")
    assert ran.err.splitlines() == [
        '1 failed: 1x 404 "no such model"',
        "get them with: nightmill results 11111111 -e FILE",
    ]


def test_results_of_a_cancelled_batch_say_how_many_lines_are_left(server, nightmill):
    cancelled = document(FIRST, "cancelled") | {"error_file_id": "file-3"}
    cancelled["request_counts"] = {"total": 3, "completed": 1, "failed": 0}
    serve(server, cancelled)
    assert nightmill("results", "1111").err.splitlines() == [
        "2 lines left",
        "get them with: nightmill results 11111111 -e FILE",
    ]


def test_results_of_a_running_batch_say_how_to_go_on_with_the_same_filters(server, nightmill):
    running = document(FIRST, "in_progress")
    page = {"status": "in_progress", "cursor": "c-2", "has_more": True, "data": []}
    line = {"cursor": "c-1", "outcome": "failed", "line": LINE}
    pages = [page | {"data": [line]}, page]

    def answer(asked: Asked) -> tuple[int, bytes, dict[str, str]]:
        document = pages.pop(0) if "/results?" in asked.path else running
        return 200, json.dumps(document).encode(), {}

    server.answer = answer
    ran = nightmill("results", FIRST, "--outcome", "failed", "--custom-id", "a b", "--json")
    assert json.loads(ran.out)["cursor"] == "c-1"
    counts, go_on = ran.err.splitlines()
    assert counts == "in_progress: 3 of 3 done (3 ok, 0 failed)"
    assert go_on.startswith("go on with: nightmill results --follow 11111111 ")
    assert go_on.endswith(" --outcome failed --custom-id 'a b' --json --after c-1")


def test_ctrl_c_on_a_terminal_ends_the_display_without_a_traceback(server):
    serve(server, document(FIRST, "in_progress", failed=1))
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        [sys.executable, "-m", "nightmill", "watch", FIRST],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        printed = b""
        while b"3 of 3 done" not in printed:
            printed += os.read(screen, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the end of a pseudo-terminal
            while chunk := os.read(screen, 4096):
                printed += chunk
        assert process.wait() == 130
    os.close(screen)
    text = printed.decode()
    assert "━━━" in text
    assert "nightmill: stopped; the batch continues on the server" in text
    assert "watch again with: nightmill watch 11111111" in text
    assert "Traceback" not in text


def test_a_batch_with_another_beginning_is_never_taken(server, nightmill):
    server.answer = lambda _: (200, json.dumps({"data": [{"id": SECOND}]}).encode(), {})
    ran = nightmill("cancel", "1111")
    assert (ran.code, ran.out) == (2, "")
    assert "no batch begins with '1111'" in ran.err
    assert [asked.method for asked in server.asked] == ["GET"]
