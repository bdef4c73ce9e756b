"""The help of every command, `--version`, and what is said of words that nightmill does not know."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import nightmill as package
from nightmill.cli import app
from nightmill.cli.examples import EXAMPLES
from nightmill.cli.help import examples_of, similar_command, summary_of

ROOT: Any = typer.main.get_command(app)


def commands_below(command: Any, path: str = "nightmill") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands_below(below, f"{path} {name}")


COMMANDS = dict(commands_below(ROOT))
LINES = [(path, line) for path in COMMANDS for line in examples_of(path)]


def words_of(path: str) -> list[str]:
    return path.split()[1:]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_help_has_an_example_and_fits_80_columns(capsys, path):
    ROOT.main([*words_of(path), "--help"], prog_name="nightmill", standalone_mode=False)
    text = capsys.readouterr().out
    assert re.search(r"^Examples?:\n  nightmill ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


def test_no_example_belongs_to_a_command_that_is_gone():
    assert {f"nightmill {path}".strip() for path in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize(("path", "line"), LINES)
def test_every_example_is_a_command_line_that_is_accepted(path, line):
    for name in ("requests.jsonl", "rows.csv"):
        Path(name).touch()
    words = shlex.split(re.split(r" {3,}| > ", line)[0])[1:]
    command = ROOT
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    command.make_context("example", words)


def test_short_and_long_help_are_the_same(nightmill):
    assert nightmill("keys", "create", "-h").out == nightmill("keys", "create", "--help").out
    assert nightmill("help", "keys", "create").out == nightmill("keys", "create", "--help").out
    assert nightmill("-h").out == nightmill().out


def test_the_commands_stand_in_sections_and_no_summary_is_cut(nightmill):
    text = nightmill("--help").out
    headings = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert headings == [
        "Options", "Start", "Use batches", "Look closer", "Steer", "Operate", "Fleet", "Examples"
    ]  # fmt: skip
    assert text.count("...") == 1  # of the usage
    in_one_line = " ".join(text.split())
    for name, command in ROOT.commands.items():
        assert f"{name} {summary_of(command)}" in in_one_line


def test_a_group_without_a_command_prints_its_help(nightmill):
    ran = nightmill("keys")
    assert (ran.code, ran.err) == (0, "")
    assert "Commands:\n  create" in ran.out


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_an_option_too(nightmill, option):
    assert nightmill(option).out == f"nightmill {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "--limt", "3"], "there is no option --limt; did you mean --limit?"),
        (["list", "--nonsense"], "there is no option --nonsense; see 'nightmill list --help'"),
        (["--emulate", "serve"], "--emulate belongs to 'serve' and 'run'; write it after the command"),
        (["keys", "creat"], "there is no command 'creat'; did you mean 'create'?"),
        (["quux"], "there is no command 'quux'; see 'nightmill --help'"),
    ],
)
def test_the_name_that_was_probably_meant_is_given(nightmill, words, said):
    ran = nightmill(*words)
    assert ran.code == 2
    assert ran.err.startswith(f"nightmill: {said}")
    assert ran.err.count("\n") == 1


def test_words_of_other_programs_lead_to_the_command_that_does_it():
    names = list(ROOT.commands)
    assert [similar_command(word, names) for word in ("start", "ls", "stop", "STATUS", "prior", "xyz")] == [
        "serve", "list", "cancel", "show", "prioritize", None
    ]  # fmt: skip
