"""docs/README.md lists every page, so that a new page can be found."""

import re
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
LINK = re.compile(r"\]\(([^)#\s]+\.md)\)")
OUTSIDE = {"../SECURITY.md", "../CONTRIBUTING.md", "../CHANGELOG.md"}


def test_every_page_is_in_the_index():
    listed = Counter(LINK.findall((DOCS / "README.md").read_text(encoding="utf-8")))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.glob("**/*.md")} - {"README.md"}
    missing = pages - listed.keys()
    assert not missing, f"add these pages to docs/README.md, each to the table of its readers: {missing}"
    assert listed.keys() - pages == OUTSIDE


def test_a_page_is_in_one_table_only():
    tables = (DOCS / "README.md").read_text(encoding="utf-8").partition("## I want to ...")[2]
    assert [page for page, times in Counter(LINK.findall(tables)).items() if times > 1] == []
