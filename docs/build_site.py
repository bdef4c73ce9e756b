"""Builds the docs site into `site/`: `make docs`. It needs no server and no internet, its search included.

The pages are written for the repository: README.md is the home page, and links lead to files. Here they are
copied to where the site has them, links to other files become links to the public repository, and Zensical
makes HTML of them. It stops at any link or heading that does not exist. The order of the pages is that of the
sections in docs/README.md; pages it leaves out come last, by title.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/site"
SITE = ROOT / "site"
THEME = ROOT / "docs/site"
HOME = PurePosixPath("README.md")
INDEX = PurePosixPath("docs/README.md")
OTHER_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PICTURES = ("*.svg", "*.png", "*.jpg")
LINK = re.compile(r"(?P<before>\]\(|(?:src|srcset|href)=\")(?P<target>[^)\s\"]+)")
FOR_TESTS = re.compile(r"^<!-- test: .*-->\n", re.MULTILINE)
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^# (.+)$", re.MULTILINE)

Nav: TypeAlias = list[tuple[str, list[PurePosixPath]]]
"""Sections of the site: a heading, and the pages under it as paths in the repository."""

CONFIGURATION = """\
[project]
site_name = "nightmill"
site_description = {description}
docs_dir = "pages"
site_dir = "html"
nav = [
{nav}
]

[project.theme]
custom_dir = {theme}
language = "en"
font = false
features = [
  "content.code.copy",
  "navigation.footer",
  "navigation.top",
  "navigation.tracking",
  "search.highlight",
  "toc.follow",
]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/moon"
toggle.name = "Dark"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/sun"
toggle.name = "Light"

[project.plugins.offline]

[project.plugins.search]

[project.validation]
invalid_links = true
invalid_link_anchors = true

[project.markdown_extensions]
attr_list = {{}}
md_in_html = {{}}
tables = {{}}
pymdownx.highlight.use_pygments = true
pymdownx.magiclink = {{}}
pymdownx.superfences = {{}}
# The anchors of headings are those of the repository's pages.
toc = {{ permalink = true, slugify = {{ object = "pymdownx.slugs.slugify", kwds = {{ case = "lower" }} }} }}
"""


def main() -> None:
    sys.exit(build(SITE))


def build(site: Path, *, folder: Path = BUILD) -> int:
    """Builds the site from the working tree; returns the exit status of Zensical.

    Args:
        site: the folder for the HTML; emptied first.
        folder: for the assembled pages; emptied first.
    """
    for path in (site, folder):
        shutil.rmtree(path, ignore_errors=True)
    assemble(folder)
    status = build_strictly(folder)
    if status == 0:
        shutil.move(folder / "html", site)
    return status


def build_strictly(folder: Path) -> int:
    """Makes HTML of what `assemble` wrote into `folder`; a link that leads nowhere is an error."""
    zensical = Path(sys.executable).with_name("zensical")
    return subprocess.run([zensical, "build", "--strict", "--clean"], cwd=folder, check=False).returncode  # noqa: S603 - our own arguments


def assemble(folder: Path) -> None:
    """Writes the pages, the pictures and the configuration of Zensical into `folder`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pages = {path: place(path) for path in sources()}
    for path, page in pages.items():
        target = folder / "pages" / page
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = for_site((ROOT / path).read_text(encoding="utf-8"), path, pages, project["urls"]["Source"])
            target.write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(ROOT / path, target)
    (folder / "pages/assets").mkdir()
    shutil.copyfile(THEME / "iframe-worker.js", folder / "pages/assets/iframe-worker.js")
    nav = "\n".join(nav_lines(sections(pages), pages))
    values = {"description": project["description"], "theme": str(THEME)}
    quoted = {name: quote(value) for name, value in values.items()}
    (folder / "zensical.toml").write_text(CONFIGURATION.format(nav=nav, **quoted), encoding="utf-8")


def sources() -> list[PurePosixPath]:
    """Pages and pictures, as paths in the repository."""
    docs = ROOT / "docs"
    found = [HOME, *map(PurePosixPath, OTHER_PAGES)]
    for pattern in ("*.md", *PICTURES):
        found += [PurePosixPath(path.relative_to(ROOT).as_posix()) for path in sorted(docs.rglob(pattern))]
    return found


def place(path: PurePosixPath) -> PurePosixPath:
    """Where the site has a page or picture of the repository."""
    match path:
        case _ if path == HOME:
            return PurePosixPath("index.md")
        case _ if path == INDEX:
            return PurePosixPath("pages.md")
        case _:
            return path.relative_to("docs") if path.parts[0] == "docs" else path


def for_site(
    text: str, path: PurePosixPath, pages: dict[PurePosixPath, PurePosixPath], repository: str
) -> str:
    """The page with the links that it needs in its place on the site."""

    def moved(link: re.Match[str]) -> str:
        address, hash_mark, fragment = link["target"].partition("#")
        if not address or re.match(r"[a-z]+:", address):
            return link[0]
        target = PurePosixPath(normpath(path.parent / address))
        if target in pages:
            address = relpath(pages[target], pages[path].parent)
        else:
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            address = f"{repository}/{kind}/main/{target}"
        return f"{link['before']}{address}{hash_mark}{fragment}"

    def changed(piece: str) -> str:
        if not FENCE.fullmatch(piece):
            return LINK.sub(moved, piece)
        first_line, _, code = piece.partition("\n")
        language = first_line.removeprefix("```").split(" ")[0]
        # A browser would load the program that draws diagrams from the internet: the site shows their text.
        return f"```{'text' if language == 'mermaid' else language}\n{code}"

    return "".join(map(changed, FENCE.split(FOR_TESTS.sub("", text))))


def sections(pages: dict[PurePosixPath, PurePosixPath]) -> Nav:
    """The sections of docs/README.md, each with the pages it links to; then all others, and the decisions."""
    written = [path for path in pages if path.suffix == ".md" and path not in {HOME, INDEX}]
    decisions = [path for path in written if path.parent.name == "decisions"]
    left = [path for path in written if path not in decisions]
    found: Nav = []
    for heading, linked in index():
        chosen = [path for path in dict.fromkeys(linked) if path in left]
        left = [path for path in left if path not in chosen]
        if chosen:
            found.append((heading, chosen))
    rest = sorted(left, key=title)
    return [*found, *([("More", rest)] if rest else []), ("Decisions", decisions)]


def index() -> Nav:
    """The sections of docs/README.md with all their links."""
    text = (ROOT / INDEX).read_text(encoding="utf-8")
    return [
        (heading, [PurePosixPath(normpath(INDEX.parent / link["target"])) for link in LINK.finditer(body)])
        for heading, body in SECTION.findall(text)
    ]


def nav_lines(nav: Nav, pages: dict[PurePosixPath, PurePosixPath]) -> Iterator[str]:
    yield f"  {{ Home = {quote(str(pages[HOME]))} }},"
    yield f"  {{ {quote('All pages')} = {quote(str(pages[INDEX]))} }},"
    for heading, paths in nav:
        entries = ", ".join(f"{{ {quote(title(path))} = {quote(str(pages[path]))} }}" for path in paths)
        yield f"  {{ {quote(heading)} = [{entries}] }},"


def title(path: PurePosixPath) -> str:
    found = TITLE.search((ROOT / path).read_text(encoding="utf-8"))
    return found[1].replace("`", "") if found else path.stem


def quote(text: str) -> str:
    """A string of TOML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


if __name__ == "__main__":
    main()
