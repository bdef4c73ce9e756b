"""The figures that the source code is held to; `make house` prints them.

Every figure is measured from the text of the repository, so it can be computed without running nightmill.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ROOT / "src/nightmill"
DATA_PATH = ("core", "validation", "store", "parts", "blobs", "upstream", "roles")
# What the code has reached, and a small margin (docs/decisions/0019-size.md). Lower these with the code, and
# never raise them for a change that adds nothing for users.
MOST_LINES = 74_000
MOST_FILES = 500
MOST_DATA_PATH_LINES = 32_000
LONG_FILE_LINES = 450
SHORT_FILE_LINES = 40
MOST_PARAMETERS = 8

# The old word is on the left of the glossary's last table. These are the words that have no other use.
OLD_WORDS = re.compile(
    r"\b(wardens?|strays?|StraySweep|mender|mending|mended|Rooms|crews?|on_ray|bells?|ring_here|outward|nudged?"
    r"|rouse[sd]?|bury|buries|heed_signals|let_go|SliceDuty|keep_duty|dut(?:y|ies)|reception|alone_with|sharers?"
    r"|reshape[sd]?|SecondLook|second_look|Inspection|Attended|Presence|Patience|Catalogue|Askers?"
    r"|whoever|nobody|somebody|everybody|told|LocalEngine|lease_at|Blow|Strike|Ledger"
    r"|assembly|keeping/|engine/)\b",
    re.IGNORECASE,
)
# (file, words): user-visible names that keep working until 0.2, and words that have their ordinary meaning
# there.
ALLOWED_OLD_WORDS: dict[str, frozenset[str]] = {
    "src/nightmill/roles/registry.py": frozenset({"warden"}),
    # Values of the `--json` output of `nightmill check`.
    "src/nightmill/admin/findings.py": frozenset({"stray"}),
    "src/nightmill/cli/check.py": frozenset({"mended"}),
    "docs/operations.md": frozenset({"stray", "mended"}),
}
# Papers that are not in the repository.
CITATION = re.compile(r"\(contract [0-9]|\bcontract\.md\b|\bclients\.md\b|\bhouse\.md\b|\bfield(?:-2)?\.md\b")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A Python file of the product: its path from the root of the repository, and its text."""

    path: str
    text: str

    @property
    def line_count(self) -> int:
        return self.text.count("\n")


def product_files() -> list[SourceFile]:
    return [_read(path) for path in sorted(PRODUCT.rglob("*.py"))]


def prose_files() -> list[SourceFile]:
    """Everything that a newcomer reads: the sources, the docs, and the files of a deployment."""
    paths = [
        *ROOT.glob("src/**/*.py"),
        *(path for path in ROOT.glob("docs/**/*.md") if "benchmarks" not in path.parts),
        *(
            ROOT / name
            for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "compose.yaml", "Dockerfile")
        ),
        *(path for path in ROOT.glob("deploy/**/*") if path.is_file()),
    ]
    return [_read(path) for path in sorted(paths)]


def wide_constructors(files: list[SourceFile]) -> list[str]:
    """Constructors with more than `MOST_PARAMETERS` parameters, `self` not counted."""
    found: list[str] = []
    for file in files:
        for owner in ast.walk(ast.parse(file.text)):
            if isinstance(owner, ast.ClassDef):
                found += (
                    f"{file.path}: {owner.name}({count})"
                    for count in _parameter_counts(owner)
                    if count > MOST_PARAMETERS
                )
    return found


def old_words(files: list[SourceFile]) -> list[str]:
    found: list[str] = []
    for file in files:
        allowed = ALLOWED_OLD_WORDS.get(file.path, frozenset())
        for number, line in enumerate(file.text.splitlines(), start=1):
            found += (
                f"{file.path}:{number}: {match.group()}"
                for match in OLD_WORDS.finditer(line)
                if match.group().lower() not in allowed
            )
    return found


def foreign_citations(files: list[SourceFile]) -> list[str]:
    return [f"{file.path}: {match.group()}" for file in files for match in CITATION.finditer(file.text)]


def deciders_of_answers(files: list[SourceFile]) -> list[str]:
    """Modules outside `parts` that read records but do not ask its reader which answer of a line stands."""
    reads = re.compile(r"\bread_records\b|\bparts\.read\(")
    asks = re.compile(r"\bFirstAnswers\b|\bstanding_records\b")
    return [
        file.path
        for file in files
        if "/parts/" not in file.path and reads.search(file.text) and not asks.search(file.text)
    ]


def rows() -> Iterator[tuple[str, str, str]]:
    """(figure, its value now, the limit)."""
    files = product_files()
    on_data_path = [file for file in files if file.path.split("/")[2] in DATA_PATH]
    longest = max(files, key=lambda file: file.line_count)
    yield "lines of src/nightmill", f"{sum(file.line_count for file in files):,}", f"{MOST_LINES:,}"
    yield "files of src/nightmill", f"{len(files)}", f"{MOST_FILES}"
    yield (
        "lines on the data path",
        f"{sum(file.line_count for file in on_data_path):,}",
        f"{MOST_DATA_PATH_LINES:,}",
    )
    yield "largest file, lines", f"{longest.line_count} ({longest.path})", f"{LONG_FILE_LINES}"
    yield "files over 450 lines", f"{sum(file.line_count > LONG_FILE_LINES for file in files)}", "0"
    yield "files under 40 lines", f"{len(short_files(files))}", "12"
    yield "constructors over 8 parameters", f"{len(wide_constructors(files))}", "0"
    yield "other deciders of which answer stands", f"{len(deciders_of_answers(files))}", "0"
    yield "old words in sources and docs", f"{len(old_words(prose_files()))}", "0"
    yield "citations of papers outside the repository", f"{len(foreign_citations(prose_files()))}", "0"


def short_files(files: list[SourceFile]) -> list[str]:
    """Files under 40 lines, packages' `__init__` left out: those say only what their folder is for."""
    return [
        file.path
        for file in files
        if file.line_count < SHORT_FILE_LINES and not file.path.endswith("__init__.py")
    ]


def main() -> None:
    for figure, value, limit in rows():
        print(f"{figure:45} {value:>12}   limit {limit}")


def _parameter_counts(owner: ast.ClassDef) -> Iterator[int]:
    """Parameters of each `__init__` of a class, `self` not counted."""
    for node in owner.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            parameters = node.args
            yield len(parameters.posonlyargs) + len(parameters.args) + len(parameters.kwonlyargs) - 1


def _read(path: Path) -> SourceFile:
    return SourceFile(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
