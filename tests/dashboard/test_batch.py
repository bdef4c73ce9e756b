"""The page of one batch: what it shows while the batch runs and after its end, and what it does."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from nightmill.core.batch import TRANSITIONS, Status
from nightmill.dashboard.screens.batch_code import code_of
from nightmill.dashboard.screens.batch_graph import graph_of
from nightmill.dashboard.screens.batch_plots import attempt_s, plots_of
from tests.dashboard.conftest import RunningServer, chat_line, running_server
from tests.dashboard.screens import violations
from tests.slow import only_slow

SCRIPT = "<script>alert('content')</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"NIGHTMILL_UPSTREAM__CONCURRENCY": "2", "NIGHTMILL_UPSTREAM__MAX_ATTEMPTS": "1"}
    with running_server(tmp_path_factory.mktemp("batch"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def failed_lines(server: RunningServer) -> str:
    """An ended batch: three lines of one code, one of another, and two answers."""
    lines = [chat_line(f"long-{n}", f"{n} [emulate: 400, code too_long, times 1]") for n in range(3)]
    lines += [chat_line(SCRIPT, f"{SCRIPT} [emulate: 422]"), chat_line("good"), chat_line("ünï-🙂")]
    batch_id = server.submit(lines, metadata={SCRIPT: SCRIPT, "run": "nightly"})
    server.wait_until(batch_id)
    return batch_id


def document(server: RunningServer, batch_id: str, query: str = "") -> Any:
    return server.get(f"/ui/batches/{batch_id}?format=json{query}")


def test_an_ended_batch_shows_counts_states_files_and_history(
    server: RunningServer, page: Page, failed_lines: str
) -> None:
    page.goto(f"{server.url}/ui/batches/{failed_lines}")
    expect(page.locator("h1")).to_contain_text("completed")
    expect(page.locator(".legend")).to_contain_text("2 ok")
    expect(page.locator(".legend")).to_contain_text("4 failed")
    reached = page.locator(".graph .reached, .graph .current")
    assert [state.get_attribute("data-state") for state in reached.all()] == [
        "validating",
        "in_progress",
        "finalizing",
        "completed",
    ]
    expect(page.locator("#live-history")).to_contain_text("finalizing")
    expect(page.locator("#live-files tbody tr")).to_have_count(3)
    expect(page.locator("#live-receipt")).to_contain_text("of them failed")
    expect(page.locator("dl.pairs").first).to_contain_text(SCRIPT)


def test_failed_lines_become_a_new_batch_with_three_clicks(
    server: RunningServer, page: Page, failed_lines: str
) -> None:
    page.goto(server.url)
    page.click(f"#row-{failed_lines} a")
    group = page.locator(".group", has=page.get_by_text("too_long", exact=True))
    expect(group.locator("li")).to_have_count(3)
    expect(group.locator("li a").first).to_have_attribute(
        "href", f"ui/batches/{failed_lines}/lines?ordinal=0"
    )
    group.get_by_role("button", name="New batch from these").click()
    page.locator("main form button").first.click()
    expect(page).to_have_url(f"{server.url}/ui/batches/{failed_lines}")
    expect(page.locator(".facts")).to_contain_text("3 lines repeated by", timeout=60_000)
    page.locator(".facts a").first.click()
    expect(page.locator(".facts")).to_contain_text("repeats 3 lines of")
    expect(page.locator(".cards")).to_contain_text("3 of 3")


@only_slow
def test_a_line_that_is_no_json_is_named_by_its_number_and_not_retried(
    server: RunningServer, page: Page
) -> None:
    text = json.dumps(chat_line("good")) + "\n{not JSON\n"
    file = server.client.files.create(file=("broken.jsonl", text.encode()), purpose="batch")
    batch = server.client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        extra_body={"nightmill": {"on_invalid": "skip"}},
    )
    server.wait_until(batch.id)
    page.goto(f"{server.url}/ui/batches/{batch.id}")
    expect(page.locator("#live-failures")).to_contain_text("line 2")
    expect(page.locator("#live-failures")).to_contain_text("not parseable as valid JSON")
    expect(page.locator("#live-failures")).to_contain_text("a retry leaves them out")
    expect(page.locator("#live-failures button")).to_have_count(0)
    expect(page.locator("#live-latest")).to_contain_text("line 2")


def test_content_is_text_and_no_script(server: RunningServer, page: Page, failed_lines: str) -> None:
    dialogs: list[str] = []

    def note(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    page.goto(f"{server.url}/ui/batches/{failed_lines}")
    expect(page.locator(".tail")).to_contain_text("<script>alert")
    assert page.locator("main script").count() == 0
    assert dialogs == []


@only_slow
def test_names_that_are_markup_fit_a_phone(server: RunningServer, page: Page, failed_lines: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{server.url}/ui/batches/{failed_lines}")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert violations(page) == []


def test_a_running_batch_moves_by_itself_until_its_end(server: RunningServer, page: Page) -> None:
    lines = [chat_line(f"n{number}", f"{number} [emulate: slow, delay 0.4]") for number in range(16)]
    batch_id = server.submit(lines)
    page.goto(f"{server.url}/ui/batches/{batch_id}")
    expect(page.locator("h1 .status")).to_have_text("in progress")
    expect(page.locator("#live-latest tbody tr").first).to_be_visible()
    expect(page.locator("#why")).not_to_be_empty()
    expect(page.locator("h1 .status")).to_have_text("completed")
    expect(page.locator("#live-receipt")).to_contain_text("Receipt")
    expect(page.locator(".cards")).to_contain_text("16 of 16")


def test_the_tail_goes_on_after_a_restart_of_the_server(server: RunningServer, page: Page) -> None:
    lines = [chat_line(f"n{number}", f"t{number} [emulate: slow, delay 0.5]") for number in range(24)]
    batch_id = server.submit(lines)
    page.goto(f"{server.url}/ui/batches/{batch_id}")
    expect(page.locator("#live-latest tbody tr").first).to_be_visible()
    server.stop()
    expect(page.locator("#live-state")).to_have_text("reconnecting")
    server.start_again()
    expect(page.locator("#live-state")).to_have_text("live", timeout=60_000)
    expect(page.locator("#live-latest")).to_contain_text("n23", timeout=60_000)


def test_a_refused_file_shows_why_and_an_unknown_batch_is_not_found(
    server: RunningServer, page: Page
) -> None:
    batch_id = server.submit([chat_line("same"), chat_line("same", SCRIPT)])
    server.wait_until(batch_id)
    page.goto(f"{server.url}/ui/batches/{batch_id}")
    expect(page.locator("#live-figures")).to_contain_text("duplicate_custom_id")
    expect(page.locator('.graph .current[data-state="failed"]')).to_have_count(1)
    assert violations(page) == []
    answer = page.goto(f"{server.url}/ui/batches/batch_none")
    assert answer is not None
    assert answer.status == 404


@only_slow
def test_the_page_needs_no_script(server: RunningServer, browser: Browser, failed_lines: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{server.url}/ui/batches/{failed_lines}")
    expect(page.locator(".graph")).to_be_visible()
    page.locator(".group", has_text="too_long").get_by_role("button").click()
    expect(page.locator("main")).to_contain_text("too_long")
    expect(page).to_have_url(re.compile("ui/actions/review"))
    context.close()


@only_slow
def test_deleted_files_are_said_in_place_of_their_parts(server: RunningServer, page: Page) -> None:
    batch_id = server.submit([chat_line("a"), chat_line("b", "[emulate: 400] deleted")])
    ended = server.wait_until(batch_id)
    for file_id in (ended.input_file_id, ended.output_file_id, ended.error_file_id):
        server.client.files.delete(file_id)
    page.goto(f"{server.url}/ui/batches/{batch_id}")
    expect(page.locator("#live-failures")).to_contain_text("is deleted or has expired")
    expect(page.locator("#live-files")).to_contain_text("deleted or expired")
    expect(page.locator("#live-latest")).to_contain_text("deleted or empty")


def test_the_json_twin_has_what_the_page_shows(server: RunningServer, failed_lines: str) -> None:
    found = document(server, failed_lines)
    assert found["figures"]["total"] == 6
    assert {group["code"]: group["count"] for group in found["failures"]["data"]}["too_long"] == 3
    assert len(found["latest"]["data"]) == 6
    assert len(document(server, failed_lines, "&history=all")["events"]["data"]) >= 4


def test_a_server_that_hides_content_shows_no_prompt_and_no_answer(hiding: RunningServer, page: Page) -> None:
    batch_id = hiding.submit([chat_line("a", "secret-prompt"), chat_line("b", "[emulate: 400] secret")])
    hiding.wait_until(batch_id)
    text = json.dumps(document(hiding, batch_id))
    page.goto(f"{hiding.url}/ui/batches/{batch_id}")
    expect(page.locator("#live-latest")).to_contain_text("This server hides what is in them.")
    for shown in (text, page.content()):
        assert "emulated, no model" not in shown
        assert "fails on order" not in shown
        assert "secret" not in shown


def at(**stamps: int | None) -> dict[str, Any]:
    names = [f"{status.value}_at" for status in Status if status is not Status.VALIDATING]
    return {"created_at": 100, **dict.fromkeys(names), **stamps}


def test_the_picture_has_every_state_and_every_arrow_of_the_table() -> None:
    graph = graph_of({**at(), "status": "validating"})
    assert {state["name"] for state in graph["states"]} == {status.value for status in Status}
    assert len(graph["arrows"]) == len({(source, target) for (source, _), target in TRANSITIONS.items()})
    assert sum(len(arrow["label"].split(", ")) for arrow in graph["arrows"]) == len(TRANSITIONS)


@pytest.mark.parametrize(
    ("stamps", "path"),
    [
        (
            {"in_progress_at": 101, "finalizing_at": 105, "completed_at": 106},
            "in_progress finalizing completed",
        ),
        ({"in_progress_at": 101, "finalizing_at": 101, "expired_at": 101}, "in_progress finalizing expired"),
        ({"failed_at": 100}, "failed"),
        ({"cancelling_at": 103, "cancelled_at": 103}, "cancelling cancelled"),
        ({"in_progress_at": 103, "cancelling_at": 103}, "in_progress cancelling"),
    ],
)
def test_the_path_of_a_batch_follows_its_stamps(stamps: dict[str, int], path: str) -> None:
    states = ["validating", *path.split()]
    graph = graph_of({**at(**stamps), "status": states[-1]})
    assert [step["name"] for step in graph["path"]] == states
    assert sum(arrow["is_taken"] for arrow in graph["arrows"]) == len(states) - 1
    assert [state["name"] for state in graph["states"] if state["class"] == "current"] == [states[-1]]


def test_only_states_that_may_follow_are_open() -> None:
    graph = graph_of({**at(in_progress_at=101, finalizing_at=102), "status": "finalizing"})
    assert {state["name"] for state in graph["states"] if state["class"] == "open"} == {
        "completed",
        "expired",
    }


def sample(at_s: int, completed: int, failed: int = 0, in_flight: int = 4) -> dict[str, int]:
    return {
        "at": at_s,
        "completed": completed,
        "failed": failed,
        "input_tokens": 0,
        "output_tokens": 10 * completed,
        "in_flight": in_flight,
    }


def test_a_plot_has_what_was_added_each_second() -> None:
    samples = [sample(105, 10), sample(110, 30, 5), sample(120, 40, 5)]
    plots = plots_of(at(in_progress_at=100), samples, sample(122, 50, 5, in_flight=0))
    lines = plots[0]
    assert lines["times"] == [105, 110, 120, 122]
    assert {it["label"]: it["values"] for it in lines["series"]} == {
        "ok": [2.0, 4.0, 1.0, 5.0],
        "failed": [0.0, 1.0, 0.0, 0.0],
    }
    assert [plot["name"] for plot in plots] == ["throughput", "tokens", "in-flight"]
    assert plots_of(at(in_progress_at=100), [], sample(101, 10)) == []


def test_a_pause_is_a_gap_and_no_slope() -> None:
    samples = [sample(105, 50), sample(110, 100), sample(210, 110), sample(215, 160)]
    throughput, _, in_flight = plots_of(at(in_progress_at=100), samples, sample(220, 210))
    assert throughput["times"] == [105, 110, 111, 210, 215, 220]
    assert throughput["series"][0]["values"] == [10.0, 10.0, 0.1, 0.1, 10.0, 10.0]
    assert in_flight["series"][0]["values"] == [4, 4, None, 4, 4, 4]


def test_a_plot_of_a_long_batch_has_a_bounded_number_of_points() -> None:
    samples = [sample(100 + 5 * number, number) for number in range(1, 400)]
    assert len(plots_of(at(in_progress_at=100), samples, sample(3_000, 400))[0]["times"]) <= 240


def test_the_mean_duration_is_lines_in_flight_over_the_rate() -> None:
    assert attempt_s([sample(100, 0), sample(110, 20), sample(120, 40)]) == pytest.approx(2.0)
    assert attempt_s([sample(100, 0)]) is None
    assert attempt_s([sample(100, 5), sample(110, 5), sample(120, 5)]) is None


def test_the_code_quotes_whatever_metadata_holds() -> None:
    batch = {
        "id": "batch_1",
        "input_file_id": "file-1",
        "output_file_id": None,
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
        "metadata": {"it's": '"$(reboot)"\n'},
    }
    own = {"options": {"canary": 5, "record_attempts": True, "on_invalid": "fail"}, "priority": 2}
    python, curl, nightmill = (text["text"] for text in code_of("http://h/v1", batch, own))
    compile(python, "code", "exec")
    assert """-d '{"input_file_id": "file-1",""" in curl
    assert re.search(r"--metadata '?.*it'\"'\"'s", nightmill)
    assert nightmill.endswith("--canary 5 --priority 2 --record-attempts")
