"""Every code block of every page runs, from top to bottom, as a reader would enter it.

The language of a block determines how it is tested:

- `bash` runs, in one shell session per page.
- `console` runs the lines after `$ ` and compares what is printed; `...` matches any text.
- `python` runs as a program. `toml` is loaded as settings, `json`, `jsonl` and `yaml` are parsed.
- `text` and `mermaid` are not tested; `test_proxy_page.py` tests `nginx` and `caddyfile`.

What only the tests need is a comment in the line before the block, which readers do not see:

- `<!-- test: server -->`: the `bash` block stays running until the next such block of the page or its end,
  and later blocks use that server. A page without one uses an emulated server.
- `<!-- test: not-run: reason -->`: the block needs something that CI does not have. Only its syntax is
  checked, and pytest lists it as skipped (`-rs`).
- `<!-- test: needs: program -->`: the block runs if that program is installed.

The emulator stands in for the model servers of the pages (Ollama, vLLM), and their `model.gguf` is a tiny
model.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from nightmill.settings import load
from tests.docs.warm_commands import warm_commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(page for folder in ("docs", "docs/deploy", "docs/howto") for page in ROOT.glob(f"{folder}/*.md")),
    ]
)
FENCE = re.compile(
    r"^(?:<!-- test: (?P<marks>[^\n]+) -->\n)?```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NIGHTMILL_PORT = 8080
MODEL_SERVER_PORTS = (11434, 8000)
BLOCK_S = 60
READY_S = 60


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; `marks` is the comment for the tests before it."""

    page: Path
    line: int
    language: str
    marks: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason_not_to_run(self) -> str | None:
        kind, _, text = self.marks.partition(":")
        if kind == "not-run":
            return text.strip()
        if kind == "needs" and not shutil.which(text.strip()):
            return f"needs {text.strip()}"
        return None


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("language")) + 1
        yield Block(page, line, fence["language"].strip(), fence["marks"] or "", fence["code"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
NOT_RUN = [block for block in BLOCKS if block.reason_not_to_run is not None]


@dataclass(slots=True)
class Session:
    """A shell session of one page, in a separate folder.

    `url` is the server in the environment of the session; None if the page starts its own server. `commands`
    is the folder of the warm command `nightmill`.
    """

    folder: Path
    url: str | None
    ports: dict[int, int]
    commands: Path
    state: Path = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.folder / ".session"
        self.state.write_text("")
        shutil.copytree(ROOT / "examples", self.folder / "examples")

    @property
    def environment(self) -> dict[str, str]:
        server = {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": "unused"} if self.url else {}
        return (
            os.environ
            | server
            | {
                "PATH": f"{self.commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
                "NIGHTMILL_API__PORT": str(self.ports[NIGHTMILL_PORT]),
                "NO_COLOR": "1",
                "COLUMNS": "100",
            }
        )

    def here(self, code: str) -> str:
        """The code with the ports of the page replaced by free ports of this machine."""
        for shown, real in self.ports.items():
            code = re.sub(rf"(127\.0\.0\.1|localhost):{shown}\b", rf"\1:{real}", code)
        return code

    def script(self, code: str) -> list[str]:
        # Variables that a block exports are set in later blocks.
        return ["bash", "-euo", "pipefail", "-c", f"source {shlex.quote(str(self.state))}\n{self.here(code)}"]

    def shell(self, code: str, *, block: Block) -> str:
        done = subprocess.run(
            self.script(f"{code}\nexport -p > {shlex.quote(str(self.state))}"),
            check=False,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_S,
        )
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{block.code}\n{done.stdout}"
        return done.stdout

    def console(self, block: Block) -> None:
        for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.code, re.MULTILINE):
            printed = self.shell(command, block=block)
            pattern = ".*?".join(map(re.escape, self.here(expected).strip().split("...")))
            assert re.fullmatch(pattern, printed.strip(), re.DOTALL), (
                f"{block}: '{command}' printed\n{printed}\nand the page shows\n{expected}"
            )

    @contextmanager
    def server(self, block: Block) -> Iterator[None]:
        """Starts the server of the block, waits until it is ready, and uses it for later blocks."""
        log = self.folder / f"server-{block.line}.log"
        port = self.ports[NIGHTMILL_PORT]
        with log.open("wb") as sink:
            child = subprocess.Popen(
                self.script(f"exec {block.code}"),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for(f"http://127.0.0.1:{port}/ready", child, log)
            yield
        finally:
            stop(child)


def wait_for(url: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        assert child.poll() is None, f"ended with {child.returncode}:\n{log.read_text()}"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    pytest.fail(f"{url} did not answer in {READY_S} s:\n{log.read_text()}")


def stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def free_ports(*shown: int) -> dict[int, int]:
    sockets = {port: socket.create_server(("127.0.0.1", 0)) for port in shown}
    free = {port: opened.getsockname()[1] for port, opened in sockets.items()}
    for opened in sockets.values():
        opened.close()
    return free


@pytest.fixture(scope="module")
def model_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, int]]:
    """Starts emulators in place of the model servers that the pages name; returns shown port -> real port."""
    log = tmp_path_factory.mktemp("model") / "server.log"
    [port] = free_ports(0).values()
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "nightmill.runtime.child", "emulator", "--port", str(port)],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", child, log)
        yield dict.fromkeys(MODEL_SERVER_PORTS, port)
    finally:
        assert child.stdin is not None
        child.stdin.close()
        stop(child)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_commands(tmp_path_factory.mktemp("commands")) as folder:
        yield folder


@pytest.mark.timeout(300)  # a page may start several servers, and the machine may be busy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, request: pytest.FixtureRequest):
    todo = [block for block in blocks_of(page) if block.reason_not_to_run is None]
    if not todo:
        return
    ports, commands = request.getfixturevalue("model_servers"), request.getfixturevalue("commands")
    if any(block.marks == "server" for block in todo):
        session = Session(tmp_path, None, ports | free_ports(NIGHTMILL_PORT), commands)
    else:
        url = request.getfixturevalue("emulated_url")
        session = Session(tmp_path, url, ports | {NIGHTMILL_PORT: urlsplit(url).port}, commands)
    if any("model.gguf" in block.code for block in todo):
        write_gguf = [sys.executable, str(ROOT / "tests/tiny_gguf.py"), str(tmp_path / "model.gguf")]
        subprocess.run(write_gguf, check=True, timeout=BLOCK_S)
    with ExitStack() as serving:
        for block in todo:
            if block.marks == "server":
                serving.close()
                serving.enter_context(session.server(block))
            else:
                run(block, session)


def run(block: Block, session: Session) -> None:
    match block.language, block.marks:
        case "bash", marks if not marks or marks.startswith("needs:"):
            session.shell(block.code, block=block)
        case "console", "":
            session.console(block)
        case "python", "":
            program = session.folder / f"block_{block.line}.py"
            program.write_text(session.here(block.code))
            session.shell(f"python {program.name}", block=block)
        case "toml", "":
            path = session.folder / f"settings-{block.line}.toml"
            path.write_text(block.code)
            load(config=path, environment={})
        case "json", "":
            json.loads(block.code)
        case "jsonl", "":
            for line in block.code.splitlines():
                json.loads(line)
        case "yaml", "":
            yaml.safe_load(block.code)
        case (("text" | "mermaid" | "nginx" | "caddyfile"), ""):
            pass
        case language, marks:
            pytest.fail(f"{block}: nothing is known of a block '{language} {marks}'")


def test_a_fence_shows_readers_its_language_and_nothing_else():
    shown = [f"{block}: '{block.language}'" for block in BLOCKS if not re.fullmatch(r"\w+", block.language)]
    assert not shown, f"put what only the tests need into '<!-- test: ... -->' on the line before: {shown}"


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_a_block_that_does_not_run_has_a_reason_and_valid_syntax(block: Block):
    assert block.reason_not_to_run, f"{block} is marked not-run without a reason"
    if block.language == "bash":
        subprocess.run(["bash", "-n", "-c", block.code], check=True)
    elif block.language == "python":
        compile(block.code, str(block), "exec")
    elif block.language == "toml":
        tomllib.loads(block.code)
    pytest.skip(f"{block} does not run: {block.reason_not_to_run}")
