"""Actions on batches in a browser: review, confirmation, countdown, undo, and what a crash leaves."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.dashboard.conftest import RunningServer, chat_line, running_server
from tests.dashboard.screens import in_both_themes
from tests.slow import only_slow

MINE = "/nightmill/v1/batches"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with an ended batch, whose upstream is paused from then on: further batches wait."""
    with running_server(tmp_path_factory.mktemp("actions")) as running:
        ended = running.submit(
            [chat_line("a", "one [emulate: 400]"), chat_line("b"), chat_line("c", "two [emulate: 400]")],
            metadata={"is": "ended"},
        )
        assert running.wait_until(ended).request_counts.failed == 2
        upstream = running.get("/nightmill/v1/upstreams")["data"][0]["name"]
        running.command("upstreams", "pause", upstream)
        yield running


@pytest.fixture(scope="module")
def ended_id(server: RunningServer) -> str:
    return str(server.get(f"{MINE}?metadata=is%3Dended")["data"][0]["id"])


def waiting(server: RunningServer, count: int, name: str) -> list[str]:
    made = [server.submit([chat_line("a")], metadata={"name": name}) for _ in range(count)]
    for batch_id in made:
        server.wait_until(batch_id, "in_progress")
    return made


def review(server: RunningServer, page: Page, **fields: Any) -> None:
    page.goto(f"{server.url}/ui/actions/review?{urlencode(fields, doseq=True)}")


def own(server: RunningServer, batch_id: str) -> Any:
    return server.get(f"{MINE}/{batch_id}")


def bar(page: Page) -> Locator:
    return page.locator("#action-bar")


def test_a_pause_is_counted_first_and_undone_with_one_click(server: RunningServer, page: Page) -> None:
    made = waiting(server, 2, "pause")
    review(server, page, action="pause", filter="metadata=name%3Dpause", next="./?status=in_progress")
    expect(page.locator("h1")).to_have_text("Pause 2 batches?")
    page.click("#confirm button")
    expect(bar(page)).to_contain_text("2 batches were paused.")
    assert page.url == f"{server.url}/?status=in_progress"
    assert all(own(server, batch_id)["paused_at"] for batch_id in made)
    page.click("#action-undo")
    expect(bar(page)).to_contain_text("Undone: 2 batches are as before.")
    assert not any(own(server, batch_id)["paused_at"] for batch_id in made)
    page.click("#action-close")
    expect(bar(page)).to_have_count(0)


def test_all_that_match_are_cancelled_after_a_countdown_that_a_kill_does_not_stop(
    server: RunningServer, context: BrowserContext
) -> None:
    page = context.new_page()  # one whose requests may fail
    made = waiting(server, 2, "cancel")
    review(server, page, action="cancel", filter="metadata=name%3Dcancel")
    page.click("#confirm button")
    expect(bar(page)).to_contain_text("2 batches will be cancelled in")
    page.click("#action-undo")
    expect(bar(page)).to_contain_text("Called off: nothing was changed.")
    review(server, page, action="cancel", filter="metadata=name%3Dcancel")
    page.click("#confirm button")
    first = bar(page).locator("p").inner_text()
    expect(bar(page).locator("p")).not_to_have_text(first)
    later = waiting(server, 1, "cancel")[0]
    server.process.kill()
    server.process.wait()
    server.start_again()
    expect(bar(page)).to_contain_text("2 batches were cancelled.", timeout=40_000)
    assert {own(server, batch_id)["status"] for batch_id in made} <= {"cancelling", "cancelled"}
    assert own(server, later)["status"] == "in_progress"
    expect(page.locator("#action-undo")).to_have_count(0)


def test_the_failed_lines_are_retried_in_a_new_batch_that_the_bar_links(
    server: RunningServer, page: Page, ended_id: str
) -> None:
    review(server, page, action="retry", ids=ended_id, next=f"ui/batches/{ended_id}")
    expect(page.locator("#confirm")).to_contain_text("2 failed lines will be sent again.")
    page.click("#confirm button")
    page.click("#action-start")
    link = bar(page).get_by_text("Open the new batch")
    new_id = str(link.get_attribute("href")).removeprefix("ui/batches/")
    assert server.wait_until(new_id, "in_progress").request_counts.total == 2
    page.click("#action-bar >> text=Details")
    expect(page.locator("#live-rows")).to_contain_text("1 new batch repeats the failed lines.")


