"""The pages and examples of the repository, and an emulated server to run them against."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"the_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    return load(ROOT / "docs/generate.py")


@pytest.fixture(scope="session")
def build_site() -> ModuleType:
    return load(ROOT / "docs/build_site.py")


@pytest.fixture(scope="session")
def record() -> ModuleType:
    return load(ROOT / "docs/record.py")


@pytest.fixture(scope="session")
def emulated_url() -> Iterator[str]:
    """Base URL of `nightmill serve --emulate` as a child process, started as the first example does it."""
    with load(ROOT / "examples/first_batch.py").server(["--emulate"]) as url:
        yield url
