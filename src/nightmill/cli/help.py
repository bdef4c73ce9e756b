"""The help of commands as plain text: commands in sections, whole summaries, and an example of each.

Typer prints sections through rich only, which is slow to import and draws boxes, and it cuts summaries. The
classes here print sections themselves.
"""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup

from nightmill.cli.examples import EXAMPLES

_OTHER_NAMES: Final = {
    "abort": "cancel",
    "config": "settings",
    "create": "submit",
    "delete": "prune",
    "download": "results",
    "errors": "results",
    "health": "doctor",
    "history": "events",
    "init": "serve",
    "kill": "cancel",
    "logs": "events",
    "ls": "list",
    "output": "results",
    "progress": "watch",
    "start": "serve",
    "status": "show",
    "stop": "cancel",
    "tail": "watch",
    "up": "serve",
    "upload": "submit",
    "wait": "watch",
    "worker": "work",
}
"""Words that other programs use, and the command of nightmill that does it."""


_NAMED_COMMANDS: Final = 2


class CommandLine(typer.Typer):
    """A group of commands whose help is plain text."""

    def __init__(self, help_text: str, *, invoke_without_command: bool = False) -> None:
        super().__init__(
            cls=Group,
            help=help_text,
            invoke_without_command=invoke_without_command,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def command(
        self, name: str | None = None, *, rich_help_panel: str | None = None, **settings: Any
    ) -> Callable[[Any], Any]:
        """Adds a command. `rich_help_panel` is typer's name for the section of the help."""
        add = cast("Any", super().command)
        return add(name, cls=Command, rich_help_panel=rich_help_panel, **settings)

    def add(self, panel: str, *functions: Callable[..., Any], **named: Callable[..., Any]) -> None:
        """Adds commands to a section of the help.

        Args:
            functions: commands with the names of the functions, `-` for `_`.
            named: commands with other names.
        """
        for function in functions:
            self.command(rich_help_panel=panel)(function)
        for name, function in named.items():
            self.command(name, rich_help_panel=panel)(function)


class Command(TyperCommand):
    """A command whose help ends with its examples."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        names = [_name_of(argument) for argument in arguments]
        return [
            "[OPTIONS]",
            *(
                name if argument.required or name.startswith("[") else f"[{name}]"
                for argument, name in zip(arguments, names, strict=True)
            ),
        ]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [
            (_name_of(param), getattr(param, "help", None) or "")
            for param in self.get_params(ctx)
            if param.param_type_name == "argument"
        ]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(arguments)
        records = [
            param.get_help_record(ctx) for param in self.get_params(ctx) if param.param_type_name == "option"
        ]
        with formatter.section("Options"):
            formatter.write_dl([record for record in records if record is not None])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)


class Group(TyperGroup):
    """A group that lists its commands in sections, and prints its help if no command is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            args = ["--help"]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        command = super().get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing and not args[0].startswith("-"):
            meant = similar_command(args[0], self.commands)
            hint = f"; did you mean '{meant}'?" if meant else ""
            ctx.fail(f"there is no command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                panel = command.rich_help_panel
                heading = panel if isinstance(panel, str) else "Commands"
                sections.setdefault(heading, []).append((name, summary_of(command)))
        width = max(len(name) for rows in sections.values() for name, _ in rows)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), summary) for name, summary in rows])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(ctx, formatter)


def summary_of(command: Any) -> str:
    """The first sentence of a command's help, without its full stop."""
    first = " ".join((command.help or "").partition("\n\n")[0].split())
    return first.partition(". ")[0].removesuffix(".")


def examples_of(path: str) -> tuple[str, ...]:
    """The examples of the command with this path, such as `nightmill keys create`."""
    return EXAMPLES.get(path.partition(" ")[2], ())


def similar_command(given: str, names: Iterable[str]) -> str | None:
    """The command that was probably meant; None if no command is similar."""
    known = set(names)
    other = _OTHER_NAMES.get(given.lower())
    if other in known:
        return other
    beginning = sorted(name for name in known if name.startswith(given.lower()))
    if given and len(beginning) == 1:
        return beginning[0]
    return next(iter(difflib.get_close_matches(given.lower(), sorted(known), n=1)), None)


def no_such_option(context: Any, option: str) -> str:
    """The message for an option that the command does not have, with the one that was probably meant."""
    command = context.command
    known = [name for param in command.get_params(context) for name in (*param.opts, *param.secondary_opts)]
    owners = [name for name, below in getattr(command, "commands", {}).items() if _has_option(below, option)]
    if owners:
        named = " and ".join(f"'{name}'" for name in owners[:_NAMED_COMMANDS])
        return f"{option} belongs to {named}; write it after the command"
    near = difflib.get_close_matches(option, [name for name in known if name.startswith("--")], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no option {option}{hint}"


def _has_option(command: Any, option: str) -> bool:
    return any(option in param.opts for param in command.params)


def _name_of(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _write_examples(ctx: Any, formatter: Any) -> None:
    if examples := examples_of(ctx.command_path):
        with formatter.section("Examples" if len(examples) > 1 else "Example"):
            for example in examples:
                formatter.write(f"  {example}\n")
