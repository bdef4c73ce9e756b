"""axe-core over a page, and screenshots of every screen for docs/dashboard.md (`make screenshots`)."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

WIDTHS = {"desktop": 1280, "phone": 390}
THEMES = ("light", "dark")
_RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}


def violations(page: Page) -> list[str]:
    """What axe-core finds on the page: a line for each rule and element."""
    found = Axe().run(page, options=_RULES).response["violations"]
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:200]} {node['any'][:1]}"
        for violation in found
        for node in violation["nodes"]
    ]
