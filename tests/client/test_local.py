"""`nightmill.run` as a function of the client. The roles that it runs have their own tests."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import nightmill
from nightmill.client import local
from nightmill.client.local import default_paths, finished
from nightmill.errors import RequestError, SetupError


@pytest.mark.parametrize(
    ("given", "output", "errors"),
    [
        ("a/in.jsonl", "a/in_output.jsonl", "a/in_error.jsonl"),
        ("v1.2", "v1.2_output.jsonl", "v1.2_error.jsonl"),
    ],
)
def test_output_files_are_written_beside_the_input(given, output, errors):
    assert default_paths(Path(given)) == (Path(output), Path(errors))


async def answer() -> str:
    await asyncio.sleep(0)
    return "done"


def test_a_coroutine_runs_without_a_running_event_loop():
    assert finished(answer()) == "done"


def test_ctrl_c_before_the_loop_runs_leaves_no_warning_behind(monkeypatch):
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "_in_a_loop", interrupted)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            finished(answer())
    assert warned == []


async def test_a_coroutine_runs_while_an_event_loop_is_running():
    assert finished(answer()) == "done"


async def test_ctrl_c_cancels_work_in_the_loop_of_another_thread():
    """As in a notebook, whose own loop leaves Ctrl-C to Python."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    ended = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    try:
        with pytest.raises(KeyboardInterrupt):
            finished(work())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended == ["cancelled"]


def test_importing_nightmill_imports_no_heavy_package():
    program = (
        "import sys, nightmill; heavy = {'openai', 'pydantic', 'typer', 'asyncio', 'sqlalchemy'}; "
        "print(sorted(heavy & set(sys.modules))); nightmill.client; print('openai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nFalse\n"


@pytest.mark.parametrize("owner", [nightmill, nightmill.client])
def test_an_unknown_attribute_raises_an_attribute_error(owner):
    with pytest.raises(AttributeError):
        owner.nonsense  # noqa: B018 - the access is the test


def test_every_exported_name_exists():
    assert [name for name in nightmill.client.__all__ if not hasattr(nightmill.client, name)] == []
    assert nightmill.run is nightmill.client.run


def input_file(folder: Path, *urls: str) -> Path:
    path = folder / "in.jsonl"
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": body})
        for number, url in enumerate(urls)
    ]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_file_is_answered_and_progress_is_reported(tmp_path):
    seen = []
    path = input_file(tmp_path, *["/v1/chat/completions"] * 3)
    summary = nightmill.run(path, emulate=True, on_progress=seen.append)
    assert (summary.status, summary.total, summary.completed, summary.failed) == ("completed", 3, 3, 0)
    assert summary.output_path == tmp_path / "in_output.jsonl"
    assert summary.output_path.read_bytes().count(b"\n") == 3
    assert summary.error_path is None
    assert seen[-1].status == "completed"


def test_no_line_is_sent_when_a_line_is_invalid(tmp_path):
    path = input_file(tmp_path, "/v1/chat/completions", "/v1/embeddings")
    summary = nightmill.run(str(path), emulate=True, on_progress=lambda _: None)
    assert summary.status == "failed"
    assert [error.line for error in summary.errors] == [2]
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_file_in_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "in.jsonl"
    path.write_text('{"custom_id": "a"}\n', encoding=encoding)
    with pytest.raises(RequestError, match="is UTF-16 text"):
        nightmill.run(path, emulate=True)


def test_without_an_upstream_the_run_is_refused(tmp_path):
    with pytest.raises(SetupError, match="--upstream"):
        nightmill.run(input_file(tmp_path, "/v1/chat/completions"), on_progress=lambda _: None)


def test_a_missing_file_is_named_in_the_error(tmp_path):
    with pytest.raises(RequestError, match=r"nowhere\.jsonl"):
        nightmill.run(tmp_path / "nowhere.jsonl", emulate=True, on_progress=lambda _: None)
