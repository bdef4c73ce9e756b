"""Prints the generated parts of the docs: `make docs`.

settings.md comes from the docstrings of `nightmill.settings`, cli.md from the commands, the reference of
python.md from the docstrings of `nightmill.client` (`python_reference`). In how-it-works.md
the state graph comes from `nightmill.core.batch.TRANSITIONS`, and the picture of the packages from the layers
that import-linter enforces. In faults.md the tables come from `nightmill.core.failure` and `core.probe`, in
upstreams.md the table of rules from `core.limit_rules`, in observability.md the metrics from
`api.metric_list`, in README.md the list of decisions. A test fails when a part is not current, or when a
setting has no docstring.
"""

import re
import sys
import tomllib
import types
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from nightmill.api.metric_list import METRICS
from nightmill.cli import app
from nightmill.cli.failures import MEANINGS
from nightmill.cli.help import examples_of
from nightmill.core.batch import ENDPOINTS, TERMINAL, TRANSITIONS
from nightmill.core.failure import (
    ACCOUNT_CODES,
    KEY_CODES,
    STATUSES,
    AnswerError,
    FailureKind,
    failure_of,
    kind_of,
)
from nightmill.core.limit_rules import LimitRule
from nightmill.core.outcome import Broken, Outcome, TimedOut, TooLong, Unreachable
from nightmill.core.probe import probe_body
from nightmill.settings import PREFIX, Settings

DOCS = Path(__file__).resolve().parent
# A test loads this file by its path, without this folder among those of the imports.
sys.path.append(str(DOCS))
from python_reference import python_errors, python_reference  # noqa: E402 - see above

