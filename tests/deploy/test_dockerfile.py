"""The Dockerfile, read as the builder reads it."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nightmill import settings
from tests.deploy.container import USER_ID

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(FROM, "python:... AS build"), ... with continued lines joined and comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def last(name: str) -> str:
    return [rest for word, rest in last_stage() if word == name][-1]


def environment() -> dict[str, str]:
    return {
        name: value
        for word, rest in last_stage()
        if word == "ENV"
        for name, _, value in (pair.partition("=") for pair in rest.split())
    }


def test_hadolint_finds_no_problem():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint's wheel is for Linux only")
    done = subprocess.run([hadolint, str(DOCKERFILE)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_copied_files_exist_and_are_in_the_build_context():
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    let_in = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert set(copied) == set(let_in)
    for source in copied:
        assert (ROOT / source).exists(), source


def test_the_build_context_has_only_the_package_and_its_lock_file():
    for private in (".git", ".venv", "nightmill-data", "tests", ".env"):
        assert not any(
            fnmatch.fnmatch(private, line.removeprefix("!"))
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        )


def test_the_version_of_uv_is_that_of_the_lock_file(tmp_path: Path):
    [command] = [rest for word, rest in instructions() if word == "RUN" and "awk" in rest]
    shutil.copy(ROOT / "requirements.lock", tmp_path)
    subprocess.run(["bash", "-euc", command.split("&& pip")[0]], cwd=tmp_path, check=True, timeout=30)
    first, *hashes = (tmp_path / "uv.lock").read_text().splitlines()
    assert first.startswith("uv==")
    assert len(hashes) > 5
    assert all(line.strip().startswith("--hash=sha256:") for line in hashes)


def test_every_package_is_installed_with_its_hash():
    for word, rest in instructions():
        if word == "RUN":
            assert rest.count("--require-hashes") == rest.count("pip install") + rest.count("uv build")


def test_the_extras_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [extras] = [
        rest.split("=")[1] for word, rest in instructions() if word == "ARG" and rest.startswith("EXTRAS=")
    ]
    assert set(extras.split(",")) <= set(known)


def test_the_image_runs_as_an_unprivileged_user_that_owns_its_data():
    assert last("USER") == f"{USER_ID}:{USER_ID}"
    assert f"-o {USER_ID} -g {USER_ID} /data" in last("RUN")


def test_nightmill_is_process_1_and_no_shell_is_needed():
    assert json.loads(last("ENTRYPOINT")) == ["nightmill"]
    assert json.loads(last("CMD")) == ["serve"]
    assert last("STOPSIGNAL") == "SIGTERM"
    probe = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert probe[:2] == ["python", "-c"]
    compile(probe[2], "HEALTHCHECK", "exec")


def test_the_environment_of_the_image_contains_valid_settings():
    variables = {name: value for name, value in environment().items() if name.startswith(settings.PREFIX)}
    loaded = settings.load(environment=variables)
    assert loaded.api.host == "0.0.0.0"
    assert str(loaded.folder) == last("WORKDIR") == "/data"


def test_the_version_label_is_that_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"VERSION={version}" in [rest for word, rest in last_stage() if word == "ARG"]


def test_the_base_is_pinned_by_a_tag_and_the_same_in_both_stages():
    [base] = [
        rest.split("=")[1] for word, rest in instructions() if word == "ARG" and rest.startswith("PYTHON=")
    ]
    assert re.fullmatch(r"3\.\d+-slim-[a-z]+", base)
    assert [rest.split()[0] for word, rest in instructions() if word == "FROM"] == ["python:${PYTHON}"] * 2
