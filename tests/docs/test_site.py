"""The docs site: complete, without broken links, searchable, and without anything from the internet."""

import json
import re
import shutil
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href|srcset)=\"([^\"]+)")
README = PurePosixPath("README.md")


@pytest.fixture(scope="module")
def folder(build_site: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("assembled")


@pytest.fixture(scope="module")
def site(build_site: ModuleType, folder: Path) -> Path:
    """The built site, with the assembled pages beside it in `folder`."""
    site = folder.with_name("site")
    assert build_site.build(site, folder=folder) == 0
    return site


def test_the_site_has_every_page(site: Path, build_site: ModuleType):
    for path in build_site.sources():
        page = build_site.place(path)
        assert (site / (page.with_suffix(".html") if page.suffix == ".md" else page)).is_file(), path


def test_the_menu_has_every_page_once(build_site: ModuleType):
    pages = {path: build_site.place(path) for path in build_site.sources()}
    listed = [path for _, paths in build_site.sections(pages) for path in paths]
    assert len(listed) == len(set(listed))
    written = {path for path in pages if path.suffix == ".md"}
    assert set(listed) == written - {README, PurePosixPath("docs/README.md")}


def test_the_pages_load_nothing_from_the_internet(site: Path):
    loaded = {
        address
        for page in site.rglob("*.html")
        for address in LOADED.findall(page.read_text(encoding="utf-8"))
    }
    assert loaded
    assert [address for address in loaded if re.match(r"(?:https?:)?//", address)] == []


def test_the_search_finds_the_text_of_every_page_without_a_server(site: Path, build_site: ModuleType):
    # A page that is opened from a folder can load a script, but no JSON.
    found = json.loads((site / "search.js").read_text(encoding="utf-8").partition("=")[2].strip().rstrip(";"))
    pages = {entry["location"].partition("#")[0] for entry in found["items"]}
    for path in build_site.sources():
        if path.suffix == ".md":
            assert str(build_site.place(path).with_suffix(".html")) in pages


@pytest.mark.parametrize("link", ["[lost](nowhere.md)", "[lost](start.md#no-such-heading)"])
def test_a_broken_link_stops_the_build(
    site: Path, folder: Path, build_site: ModuleType, tmp_path: Path, link: str
):
    shutil.copytree(folder, tmp_path / "broken", dirs_exist_ok=True)
    for page in (tmp_path / "broken/pages").rglob("*.md"):
        if page.name not in {"start.md", "index.md"}:
            page.unlink()
    configuration = (tmp_path / "broken/zensical.toml").read_text()
    (tmp_path / "broken/zensical.toml").write_text(
        re.sub(r"nav = \[.*?^\]", "", configuration, flags=re.MULTILINE | re.DOTALL)
    )
    for page in ("start.md", "index.md"):
        (tmp_path / f"broken/pages/{page}").write_text("# Page\n")
    assert build_site.build_strictly(tmp_path / "broken") == 0
    (tmp_path / "broken/pages/index.md").write_text(f"# Page\n\n{link}\n")
    assert build_site.build_strictly(tmp_path / "broken") != 0


def test_a_link_between_pages_leads_to_the_page_on_the_site(build_site: ModuleType):
    assert in_readme("[a](docs/start.md#top)", build_site) == "[a](start.md#top)"
    assert in_readme("![a](docs/benchmarks/parts.svg)", build_site) == "![a](benchmarks/parts.svg)"
    assert in_readme('<img src="docs/watch.svg">', build_site, "docs/watch.svg") == '<img src="watch.svg">'


def test_a_link_to_a_file_or_folder_leads_to_the_repository(build_site: ModuleType):
    assert in_readme("[a](LICENSE)", build_site) == "[a](https://host/nightmill/blob/main/LICENSE)"
    assert in_readme("[a](deploy)", build_site) == "[a](https://host/nightmill/tree/main/deploy)"


@pytest.mark.parametrize(
    "link", ["[a](https://example.com/x)", "[a](#fragment)", "[a](mailto:a@example.com)"]
)
def test_other_links_stay_as_they_are(build_site: ModuleType, link: str):
    assert in_readme(link, build_site) == link


def test_a_code_block_keeps_its_text_and_loses_what_is_for_tests(build_site: ModuleType):
    block = "<!-- test: not-run: because -->\n```bash\necho '[a](LICENSE)'\n```"
    assert in_readme(block, build_site) == "```bash\necho '[a](LICENSE)'\n```"


def in_readme(text: str, build_site: ModuleType, *more: str) -> str:
    pages = {path: build_site.place(path) for path in [*build_site.sources(), *map(PurePosixPath, more)]}
    return build_site.for_site(text, README, pages, "https://host/nightmill")
