"""The glossary defines every exported noun of `core`, and nothing that does not exist."""

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NewType, TypeAlias

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "src/nightmill/core"
SECTION = re.compile(r"^### `(?P<path>[\w/]+\.py)`$", re.MULTILINE)
ENTRY = re.compile(r"^\*\*`(?P<name>\w+)`\*\*: (?P<text>.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


def entries() -> dict[str, dict[str, str]]:
    """For each file of the second part: the defined names with their definitions."""
    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    _, *sections = SECTION.split(page)
    return {
        path: {entry["name"]: entry["text"] for entry in ENTRY.finditer(text)}
        for path, text in zip(sections[::2], sections[1::2], strict=True)
    }


def module_of(path: str) -> ModuleType:
    return import_module("nightmill." + path.removesuffix(".py").replace("/", "."))


def nouns(module: ModuleType) -> Iterator[str]:
    """The public classes, id types and type aliases that a module defines."""
    annotations = getattr(module, "__annotations__", {})
    for name, value in vars(module).items():
        is_type = isinstance(value, type | NewType) and value.__module__ == module.__name__
        if not name.startswith("_") and (is_type or annotations.get(name) is TypeAlias):
            yield name


@pytest.mark.parametrize("path", sorted(path.name for path in CORE.glob("[a-z]*.py")))
def test_every_noun_of_core_is_defined(path: str):
    defined = entries().get(f"core/{path}", {})
    assert set(nouns(module_of(f"core/{path}"))) <= set(defined)


def test_every_id_is_defined():
    assert set(nouns(module_of("ids.py"))) <= set(entries()["ids.py"])


def test_every_defined_noun_exists():
    for path, defined in entries().items():
        module = module_of(path)
        assert not [name for name in defined if not hasattr(module, name)], path


def test_a_definition_is_short():
    for defined in entries().values():
        for name, text in defined.items():
            assert text.count("\n") < 5, f"the definition of {name} is longer than a short paragraph"


@pytest.mark.parametrize("page", ["how-it-works.md", "glossary.md"])
def test_every_file_that_a_page_names_exists(page: str):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    assert files
    assert not [file for file in files if not any((root / file).exists() for root in (ROOT, CORE.parent))]
