"""The fields of log lines, the format that fits the reader, and the level that changes at run time."""

import io
import json
import logging
import signal
import subprocess
import sys
from typing import Any

import pytest

from nightmill import telemetry
from nightmill.core.batch import Batch, Status, Tally
from nightmill.errors import UnavailableError
from nightmill.ids import BatchId, FileId, ProjectId
from nightmill.runtime import logs
from nightmill.runtime.child import LEVEL_BYTES, NOTIFY, level_in
from tests.faults.served import request_lines, serving

BATCH = Batch(
    id=BatchId("batch_1"),
    project_id=ProjectId("p"),
    endpoint="/v1/embeddings",
    input_file_id=FileId("file-1"),
    input_blob_key="files/1",
    completion_window="24h",
    created_at=100,
    expires_at=1_000,
    status=Status.FINALIZING,
    total=5,
    tally=Tally(completed=3, failed=2),
)
OF_SEGMENT = {"batch_id": "batch_1", "segment": 4, "token": 2}
EVENTS: list[tuple[telemetry.Event, dict[str, Any]]] = [
    (
        telemetry.BatchMoved(BATCH),
        {
            "batch_id": "batch_1",
            "project_id": "p",
            "status": "finalizing",
            "completed": 3,
            "failed": 2,
            "total": 5,
        },
    ),
    (telemetry.SegmentLeased(BATCH.id, 4, 2), OF_SEGMENT),
    (telemetry.SegmentDone(BATCH.id, 4, 2, 7), {**OF_SEGMENT, "answered": 7}),
    (telemetry.LeaseWasLost(BATCH.id, 4, 2), OF_SEGMENT),
    (
        telemetry.UpstreamHeld("gpu", "m", "it answers 503", 1.0, 2.0),
        {
            "upstream": "gpu",
            "model": "m",
            "reason": "it answers 503",
            "since": 1.0,
            "until": 2.0,
            "needs_operator": False,
        },
    ),
    (telemetry.UpstreamResumed("gpu", None, 3.5), {"upstream": "gpu", "model": None, "held_s": 3.5}),
    (telemetry.UpstreamChanged("gpu", "paused", 2), {"upstream": "gpu", "state": "paused", "revision": 2}),
    (telemetry.UpstreamInvalid("gpu", "no url"), {"upstream": "gpu", "reason": "no url"}),
    (telemetry.WritingPaused("full"), {"reason": "full"}),
    (telemetry.WritingResumed(), {}),
    (
        telemetry.RoleFailed("worker", UnavailableError("away", retry_after_s=1)),
        {"failed_role": "worker", "error": "UnavailableError"},
    ),
    (telemetry.RoleFailed("worker", ValueError()), {"failed_role": "worker", "error": "ValueError"}),
    (telemetry.ProcessDied("worker 0", -9), {"process": "worker 0", "exit_code": -9}),
]


@pytest.mark.parametrize(("event", "fields"), EVENTS, ids=lambda value: type(value).__name__)
def test_a_line_has_the_values_of_its_event_as_fields(event: telemetry.Event, fields: dict[str, Any], caplog):
    with caplog.at_level(logging.DEBUG, logger="nightmill"):
        telemetry.log(event)
    (record,) = caplog.records
    line = json.loads(logs.JsonFormatter({"role": "keeper"}).format(record))
    expected = {"role": "keeper", "event": type(event).__name__, **fields}
    assert expected.items() <= line.items()
    assert set(line) - set(expected) <= {"time", "level", "message", "traceback"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("log_format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("text", io.StringIO(), False),
    ],
)
def test_lines_are_json_unless_a_person_reads_them(monkeypatch, log_format, stream, is_json):
    monkeypatch.setattr(sys, "stderr", stream)
    assert logs._is_json(log_format) is is_json


def test_the_newest_level_of_several_messages_counts():
    assert level_in(NOTIFY * 3) is None
    assert level_in(LEVEL_BYTES["debug"] + NOTIFY + LEVEL_BYTES["error"] + NOTIFY) == "error"


def test_a_server_logs_one_json_line_for_each_move_of_a_batch(tmp_path):
    with serving(tmp_path) as served:
        batch_id = served.batch(request_lines(3))
        served.until_ended(batch_id)
        served.until_logged('"status": "completed"')
    lines = [json.loads(line) for line in served.log_lines]
    moves = [(line["status"], line["role"]) for line in lines if line.get("batch_id") == batch_id]
    keeper = "intake finalizer maintenance observer"
    assert [status for status, _ in moves] == ["validating", "in_progress", "finalizing", "completed"]
    assert moves[0][1] == "server"
    assert all(set(keeper.split()) <= set(role.split()) for _, role in moves[1:])
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    (listens,) = [line for line in lines if "listens on" in line["message"]]
    assert listens["role"] == "server"


def test_the_level_changes_in_all_processes_while_the_server_runs(tmp_path):
    with serving(tmp_path) as served:
        served.until_ended(served.batch(request_lines(3)))
        assert not served.logged("leased under token")
        changed = served.send(
            "POST", "/nightmill/v1/log_level", b'{"level": "debug"}', {"content-type": "application/json"}
        )
        assert (changed[0], changed[2]) == (200, {"level": "debug"})
        served.until_ended(served.batch(request_lines(3)))
        leased = json.loads(served.until_logged("leased under token"))
        assert (leased["level"], leased["segment"]) == ("DEBUG", 0)
        assert leased["role"] == "worker:0"
        served.process.send_signal(signal.SIGUSR2)
        served.until_logged("the log level is info")
        assert served.send("GET", "/nightmill/v1/log_level")[2] == {"level": "info"}
        served.process.send_signal(signal.SIGUSR1)
        served.until_logged("the log level is debug")


def test_text_can_be_asked_for_without_a_terminal(tmp_path):
    with serving(tmp_path, log_format="text") as served:
        served.until_ended(served.batch(request_lines(1)))
        served.until_logged("is completed: 1 of 1 done (1 ok, 0 failed)")
    assert not [line for line in served.log_lines if line.startswith("{")]


def test_logs_load_no_heavy_module():
    program = "import sys, nightmill.runtime.logs; sys.exit('sqlalchemy' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