ROOT = DOCS.parent
PRINTED = re.compile(r"(<!-- printed by docs/generate.py: (?P<part>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
OUTCOMES: dict[str, Outcome] = {
    "no answer within `upstream.timeout_s`": TimedOut(1),
    "a connection or an answer that breaks": Broken("reset"),
    "an answer longer than `upstream.max_answer_bytes`": TooLong(1),
    "no connection": Unreachable("refused"),
}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

INTRODUCTION = """\
# Settings

Printed from `src/nightmill/settings/sections.py` by `make docs`; do not edit by hand.

nightmill needs no settings. Most servers use a few of the first ten; all {count} follow [below](#top-level).

## The ten you may need

{ten}
A file has them like this; start with `nightmill serve --config nightmill.toml`:

```toml
folder = "/var/lib/nightmill"

[api]
host = "0.0.0.0"

[upstream]
url = "http://localhost:8000/v1"
aliases = { "gpt-4o-mini" = "Qwen/Qwen3-8B" }
timeout_s = 1800

[limits]
completion_windows = ["24h", "7d"]
output_ttl_s = 7_776_000
```

Next, by need: [larger files](#limits), [several upstreams](upstreams.md), [limits of projects](#quota),
[prices](why.md#forecast), [webhooks](#webhooks),
[what durability costs](durability.md#what-each-setting-costs).

## Where a value comes from

The first of these sources that has a value:

1. a flag of `nightmill serve` ([cli.md](cli.md)),
2. the environment: `NIGHTMILL_` and the setting's path in capitals, `__` between its levels; lists are
   separated by commas,
3. a TOML file, named by `--config` or `NIGHTMILL_CONFIG`,
4. the default below.

These two are equivalent:

```bash
export NIGHTMILL_UPSTREAM__URL=http://127.0.0.1:8000/v1
export NIGHTMILL_LIMITS__COMPLETION_WINDOWS=24h,2h
```

```toml
[upstream]
url = "http://127.0.0.1:8000/v1"

[limits]
completion_windows = ["24h", "2h"]
```

Several [upstreams](upstreams.md) are `[[upstreams]]` with the fields of `[upstream]` and a name. The
environment names one in capitals, with `_` for `-` and `.`: `NIGHTMILL_UPSTREAMS__GPU_A__API_KEY_FILE` sets
the key of `gpu-a`.

```toml
[[upstreams]]
name = "gpu-a"
url = "http://gpu-a:8000/v1"

[[upstreams]]
name = "box"
url = "http://box:11434/v1"
weight = 0
```

Any name in the environment may end in `_FILE` and then names a file that holds the value. Use this for
secrets: `NIGHTMILL_UPSTREAM__API_KEY_FILE=/run/secrets/upstream_key`. An unknown name stops the start with a
message, so that a typing error is found at once.

`nightmill settings` shows the values in effect and where each comes from; `nightmill settings worker` those
of one section, `nightmill settings api.port` also what the setting does. Secrets are hidden.

`OPENAI_BASE_URL` and `OPENAI_API_KEY` are never read by the server: they tell clients where nightmill is.
"""


TEN = {
    "upstream.url": ("Which server answers the lines?", "--upstream"),
    "upstream.api_key": (
        "Which key does it need? Better `NIGHTMILL_UPSTREAM__API_KEY_FILE`.",
        "--upstream-key",
    ),
    "upstream.aliases": ("Do lines name a model by [another name](howto/name-my-models.md)?", None),
    "upstream.concurrency": (
        "How many lines at once? nightmill finds it; a number fixes it.",
        "--concurrency",
    ),
    "upstream.timeout_s": ("How long may an answer take?", None),
    "folder": ("Where is the data?", "--folder"),
    "api.host": ("Do other machines reach the server? It then needs [keys](start.md).", "--host"),
    "api.port": ("Is the port taken?", "--port"),
    "limits.completion_windows": ("Do clients ask for other windows?", "--window"),
    "limits.output_ttl_s": ("How long are answers kept?", None),
}
"""The settings that most operators need: the question of each, and its flag of `nightmill serve`."""


CLI_INTRODUCTION = """\
# Command line

Printed from the commands by `make docs`; do not edit by hand.

Results go to stdout, everything else to stderr; `--json` prints JSON for machines, one document, or one a
line for lists. `nightmill --install-completion` installs completion for your shell. Every command has `-h`
with an example; `nightmill --version` prints the version.

`serve`, `run`, `validate`, `settings`, `backup`, `check`, `prune`, `keys`, `projects`, `hold`, `usage` and
`audit` work on this machine and take their [settings](settings.md) from flags, then the environment
(`NIGHTMILL_...`), then a file. `submit`, `list`, `show`, `watch`, `results`, `cancel` and `files` are a
client of any OpenAI-compatible batch server: `OPENAI_BASE_URL` names it (by default
`http://127.0.0.1:8080/v1`) and `OPENAI_API_KEY` is sent to it. `upstreams` is a client of a nightmill server
in the same way, with an admin key. `doctor` checks both, the server and this machine.
"""


def settings_page() -> str:
    sections = "".join(_section(Settings, path=""))
    count = len(re.findall(r"^\| `", sections, re.MULTILINE))
    return INTRODUCTION.replace("{count}", f"{count}").replace("{ten}", ten_settings()) + sections


def ten_settings() -> str:
    """A row for each of the settings that most operators need."""
    lines = ["| question | setting | flag | default |", "|---|---|---|---|"]
    for path, (question, flag) in TEN.items():
        shown_flag = f"`{flag}`" if flag else ""
        lines.append(f"| {question} | `{path}` | {shown_flag} | {_default(field_of(path))} |")
    return "\n".join([*lines, ""])


def field_of(path: str) -> FieldInfo:
    """The field of a setting by its path, such as `api.port`."""
    *sections, name = path.split(".")
    model: type[BaseModel] = Settings
    for section in sections:
        kind = model.model_fields[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        model = kind
    return model.model_fields[name]


def _section(model: type[BaseModel], *, path: str) -> Iterator[str]:
    title = f"`[{path}]`" if path else "Top level"
    yield f"\n## {title}\n\n{_one_line(model.__doc__)}\n\n"
    yield "| setting | default | what it does |\n|---|---|---|\n"
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        full_name = f"{path}.{name}" if path else name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below.append((full_name, kind))
        else:
            yield f"| `{full_name}` | {_default(field)} | {_meaning(full_name, field)} |\n"
    for full_name, kind in below:
        yield from _section(kind, path=full_name)


def _one_line(text: str | None) -> str:
    # The page does not show citations.
    return re.sub(r" \(docs/openai-behaviour.md [^)]*\)", "", " ".join((text or "").split()))


def _default(field: FieldInfo) -> str:
    default: object = field.get_default(call_default_factory=True)
    match default:
        case None | () | {}:
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case int() | float():
            return f"`{_number(default)}`"
        case tuple():
            return ", ".join(f"`{entry}`" for entry in cast("tuple[object, ...]", default))
        case _:
            return f"`{default}`"


def _meaning(path: str, field: FieldInfo) -> str:
    if not field.description:
        message = f"the setting '{path}' ({PREFIX}{path.replace('.', '__').upper()}) has no docstring"
        raise ValueError(message)
    return " ".join([_one_line(field.description).replace("|", r"\|"), *_rules(field)])


def _rules(field: FieldInfo) -> Iterator[str]:
    if choices := _choices(field.annotation):
        yield f"One of {choices}."
    bounds = [
        f"{words} {_number(getattr(rule, mark))}"
        for rule in field.metadata
        for mark, words in BOUNDS.items()
        if hasattr(rule, mark)
    ]
    if bounds:
        yield " and ".join(bounds).capitalize() + "."
    if SecretStr in get_args(field.annotation):
        yield "A secret: never shown."


def _choices(kind: object) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return "".join(_choices(part) for part in get_args(kind))
    return ""


def _number(bound: float) -> str:
    if bound != int(bound):
        return f"{bound}"
    return f"{int(bound):,}".replace(",", "_") if bound >= 10_000 else f"{int(bound)}"


def state_graph() -> str:
    """A mermaid diagram: an arrow for each entry of the table, events on one arrow joined."""
    events: dict[tuple[str, str], list[str]] = {}
    for (status, event), target in TRANSITIONS.items():
        events.setdefault((status.value, target.value), []).append(event.value)
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(events))[0]}"]
    lines += [f"    {source} --> {target}: {', '.join(names)}" for (source, target), names in events.items()]
    lines += [f"    {status} --> [*]" for status in sorted(TERMINAL)]
    return "\n".join(["```mermaid", *lines, "```", ""])


