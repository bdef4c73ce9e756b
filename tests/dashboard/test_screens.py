"""axe-core on every screen, with data and without, in both themes."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.conftest import RunningServer, running_server
from tests.dashboard.sample import SETTINGS, Sample, fill
from tests.dashboard.screens import SCREENS, address, violations


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Sample]]:
    with running_server(tmp_path_factory.mktemp("filled"), **SETTINGS) as server:
        yield server, fill(server)


@pytest.mark.parametrize("name", SCREENS)
def test_a_filled_screen_has_no_violation_in_either_theme(
    filled: tuple[RunningServer, Sample], page: Page, name: str
) -> None:
    server, sample = filled
    page.emulate_media(color_scheme="light")
    page.goto(server.url + address(name, sample))
    assert violations(page) == []
    page.emulate_media(color_scheme="dark")
    assert violations(page) == []


@pytest.mark.parametrize("name", [name for name, path in SCREENS.items() if "{" not in path])
def test_an_empty_screen_has_no_violation_and_says_what_to_do(
    server: RunningServer, page: Page, name: str
) -> None:
    page.goto(server.url + SCREENS[name])
    expect(page.locator("h1")).to_be_visible()
    assert violations(page) == []


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_usable_at_the_width_of_a_phone(
    filled: tuple[RunningServer, Sample], page: Page, name: str
) -> None:
    server, sample = filled
    page.set_viewport_size({"width": 390, "height": 780})
    page.goto(server.url + address(name, sample))
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, "the page scrolls sideways"


@pytest.mark.parametrize("name", [name for name in SCREENS if name != "sign-in"])
def test_a_screen_has_a_json_twin(filled: tuple[RunningServer, Sample], name: str) -> None:
    server, sample = filled
    assert isinstance(server.get(address(name, sample) + "?format=json"), dict)
    assert server.get(address(name, sample), Accept="application/json")