@only_slow
def test_everything_works_without_scripts(server: RunningServer, browser: Browser) -> None:
    batch_id = waiting(server, 1, "plain")[0]
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(server.url)
    review(server, page, action="prioritize", priority=7, ids=batch_id)
    page.click("#confirm button")
    expect(bar(page)).to_contain_text("1 batch was given another priority.")
    assert own(server, batch_id)["priority"] == 7
    page.click("#action-undo")
    assert own(server, batch_id)["priority"] == 0
    expect(bar(page)).to_contain_text("Undone: 1 batch is as before.")
    context.close()


def test_a_form_that_is_sent_twice_orders_the_action_once(
    server: RunningServer, page: Page, ended_id: str
) -> None:
    before = len(server.get(f"{MINE}/actions?limit=100")["data"])
    review(server, page, action="retry", ids=ended_id)
    fields: dict[str, Any] = {
        str(one.get_attribute("name")): str(one.get_attribute("value"))
        for one in page.locator("#confirm input").all()
    }
    for _ in range(2):
        answer = page.request.post(f"{server.url}/ui/actions", form=fields, max_redirects=0)
        assert answer.status == 303
    after = server.get(f"{MINE}/actions?limit=100")["data"]
    assert len(after) == before + 1
    undone = page.request.post(
        f"{server.url}/ui/actions/{after[0]['id']}/undo", form={"csrf": fields["csrf"]}, max_redirects=0
    )
    assert undone.status == 303
    assert server.get(f"{MINE}/actions/{after[0]['id']}")["state"] == "cancelled"


@only_slow
def test_one_batch_is_steered_by_a_form(server: RunningServer, page: Page) -> None:
    batch_id = waiting(server, 1, "steer")[0]
    page.goto(server.url)
    token = str(page.locator("body").get_attribute("data-csrf"))
    before = own(server, batch_id)["deadline"]
    path = f"{server.url}/ui/batches/{batch_id}/steer"
    given: dict[str, Any] = {"csrf": token, "priority": "-3", "deadline_in_h": "0.5", "concurrency": "4"}
    assert page.request.post(path, form=given, max_redirects=0).status == 303
    after = own(server, batch_id)
    assert (after["priority"], after["concurrency"]) == (-3, 4)
    assert after["deadline"] < before
    assert page.request.post(path, form={**given, "priority": "much"}, max_redirects=0).status == 400
    assert page.request.post(path, form={**given, "csrf": "odd"}, max_redirects=0).status == 403


@pytest.mark.parametrize(
    "query",
    [
        "action=pause",
        "action=odd&ids=batch_1",
        "action=pause&filter=unknown%3D1",
        "action=pause&filter=created_after%3Dx",
        "action=prioritize&priority=%3Cscript%3E&ids=batch_1",
        "action=pause&filter=status%3D%3Cscript%3Ealert(1)%3C/script%3E",
    ],
)
def test_a_wrong_review_is_refused_and_never_reaches_more_batches(
    server: RunningServer, page: Page, query: str
) -> None:
    answer = page.goto(f"{server.url}/ui/actions/review?{query}")
    assert answer is not None
    assert answer.status == 400
    expect(page.locator("#confirm")).to_have_count(0)


def test_names_with_markup_are_text_and_foreign_pages_are_no_way_back(
    server: RunningServer, page: Page, ended_id: str
) -> None:
    odd = "<script>alert(1)</script>"
    review(server, page, action="retry", ids=ended_id, codes=odd, next="https://elsewhere.example/")
    expect(page.locator("#confirm")).to_contain_text(odd)
    expect(page.locator("#confirm a")).to_have_attribute("href", "./")
    page.context.add_cookies(
        [
            {
                "name": "nightmill_action",
                "value": f"action_{'0' * 32}.%3Cimg+src%3Dx%3E",
                "url": server.url,
            }
        ]
    )
    page.goto(f"{server.url}/ui/files")
    expect(bar(page)).to_have_count(0)


@only_slow
def test_the_pages_of_actions_are_accessible(server: RunningServer, page: Page, ended_id: str) -> None:
    review(server, page, action="retry", ids=ended_id)
    assert in_both_themes(page) == []
    token = page.locator("body").get_attribute("data-csrf")
    body = {"action": "retry", "ids": [ended_id], "delay_s": 3_600}
    ordered = page.request.post(f"{server.url}{MINE}/actions", data=body).json()
    remembered: Any = {"name": "nightmill_action", "value": f"{ordered['id']}.Waits", "url": server.url}
    page.context.add_cookies([remembered])
    page.goto(f"{server.url}/ui/actions/{ordered['id']}")
    expect(page.locator("#action-start")).to_be_visible()
    assert in_both_themes(page) == []
    page.goto(f"{server.url}/ui/actions")
    assert in_both_themes(page) == []
    page.request.post(f"{server.url}/ui/actions/{ordered['id']}/undo", form={"csrf": str(token)})
