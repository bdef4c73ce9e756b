"""What every page has: the navigation, live updates, the theme, the keyboard and the security headers."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.conftest import RunningServer, chat_line, running_server
from tests.slow import only_slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that a test may stop."""
    with running_server(tmp_path_factory.mktemp("skeleton")) as running:
        yield running


def test_the_first_page_links_every_area(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    for area in page.locator("nav a").all():
        href = area.get_attribute("href")
        assert href is not None
        answer = page.request.get(f"{server.url}/{href.removeprefix('./')}")
        assert answer.status == 200, href
    expect(page.locator("nav a[aria-current=page]")).to_have_text("Batches")


@only_slow
def test_the_theme_is_kept_without_a_script(server: RunningServer, page: Page) -> None:
    page.goto(server.url + "/ui/files")
    page.select_option("#theme-choice", "dark")
    page.wait_for_load_state()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.url == server.url + "/ui/files"


@only_slow
def test_a_question_mark_shows_the_keys(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()


def test_times_are_kept_current_and_a_forecast_is_never_in_the_past(
    server: RunningServer, page: Page
) -> None:
    page.goto(server.url)
    page.evaluate("""() => {
      for (const mark of ["data-ago", "data-coming"]) {
        const time = document.createElement("time");
        time.id = mark;
        time.dateTime = "2020-01-01T00:00:00+00:00";
        time.setAttribute(mark, "");
        document.querySelector("main").append(time);
      }
    }""")
    expect(page.locator("#data-ago")).to_have_text(re.compile(r"\d+ d ago"))
    expect(page.locator("#data-coming")).to_have_text("any moment")


def test_a_new_batch_appears_by_itself_and_the_stream_goes_on_after_a_restart(
    server: RunningServer, page: Page
) -> None:
    page.goto(server.url)
    expect(page.locator("#live-state")).to_have_text("live")
    batch_id = server.submit([chat_line("a"), chat_line("b")])
    expect(page.locator(f"#row-{batch_id} .status")).to_have_text("completed")
    server.stop()
    expect(page.locator("#live-state")).to_have_text("reconnecting")
    server.start_again()
    expect(page.locator("#live-state")).to_have_text("live")
    later_id = server.submit([chat_line("a")])
    expect(page.locator(f"#row-{later_id}")).to_be_visible()
