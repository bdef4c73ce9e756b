"""Every screen: axe-core with data and without, on a phone, without scripts and on paper."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.conftest import RunningServer, chat_line, running_server
from tests.dashboard.sample import SETTINGS, Sample, fill
from tests.dashboard.screens import SCREENS, address, in_both_themes, violations
from tests.slow import only_slow

HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
COUNT_SHIFTS = """() => {
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries())
      if (!entry.hadRecentInput)
        window.shifts.push(entry.sources.map((one) => one.node?.outerHTML ?? one.node?.data).join(" | "));
  }).observe({type: "layout-shift", buffered: false});
}"""
UPDATES = 4


def in_every_run(*names: str, always: tuple[str, ...]) -> list[Any]:
    """The screens as parameters: those of `always` in every run, the others in `make test-slow`."""
    return [pytest.param(name, marks=() if name in always else only_slow) for name in names]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Sample]]:
    """A server with batches of every kind; one of them runs until the end of the tests."""
    with running_server(tmp_path_factory.mktemp("filled"), **SETTINGS) as server:
        yield server, fill(server, running_lines=20_000)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that was never used."""
    with running_server(tmp_path_factory.mktemp("empty")) as server:
        yield server


@pytest.fixture
def plain_page(browser: Browser) -> Iterator[Page]:
    """A tab of a browser without JavaScript."""
    context = browser.new_context(java_script_enabled=False)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("name", SCREENS)
def test_a_filled_screen_has_no_violation_in_either_theme_and_fits_a_phone(
    filled: tuple[RunningServer, Sample], page: Page, name: str
) -> None:
    server, sample = filled
    page.goto(server.url + address(name, sample))
    assert in_both_themes(page) == []
    page.set_viewport_size({"width": 390, "height": 780})
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, "the page scrolls sideways"


@pytest.mark.parametrize("name", ["batches", "files", "upstream"])
def test_an_empty_screen_has_no_violation_and_says_what_to_do(
    empty: RunningServer, page: Page, name: str
) -> None:
    page.goto(empty.url + SCREENS[name])
    expect(page.locator("h1")).to_be_visible()
    assert violations(page) == []


@pytest.mark.parametrize("name", [name for name in SCREENS if name != "sign-in"])
def test_a_screen_has_a_json_twin(filled: tuple[RunningServer, Sample], name: str) -> None:
    server, sample = filled
    assert isinstance(server.get(address(name, sample) + "?format=json"), dict)
    assert server.get(address(name, sample), Accept="application/json")


@pytest.mark.parametrize("name", in_every_run(*SCREENS, always=("batches", "batch")))
def test_a_page_shows_the_same_without_scripts(
    filled: tuple[RunningServer, Sample], plain_page: Page, name: str
) -> None:
    server, sample = filled
    answer = plain_page.goto(server.url + address(name, sample))
    assert answer is not None
    assert answer.ok
    expect(plain_page.locator("h1")).to_be_visible()
    assert "JavaScript" not in plain_page.locator("main").inner_text()


@pytest.mark.parametrize(
    "name",
    in_every_run(
        "batches", "running-batch", "upstreams", "upstream", "workers", always=("batches", "running-batch")
    ),
)
def test_nothing_shifts_while_a_page_is_updated(
    filled: tuple[RunningServer, Sample], page: Page, name: str
) -> None:
    server, sample = filled
    page.goto(server.url + address(name, sample))
    page.wait_for_selector("#live-state[data-state=on]")
    page.evaluate("window.updates = 0; addEventListener('htmx:sse:after:message', () => window.updates += 1)")
    wait_for_updates(page, 1)
    page.evaluate(COUNT_SHIFTS)
    wait_for_updates(page, UPDATES)
    assert page.evaluate("window.shifts") == []


def wait_for_updates(page: Page, wanted: int) -> None:
    """The policy of the pages forbids `wait_for_function`, which evaluates text."""
    ends_at = time.monotonic() + 60
    while page.evaluate("window.updates") < wanted:
        assert time.monotonic() < ends_at
        page.wait_for_timeout(100)


def test_a_hidden_tab_is_not_updated_and_catches_up(server: RunningServer, page: Page) -> None:
    page.goto(server.url)
    expect(page.locator("#live-state")).to_have_text("live")
    page.evaluate(HIDE, True)
    expect(page.locator("#live-state")).to_have_text("paused")
    batch_id = server.submit([chat_line("a")])
    server.wait_until(batch_id)
    expect(page.locator(f"[data-id={batch_id}]")).to_have_count(0)
    page.evaluate(HIDE, False)
    expect(page.locator("#live-state")).to_have_text("live")
    expect(page.locator(f"[data-id={batch_id}]")).to_have_count(1)


@only_slow
def test_a_printed_page_has_the_content_alone(filled: tuple[RunningServer, Sample], page: Page) -> None:
    server, sample = filled
    page.goto(server.url + address("batch", sample))
    page.emulate_media(media="print")
    expect(page.locator("header nav")).to_be_hidden()
    expect(page.locator("h1")).to_be_visible()
    assert page.pdf()[:5] == b"%PDF-"