def layers() -> str:
    """The layers of pyproject.toml, top first, as far as their modules exist."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    lines: list[str] = []
    for layer in contracts[0]["layers"]:
        names: list[str] = [name.strip(" ()") for name in re.split(r"[|:]", layer)]
        lines.append("".join(f"{name:<11}" for name in names if _exists(name)).rstrip())
    return "\n".join(["```text", *filter(None, lines), "```", ""])


def _exists(module: str) -> bool:
    path = ROOT / "src/nightmill" / module
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def cli_page() -> str:
    root: Any = typer.main.get_command(app)
    return "\n".join([CLI_INTRODUCTION, *_exit_codes(), *_commands(root, "nightmill")]) + "\n"


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | meaning |\n|---|---|"
    for code, meaning in MEANINGS.items():
        yield f"| {int(code)} | {meaning} |"
    yield ""


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        parameters = [
            parameter for parameter in command.params if not parameter.hidden and parameter.name != "help"
        ]
        arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
        options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
        below: bool = hasattr(command, "commands")
        words = [full, *(parameter.metavar for parameter in arguments)]
        if below:
            words.append("[COMMAND]")
        yield f"## `{' '.join(words)}`\n"
        yield cleandoc(command.help or "") + "\n"
        if arguments or options:
            yield "| | |\n|---|---|"
            for parameter in arguments:
                yield f"| `{parameter.metavar}` | {_cell(parameter.help)} |"
            for parameter in options:
                yield f"| {_names(parameter)} | {_cell(parameter.help)}{_option_default(parameter)} |"
            yield ""
        if examples := examples_of(full):
            yield "\n".join(["```text", *examples, "```", ""])
        if below:
            yield from _commands(command, full)


def _names(option: Any) -> str:
    metavar = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    return ", ".join(f"`{name}{metavar}`" for name in option.opts).replace("|", r"\|")


def _option_default(option: Any) -> str:
    # The help texts give the defaults of settings in brackets: here they are all None.
    if option.is_flag or option.default is None:
        return ""
    return f" [{option.default}]"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", r"\|")


def statuses() -> str:
    """A row for each kind of failure: the answers and other outcomes of this kind, and what follows."""
    causes: dict[FailureKind, list[str]] = {kind: [] for kind in FailureKind}
    for status in (300, *sorted(STATUSES)):
        shown = "3xx" if status == 300 else f"{status}"
        of_json, of_text = (kind_of(AnswerError(status, None, is_json)) for is_json in (True, False))
        if of_json is of_text:
            causes[of_json].append(shown)
        else:
            causes[of_json].append(f"{shown} with JSON")
            causes[of_text].append(f"{shown} with other text")
    causes[FailureKind.FAULT].append("every other status")
    for code in sorted(ACCOUNT_CODES | KEY_CODES):
        causes[kind_of(AnswerError(400, code, is_json=True))].append(f"the code `{code}`")
    for words, outcome in OUTCOMES.items():
        causes[failure_of(outcome, None).kind].append(words)
    rows = [f"| {', '.join(of_kind)} | {kind.value} |" for kind, of_kind in causes.items()]
    return "\n".join(["| the upstream's answer | what it says, and what follows |", "|---|---|", *rows, ""])


def cheap_requests() -> str:
    """A row for each body of a cheap request, which has the model of the lines too."""
    endpoints: dict[bytes | None, list[str]] = {}
    for endpoint in sorted(ENDPOINTS):
        endpoints.setdefault(probe_body(endpoint, None), []).append(f"`{endpoint}`")
    no_request = endpoints.pop(None)
    rows = [f"| {', '.join(paths)} | `{body.decode()}` |" for body, paths in endpoints.items() if body]
    rows.append(f"| {', '.join(no_request)} | none is cheap; only lines are sent |")
    return "\n".join(["| endpoint | body |", "|---|---|", *rows, ""])


def limit_rules() -> str:
    """A row for each rule of the adaptive concurrency limit."""
    rows = [f"| `{rule.value}` | {rule.sentence} |" for rule in LimitRule]
    return "\n".join(["| why | what it says |", "|---|---|", *rows, ""])


def metrics() -> str:
    """A row for each metric."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} "
        f"| {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(["| metric | kind | labels | what |", "|---|---|---|---|", *rows, ""])


def decisions() -> str:
    """A link to each decision record, by its title."""
    lines: list[str] = []
    for record in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        title = record.read_text(encoding="utf-8").partition("\n")[0].partition(": ")[2]
        lines.append(f"- [{record.name[:4]}](decisions/{record.name}): {title}")
    return "\n".join([*lines, ""])


def pages() -> dict[Path, str]:
    """Every page with a generated part, as it should be."""
    parts = {
        "states": state_graph,
        "layers": layers,
        "statuses": statuses,
        "cheap_requests": cheap_requests,
        "limit_rules": limit_rules,
        "metrics": metrics,
        "python_errors": python_errors,
        "python_reference": python_reference,
        "decisions": decisions,
    }

    def printed(page: Path) -> str:
        text = page.read_text(encoding="utf-8")
        return PRINTED.sub(lambda found: found[1] + parts[found["part"]]() + found[3], text)

    generated = [
        DOCS / "how-it-works.md",
        DOCS / "faults.md",
        DOCS / "upstreams.md",
        DOCS / "observability.md",
        DOCS / "python.md",
        DOCS / "README.md",
    ]
    whole = {DOCS / "settings.md": settings_page(), DOCS / "cli.md": cli_page()}
    return whole | {page: printed(page) for page in generated}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
