"""docs/errors.md lists every error code of the server."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SAID = [
    re.compile(r'\bcode(?:: ClassVar\[str\])? = "([a-z_]+)"'),
    re.compile(r'\bcode=\(?"([a-z_]+)"'),
    re.compile(r'\bcode: str = "([a-z_]+)"'),
    re.compile(r'LineError\(\s*"([a-z_]+)"'),
    re.compile(r'_refuse(?:_file)?\(\s*"([a-z_]+)"'),
]


def codes() -> set[str]:
    sources = (ROOT / "src/nightmill").rglob("*.py")
    return {
        code
        for path in sources
        for pattern in SAID
        for code in pattern.findall(path.read_text(encoding="utf-8"))
    }


def test_every_code_is_on_the_page():
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    found = codes()
    assert {"invalid_api_key", "duplicate_custom_id", "rate_limit_exceeded", "invalid_value"} <= found
    assert not {code for code in found if f"`{code}`" not in page}


def test_no_code_of_the_server_is_listed_as_missing():
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    missing = [row for row in page.splitlines() if "| missing |" in row]
    assert missing
    assert not [row for row in missing if any(f"`{code}`" in row for code in codes())]
