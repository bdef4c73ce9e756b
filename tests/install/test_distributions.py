"""The wheel and the sdist: their contents, their page at the package index, and a clean environment each.

The clean environment gets the released dependencies from the package index or from the cache of uv. Where
neither has them, the tests that need it are skipped with the reason.
"""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from email.message import Message
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TIMEOUT_S = 110
LINES = 10
UNREACHABLE = re.compile(
    r"network|dns error|failed to fetch|timed out|could not connect|not found in the", re.IGNORECASE
)
LINK = re.compile(r"\]\(([^)\s]+)|(?:src|srcset|href)=\"([^\"]+)")


def run(path: Path, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [path, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        **options,
    )


def tool(name: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of this environment."""
    return run(Path(sys.executable).with_name(name), *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of the working tree."""
    folder = tmp_path_factory.mktemp("dist")
    done = tool("hatchling", "build", "-d", folder, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    [path] = built.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Installs a distribution into a clean environment; returns the folder of its programs."""

    def install(distribution: Path) -> Path:
        environment = tmp_path_factory.mktemp("clean")
        made = tool("uv", "venv", "--python", sys.executable, environment / "venv", cwd=environment)
        assert made.returncode == 0, made.stderr
        done = tool(
            "uv",
            *("pip", "install", "--python", environment / "venv/bin/python"),
            *("--constraints", constraints(environment), distribution),
            cwd=environment,
        )
        if done.returncode and UNREACHABLE.search(done.stderr):
            pytest.skip(f"the dependencies can't be installed here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
        return environment / "venv/bin"

    return install


def constraints(folder: Path) -> Path:
    """The versions of the lock file without their hashes, as `make run` takes them."""
    pins = re.findall(r"^([a-z0-9][^ ]*==[^\\\n]*)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    path = folder / "versions.txt"
    path.write_text("\n".join(pins))
    return path


def files_of_package(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = {name.partition("/licenses/")[2] for name in archive.namelist() if "/licenses/" in name}
    assert inside == files_of_package(ROOT / "src")
    assert licences == set(PROJECT["license-files"])


def test_the_sdist_builds_without_the_repository_and_has_no_files_of_the_developer(sdist: Path):
    with tarfile.open(sdist) as archive:
        names = {PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()}
    folders = {name.parts[0] for name in names}
    assert {"src", "docs", "examples", "README.md", "LICENSE", "pyproject.toml", "PKG-INFO"} <= folders
    assert not folders & {
        "tests",
        "deploy",
        "bench",
        ".ci",
        ".venv",
        ".venv-run",
        "site",
        "requirements.lock",
    }
    assert {str(name.relative_to("src")) for name in names if name.is_relative_to("src")} >= files_of_package(
        ROOT / "src"
    )


def test_the_index_shows_a_page_whose_links_lead_out_of_the_index(metadata: Message):
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert page.startswith("# nightmill")
    links = [link or source for link, source in LINK.findall(page)]
    assert len(links) > 5
    assert [link for link in links if not link.startswith(("https://", "#", "http://127.0.0.1"))] == []


def test_the_absolute_links_are_those_of_the_readme(metadata: Message):
    page = str(metadata.get_payload())
    for link, source in LINK.findall((ROOT / "README.md").read_text()):
        if (path := link or source).startswith(("https://", "#")):
            continue
        folder = "raw.githubusercontent.com/nightmill/nightmill/main"
        is_picture = path.endswith((".svg", ".jpg"))
        assert (
            f"https://{folder if is_picture else 'github.com/nightmill/nightmill/blob/main'}/{path}" in page
        )


def test_the_description_fits_one_line_of_the_index(metadata: Message):
    assert metadata["Summary"] == PROJECT["description"]
    assert len(PROJECT["description"]) < 100
    assert {url.split(", ")[0] for url in metadata.get_all("Project-URL", [])} == set(PROJECT["urls"])


def test_the_extra_all_has_every_extra_except_that_of_vllm():
    extras = PROJECT["optional-dependencies"]
    [everything] = extras["all"]
    assert set(everything.removeprefix("nightmill[").removesuffix("]").split(",")) == set(extras) - {
        "all",
        "ray-llm",
    }


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, Any]:
    """Where and how a program runs that must not see the repository or this environment."""
    return {"cwd": tmp_path, "env": {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}}


def test_the_wheel_answers_a_batch_in_a_clean_environment(
    wheel: Path, installed: Callable[[Path], Path], tmp_path: Path, outside: dict[str, Any]
):
    programs = installed(wheel)
    with (ROOT / "examples/responses.jsonl").open("rb") as file:
        (tmp_path / "requests.jsonl").write_bytes(b"".join(islice(file, LINES)))
    done = run(
        programs / "nightmill", *("run", "requests.jsonl", "--emulate", "-o", "answers.jsonl"), **outside
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "answers.jsonl").read_bytes().splitlines()) == LINES


def test_the_sdist_installs_in_a_clean_environment(
    sdist: Path, installed: Callable[[Path], Path], outside: dict[str, Any]
):
    programs = installed(sdist)
    done = run(programs / "nightmill", "--help", **outside)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


def plan_of_make_run(folder: Path, *installed: str) -> str:
    """The commands of `make run` with a model, in a folder where the files `installed` exist already."""
    (folder / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    for name in ("pyproject.toml", "requirements.lock", *installed):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    # The environment of a `make` around the tests would change what this one does.
    done = subprocess.run(
        ["make", "-n", "run", "MODEL=model.gguf"],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return done.stdout


def test_make_run_installs_no_packages_of_the_developers(tmp_path: Path):
    plan = plan_of_make_run(tmp_path)
    assert "--editable ." in plan
    assert "--editable '.[llama]'" in plan
    assert "-r requirements.lock" not in plan
    assert ".venv/" not in plan


def test_make_run_uses_the_set_up_of_a_developer_if_there_is_one(tmp_path: Path):
    plan = plan_of_make_run(tmp_path, ".venv/.installed")
    assert ".venv/bin/python examples/first_batch.py" in plan
    assert ".venv-run" not in plan
