"""An upstream that refuses the key, seen from outside: log, /ready, /metrics and progress say why."""

from pathlib import Path

import nightmill
from nightmill.runtime.run_file import Progress
from tests.faults.conftest import answer, rogue_in_a_thread, well
from tests.faults.served import assert_each_line_once, request_lines, serving


def test_a_refused_key_is_said_in_the_log_and_at_ready_until_it_is_mended(tmp_path: Path):
    with rogue_in_a_thread() as rogue:
        rogue.always = lambda _: (answer(b'{"error": {"message": "no"}}', status="401 Unauthorized"),)
        with serving(tmp_path, flags=("--upstream", rogue.url), worker__beat_s=0.1) as served:
            assert served.send("GET", "/ready")[2] == {"status": "ready"}
            batch_id = served.batch(request_lines(50))
            line = served.until_logged("is held since")
            assert "ERROR" in line
            assert "it refuses our key (401); check upstream.api_key" in line
            status, _, ready = served.send("GET", "/ready")
            assert status == 200
            assert ready["status"] == "ready"
            assert "it refuses our key (401); check upstream.api_key" in ready["trouble"]
            [held] = ready["held"]
            assert held["reason"] == "it refuses our key (401); check upstream.api_key"
            assert held["needs_operator"]
            assert held["since"] <= held["until"]
            gauge = b'nightmill_upstream_held{model="m",needs_operator="true",upstream="default"} 1.0'
            assert gauge in served.send("GET", "/metrics")[2]
            assert served.see(batch_id)["request_counts"] == {"total": 50, "completed": 0, "failed": 0}

            rogue.always = well
            ended = served.until_ended(batch_id)
            assert ended["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
            assert_each_line_once(served.rows(ended), 50)
            served.until_no_problem_is_shown()


def test_a_run_shows_in_its_progress_what_is_held(tmp_path: Path):
    source = tmp_path / "in.jsonl"
    source.write_bytes(request_lines(3))
    seen: list[str] = []
    with rogue_in_a_thread() as rogue:
        rogue.always = lambda _: (answer(b'{"error": {"message": "no"}}', status="401 Unauthorized"),)

        def show(progress: Progress) -> None:
            if progress.held is not None:
                seen.append(progress.held)
                rogue.always = well

        summary = nightmill.run(source, upstream=rogue.url, on_progress=show)
    assert "is held since" in seen[0]
    assert "it refuses our key (401); check upstream.api_key; next attempt at" in seen[0]
    assert summary.completed == 3
