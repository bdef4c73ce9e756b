"""The list of batches: filters in the address, live rows, selection, pages and the keyboard."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import pytest
from playwright.sync_api import Browser, Page, expect
from playwright.sync_api import Request as Sent
from starlette.requests import Request

from nightmill.dashboard.batch_rows import row_of
from nightmill.dashboard.pages import fragment
from tests.dashboard.conftest import RunningServer, chat_line, running_server
from tests.dashboard.screens import in_both_themes, violations
from tests.slow import only_slow

NAME = "tickets <script>document.title='changed'</script> ünïcode.jsonl"
SECRET = "the text of a prompt"


class Seed:
    """Batches of several kinds on one server."""

    def __init__(self, server: RunningServer) -> None:
        quick = chat_line("quick", SECRET, "slow")
        self.running = submit(server, [quick, *slow_lines("running")], "running.jsonl", seed="open")
        self.other = submit(server, slow_lines("other"), "other.jsonl", seed="open")
        self.failed = submit(
            server, [chat_line("a", "[emulate: 400]"), chat_line("b")], NAME, team="<b>ads</b>"
        )
        self.done = submit(server, [chat_line("done-1"), chat_line("done-2")], "done.jsonl", team="search")
        server.wait_until(self.failed)
        server.wait_until(self.done)
        self.paused = submit(server, slow_lines("paused"), "paused.jsonl", seed="open")
        pause(server, self.paused)


def slow_lines(name: str) -> list[dict[str, Any]]:
    """Lines that are not answered while a test runs."""
    texts = [f"{name} {number} [emulate: slow, delay 600]" for number in range(4)]
    return [chat_line(f"{name}-{number}", text, "slow") for number, text in enumerate(texts)]


def submit(server: RunningServer, lines: list[dict[str, Any]], name: str, **metadata: str) -> str:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = server.client.files.create(file=(name, text.encode()), purpose="batch")
    return create(server, file.id, **metadata)


def pause(server: RunningServer, batch_id: str) -> None:
    server.client.post(f"{server.url}/nightmill/v1/batches/{batch_id}/pause", cast_to=object)


def create(server: RunningServer, file_id: str, **metadata: str) -> str:
    return server.client.batches.create(
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata=metadata or None,
    ).id


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """With room for many slow lines."""
    settings = {"NIGHTMILL_UPSTREAM__CONCURRENCY": "100"}
    with running_server(tmp_path_factory.mktemp("batches"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def seed(server: RunningServer) -> Seed:
    return Seed(server)


def ids(page: Page) -> list[str]:
    return [str(row.get_attribute("data-id")) for row in page.locator("[data-row]").all()]


def posted(page: Page) -> list[dict[str, list[str]]]:
    """The forms that the page sends to the review of an action, as they are sent."""
    found: list[dict[str, list[str]]] = []

    def keep(request: Sent) -> None:
        if request.method == "POST":
            found.append(parse_qs(request.post_data or "", keep_blank_values=True))

    page.on("request", keep)
    page.route("**/ui/actions/review", lambda route: route.fulfill(status=200, body="reviewed"))
    return found


def test_unfinished_batches_come_first_with_what_limits_them(
    server: RunningServer, seed: Seed, page: Page
) -> None:
    rows = server.get("/?format=json")["batches"]
    is_open = [row["is_open"] for row in rows]
    assert is_open == sorted(is_open, reverse=True)
    assert {seed.running, seed.other, seed.paused} <= {row["id"] for row in rows if row["is_open"]}
    page.goto(server.url)
    expect(page.locator(f"#row-{seed.paused} .why")).to_contain_text("It is paused")
    expect(page.locator(f"#row-{seed.running} .done")).to_contain_text("1 of 5")
    expect(page.locator(f"#row-{seed.running} .progress")).to_have_attribute("aria-label", re.compile("1 ok"))
    expect(page.locator(f"#row-{seed.failed} .done")).to_contain_text("1 failed")
    expect(page.locator(f"#row-{seed.done} .end")).to_contain_text("took")


def test_a_chip_filters_and_its_count_is_live(server: RunningServer, page: Page) -> None:
    line = chat_line("a", model="chips")
    ended = {submit(server, [line], "chips.jsonl") for _ in range(2)}
    for batch_id in ended:
        server.wait_until(batch_id)
    page.goto(f"{server.url}/?model=chips")
    expect(page.locator("#chip-completed .count")).to_have_text("2")
    page.click("#chip-completed")
    expect(page).to_have_url(f"{server.url}/?model=chips&status=completed")
    assert set(ids(page)) == ended
    held = submit(server, [chat_line("a", "[emulate: slow, delay 600]", "chips")], "chips.jsonl")
    pause(server, held)
    expect(page.locator("#chip-paused .count")).to_have_text("1")
    server.wait_until(submit(server, [line], "chips.jsonl"))
    expect(page.locator("#chip-completed .count")).to_have_text("3")
    expect(page.locator("#live-matching b")).to_have_text("3")
    assert held not in ids(page)


def test_filters_add_up_in_the_address_and_are_taken_away_one_by_one(
    server: RunningServer, seed: Seed, page: Page
) -> None:
    page.goto(server.url)
    page.locator("summary", has_text="Model").click()
    page.locator(".menu[open] a", has_text="slow").click()
    page.click("#chip-paused")
    expect(page).to_have_url(f"{server.url}/?model=slow&status=paused")
    assert seed.paused in ids(page)
    assert set(page.locator("[data-row] .status").all_inner_texts()) == {"paused"}
    page.locator(".applied a", has_text="model: slow").click()
    expect(page).to_have_url(f"{server.url}/?status=paused")


def test_a_pair_of_metadata_is_chosen_from_a_menu_as_text(
    server: RunningServer, seed: Seed, page: Page
) -> None:
    page.goto(server.url)
    page.locator("summary", has_text="Metadata").click()
    page.locator(".menu[open] a", has_text="<b>ads</b>").click()
    assert ids(page) == [seed.failed]
    expect(page.locator(f"#row-{seed.failed} .file")).to_have_text(NAME)
    assert "changed" not in page.title()


def test_a_search_finds_ids_and_names_of_files(server: RunningServer, seed: Seed, page: Page) -> None:
    page.goto(server.url)
    page.keyboard.press("/")
    page.keyboard.type("DONE.json")
    page.keyboard.press("Enter")
    expect(page.locator("[data-row]")).to_have_count(1)
    assert ids(page) == [seed.done]
    page.goto(f"{server.url}/?q={seed.other[:14]}")
    assert ids(page) == [seed.other]
    page.goto(f"{server.url}/?q=nothing-has-this-name")
    expect(page.locator(".empty")).to_contain_text("No batch matches")


def test_a_line_is_found_by_its_custom_id(server: RunningServer, seed: Seed, page: Page) -> None:
    page.goto(f"{server.url}/?model=emulated")
    page.fill("[data-search]", "done-2")
    page.click("text=Find custom_id")
    expect(page.locator("[data-row]")).to_have_count(1)
    link = page.locator("[data-row] a").first
    assert link.get_attribute("href") == f"ui/batches/{seed.done}/lines/2"
    assert violations(page) == []
    page.fill("[data-search]", "<b>no such line</b>")
    page.keyboard.press("Enter")
    expect(page.locator(".empty")).to_have_text("No line has this custom_id.")
    expect(page.locator("h2 .id")).to_have_text("<b>no such line</b>")


@only_slow
def test_last_night_is_a_night_of_the_reader(server: RunningServer, browser: Browser, seed: Seed) -> None:
    context = browser.new_context(timezone_id="Asia/Tokyo")
    page = context.new_page()
    page.goto(server.url)
    page.locator(".filters > .chips a", has_text="Last night").click()
    assert dict(parse_qsl(page.url.partition("?")[2])) == {"range": "night", "tz": "Asia/Tokyo"}
    context.close()


@only_slow
def test_a_filter_that_cannot_be_read_is_refused(server: RunningServer, page: Page) -> None:
    for query in ("range=never", "status=gone", "from=noon", "upstream=nothing"):
        answer = page.goto(f"{server.url}/?{query}")
        assert answer is not None and answer.status == 400, query
        expect(page.locator(".problem")).to_be_visible()


def test_selected_rows_are_sent_even_if_they_leave_the_page(
    server: RunningServer, seed: Seed, page: Page
) -> None:
    forms = posted(page)
    leaving = submit(server, slow_lines("leaving"), "leaving.jsonl")
    page.goto(f"{server.url}/?status=in_progress")
    expect(page.locator("#bulk [value=pause]")).to_be_disabled()
    page.check(f"#pick-{seed.running}")
    page.check(f"#pick-{leaving}")
    expect(page.locator("#chosen-count")).to_have_text("2 selected:")
    pause(server, leaving)
    expect(page.locator(f"#row-{leaving}")).to_have_count(0)
    expect(page.locator(f"#pick-{seed.running}")).to_be_checked()
    page.click("#bulk [value=pause]")
    page.wait_for_url("**/ui/actions/review")
    assert forms[0]["action"] == ["pause"]
    assert set(forms[0]["ids"]) == {seed.running, leaving}
    assert "filter" not in forms[0] and forms[0]["next"] == ["./?status=in_progress"]


def test_all_that_match_are_sent_as_a_filter(server: RunningServer, seed: Seed, page: Page) -> None:
    forms = posted(page)
    page.goto(f"{server.url}/?status=completed&model=emulated")
    count = page.locator("#live-matching b").inner_text()
    page.check("#all-matching")
    expect(page.locator("#chosen-count")).to_have_text(f"All {count} matching:")
    page.fill("#bulk-priority", "7")
    page.click("#bulk [value=prioritize]")
    page.wait_for_url("**/ui/actions/review")
    assert forms[0]["filter"] == ["status=completed&model=emulated"]
    assert "ids" not in forms[0]
    assert (forms[0]["action"], forms[0]["priority"]) == (["prioritize"], ["7"])


def test_the_keyboard_walks_selects_and_opens(server: RunningServer, seed: Seed, page: Page) -> None:
    page.goto(f"{server.url}/?status=unfinished&metadata=seed%3Dopen")
    expect(page.locator("[data-row]")).to_have_count(3)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("x")
    chosen = page.locator("[data-row].picked")
    expect(chosen).to_have_count(1)
    assert chosen.get_attribute("data-id") == ids(page)[1]
    page.keyboard.press("Escape")
    expect(chosen).to_have_count(0)
    second = ids(page)[1]
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/ui/batches/{second}")


def test_a_page_keeps_its_place_while_new_batches_arrive(
    server: RunningServer, seed: Seed, page: Page
) -> None:
    text = json.dumps(chat_line("p", model="paged")) + "\n"
    file = server.client.files.create(file=("paged.jsonl", text.encode()), purpose="batch")
    for batch_id in [create(server, file.id) for _ in range(5)]:
        server.wait_until(batch_id)  # unfinished batches come first, so their place changes when they end
    page.goto(f"{server.url}/?model=paged&rows=3")
    expect(page.locator("#live-matching b")).to_have_text("5")
    first = ids(page)
    assert len(first) == 3
    page.locator(".paging a", has_text="Older").click()
    expect(page.locator("[data-row]")).to_have_count(2)
    second = ids(page)
    create(server, file.id)
    expect(page.locator("#live-matching b")).to_have_text("6")
    assert ids(page) == second
    page.locator(".paging a", has_text="Newer").click()
    expect(page.locator("[data-row]")).to_have_count(3)


@only_slow
def test_the_list_works_without_scripts(server: RunningServer, browser: Browser, seed: Seed) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    forms = posted(page)
    page.goto(f"{server.url}/?q=done.json")
    page.check(f"#pick-{seed.done}")
    page.click("#bulk [value=retry]")
    page.wait_for_url("**/ui/actions/review")
    assert (forms[0]["action"], forms[0]["ids"]) == (["retry"], [seed.done])
    assert forms[0]["csrf"][0]
    context.close()


def test_a_forecast_that_misses_the_deadline_is_marked_in_words() -> None:
    batch = {
        "id": "batch_1",
        "status": "in_progress",
        "endpoint": "/v1/chat/completions",
        "file_name": NAME,
        "created_at": 1_000,
        "deadline": 2_000,
        "request_counts": {"total": 10, "completed": 5, "failed": 1},
        "forecast": {"ends_at": 2_000 + 3 * 3600, "deadline_odds": 0.1, "in_flight": 2},
        "why": {"sentence": "<b>Waits</b>"},
    }
    paging = {"first": None, "previous": None, "next": None, "number": 1}
    document = {"batches": [row_of(batch)], "matching": 1, "paging": paging, "filtered": False, "search": ""}
    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
    }
    html = bytes(fragment(Request(scope), "batches.html", "rows", document, shows_content=True).body).decode()
    assert "late by 3 h" in html and "10%" in html
    assert "<script>" not in html and "<b>Waits" not in html


@only_slow
def test_a_view_is_kept_by_the_browser(server: RunningServer, seed: Seed, page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept("My <b>slow</b> ones"))
    page.goto(f"{server.url}/?model=slow")
    page.locator("summary", has_text="Views").click()
    page.click("[data-keep-view]")
    page.goto(server.url)
    page.locator("summary", has_text="Views").click()
    page.locator("#own-views a", has_text="My <b>slow</b> ones").click()
    expect(page).to_have_url(f"{server.url}/?model=slow")


@only_slow
def test_the_list_has_nothing_of_prompts_and_answers(server: RunningServer, seed: Seed, page: Page) -> None:
    assert SECRET not in json.dumps(server.get("/?format=json"))
    page.goto(server.url)
    assert SECRET not in page.content()


def test_a_list_with_an_open_menu_and_a_chosen_row_is_accessible_in_both_themes(
    server: RunningServer, seed: Seed, page: Page
) -> None:
    page.goto(f"{server.url}/?model=slow")
    page.locator("summary", has_text="Metadata").click()
    page.check(f"#pick-{seed.running}")
    assert in_both_themes(page) == []


@pytest.fixture
def empty(tmp_path: Any) -> Iterator[RunningServer]:
    with running_server(tmp_path) as running:
        yield running


@only_slow
def test_an_empty_list_teaches_the_first_command(empty: RunningServer, page: Page) -> None:
    page.goto(empty.url)
    expect(page.locator(".empty")).to_contain_text("nightmill submit FILE.jsonl --watch")
    empty.submit([chat_line("a")])
    expect(page.locator("[data-row]")).to_have_count(1)


def test_failed_lines_are_found_and_sent_again_with_three_clicks(
    server: RunningServer, seed: Seed, page: Page
) -> None:
    page.goto(f"{server.url}/")
    row = page.locator("[data-row]", has_text="1 failed").first
    row.locator("input[name=ids]").click()
    page.click("text=Retry failed lines")
    page.click("#confirm button")
    expect(page).to_have_url(f"{server.url}/")
    expect(page.locator("#action-bar")).to_contain_text("failed lines of 1 batch")
    page.click("#action-undo")
    expect(page.locator("#action-bar")).to_contain_text("Called off")


def test_all_that_match_are_cancelled(server: RunningServer, page: Page) -> None:
    ids = [submit(server, slow_lines(f"stop-{number}"), f"stop-{number}.jsonl") for number in range(3)]
    for batch_id in ids:
        pause(server, batch_id)
    page.goto(f"{server.url}/?q=stop-&status=unfinished")
    page.check("#all-matching")
    page.click("#bulk [value=cancel]")
    expect(page.locator("h1")).to_have_text("Cancel 3 batches?")
    page.click("#confirm button")
    expect(page).to_have_url(f"{server.url}/?q=stop-&status=unfinished")
    page.click("#action-start")
    for batch_id in ids:  # attempts that were in flight before the pause may still finish
        server.wait_until(batch_id, "cancelling", "cancelled")
