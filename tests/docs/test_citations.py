"""Citations of `docs/openai-behaviour.md` name sections that the page has."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/openai-behaviour.md"
SECTIONS = set(re.findall(r"^#+ (\d+(?:\.\d+)?) ", (ROOT / PAGE).read_text(encoding="utf-8"), re.MULTILINE))
CITING = sorted(
    path
    for folder in ("src", "tests", "docs", "bench", "examples", "deploy")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".md", ".yaml", ".toml"} and path != Path(__file__).resolve()
)
CITATION = re.compile(r"docs/openai-behaviour\.md\s+(\d+(?:\.\d+)?(?:,\s+\d+(?:\.\d+)?)*)")
OUTSIDE = re.compile(r"\(contract \d|\b(?:contract|clients)\.md\b")


def test_every_cited_section_exists():
    cited = {
        (str(path.relative_to(ROOT)), section)
        for path in CITING
        for found in CITATION.finditer(path.read_text(encoding="utf-8"))
        for section in re.split(r",\s+", found[1])
    }
    assert len(cited) > 20
    assert not {citation for citation in cited if citation[1] not in SECTIONS}


def test_no_citation_of_a_document_outside_the_repository():
    assert not [str(path) for path in CITING if OUTSIDE.search(path.read_text(encoding="utf-8"))]
