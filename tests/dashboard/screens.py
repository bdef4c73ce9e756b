"""Every screen of the dashboard on a filled server: for axe-core, and for the pictures of docs/dashboard.md.

`make screenshots` starts a server, fills it and takes the pictures again.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.dashboard.conftest import CHROMIUM, CHROMIUM_FLAGS, RunningServer, running_server
from tests.dashboard.sample import SETTINGS, Sample, fill

SIZES: Final = {"desktop": (1280, 800), "phone": (390, 780)}
THEMES: Final = ("light", "dark")
PICTURES: Final = Path(__file__).resolve().parents[2] / "docs/pictures/dashboard"
_RULES: Final = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
_RULES_OF_COLOURS: Final = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
# Enough for text, and small: the pictures are in the repository.
_QUALITY: Final = 72
SCREENS: Final = {
    "batches": "/",
    "batch": "/ui/batches/{with_failures}",
    "running-batch": "/ui/batches/{running}",
    "refused-batch": "/ui/batches/{refused}",
    "line": "/ui/batches/{with_failures}/lines/{failed_line}",
    "new-batch": "/ui/new",
    "try": "/ui/try",
    "files": "/ui/files",
    "file": "/ui/files/{output_file}",
    "upstreams": "/ui/upstreams",
    "upstream": "/ui/upstreams/default",
    "workers": "/ui/workers",
    "webhooks": "/ui/webhooks",
    "projects": "/ui/projects",
    "system": "/ui/system",
    "sign-in": "/ui/sign-in",
}


def address(name: str, sample: Sample) -> str:
    """The path of a screen on the filled server."""
    return SCREENS[name].format_map(dataclasses.asdict(sample))


def violations(page: Page, *, only_colours: bool = False) -> list[str]:
    """What axe-core finds on the page: a line for each rule and element.

    Args:
        only_colours: for the other theme of a page that was checked whole.
    """
    found = Axe().run(page, options=_RULES_OF_COLOURS if only_colours else _RULES).response["violations"]
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:200]} {node['any'][:1]}"
        for violation in found
        for node in violation["nodes"]
    ]


def in_both_themes(page: Page) -> list[str]:
    """What axe-core finds on the page in either theme."""
    page.emulate_media(color_scheme="light")
    found = violations(page)
    page.emulate_media(color_scheme="dark")
    return found + violations(page, only_colours=True)


def shots(browser: Browser, server: RunningServer, sample: Sample) -> Iterator[tuple[str, Page]]:
    """Each screen at each width in each theme, with its name."""
    for size, (width, height) in SIZES.items():
        for theme in THEMES:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if theme == "dark" else "light",
            )
            page = context.new_page()
            for name in SCREENS:
                page.goto(server.url + address(name, sample), wait_until="load")
                if page.locator("#live-state").count():
                    page.wait_for_selector("#live-state[data-state=on]")
                yield f"{name}-{size}-{theme}", page
            context.close()


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder), **SETTINGS) as server,
        sync_playwright() as playwright,
    ):
        sample = fill(server)
        server.wait_for_lines(sample.running, 400)  # until plots and forecast have something to show
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        for name, page in shots(browser, server, sample):
            path = PICTURES / f"{name}.jpg"
            page.screenshot(path=path, type="jpeg", quality=_QUALITY)
            print(f"{path.name}: {path.stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
