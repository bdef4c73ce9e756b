"""What the crash harness takes from the record of its model server."""

from pathlib import Path

from nightmill_torture.record import Record, Request


def test_a_request_that_belongs_to_no_line_is_no_repeat_of_one(tmp_path: Path):
    path = tmp_path / "record"
    path.write_text("t2-0 host-1 10.5\na5037a285f6c09bf host-1 11.0\nt2-1\nt2-0 host-2 12.0\nt2-")
    record = Record(path)
    assert record.take() == 4
    # The answers of the model server name the requests by their places among all.
    assert record.markers == ["t2-0", "a5037a285f6c09bf", "t2-1", "t2-0"]
    assert record.requests == [Request("t2-0", "host-1", 10.5), Request("t2-0", "host-2", 12.0)]
