"""`nightmill projects`: limits of one project, and the lifetime of its files."""

from typing import Annotated

import typer

from nightmill.cli import flags, stored
from nightmill.cli.help import CommandLine
from nightmill.cli.screen import Json, out_json, out_table
from nightmill.errors import RequestError
from nightmill.ids import ProjectId

app = CommandLine("Show and set what a project may have.")

_Project = Annotated[str, typer.Argument(metavar="PROJECT", help="The project of `keys create --project`.")]
_AS_THE_SETTINGS_SAY = "default"


def _option(name: str, text: str) -> typer.models.OptionInfo:
    return typer.Option(name, metavar="N", help=f"{text}; 0: no limit, 'default': as the settings say.")


@app.command()
def show(
    project: _Project = "default",
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Show a project's limits and what it uses of them."""
    from nightmill.api.tenant_wire import project_on_wire
    from nightmill.core.limits import Consumption, ProjectRules
    from nightmill.store import Store

    async def read(store: Store) -> tuple[ProjectRules, Consumption]:
        project_id = ProjectId(project)
        return await store.projects.rules(project_id), await store.projects.consumption(project_id)

    rules, consumption = stored.with_store(folder, config, read)
    limits = rules.limits(stored.settings_in(folder, config).quota.limits)
    document = project_on_wire(project, rules, limits, consumption)
    if as_json:
        out_json(document)
        return
    used = document["used"]
    tokens: dict[str, int] = used.pop("enqueued_tokens")
    rows = [(name, str(count), str(document["limits"][name] or "-")) for name, count in used.items()]
    rows += [
        (f"enqueued_tokens {model or '(several models)'}", str(count), str(limits.enqueued_tokens or "-"))
        for model, count in (tokens or {"-": 0}).items()
    ]
    rows += [(name, str(value), "") for name, value in document["own"].items() if name.endswith("_ttl_s")]
    out_table(("", "USED", "LIMIT"), rows)


@app.command("set")
def set_rules(
    project: _Project,
    open_batches: Annotated[str | None, _option("--open-batches", "Batches that have not ended")] = None,
    open_lines: Annotated[str | None, _option("--open-lines", "Their lines")] = None,
    open_bytes: Annotated[str | None, _option("--open-bytes", "Bytes of their input files")] = None,
    stored_bytes: Annotated[str | None, _option("--stored-bytes", "Bytes of all its files")] = None,
    enqueued_tokens: Annotated[str | None, _option("--enqueued-tokens", "Tokens enqueued per model")] = None,
    input_ttl_s: Annotated[
        str | None, typer.Option("--input-ttl-s", metavar="N", help="Input files live so long; or 'default'.")
    ] = None,
    output_ttl_s: Annotated[
        str | None, typer.Option("--output-ttl-s", metavar="N", help="Output files; or 'default'.")
    ] = None,
    folder: flags.Folder = None,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Set the limits of a project in place of the settings. Limits that are not named stay unchanged."""
    from dataclasses import asdict, replace

    from nightmill.core.limits import ProjectRules
    from nightmill.store import Store

    asked = {
        "open_batches": open_batches,
        "open_lines": open_lines,
        "open_bytes": open_bytes,
        "stored_bytes": stored_bytes,
        "enqueued_tokens": enqueued_tokens,
        "input_ttl_s": input_ttl_s,
        "output_ttl_s": output_ttl_s,
    }
    changes = {name: _number(name, text) for name, text in asked.items() if text is not None}

    async def change(store: Store) -> ProjectRules:
        project_id = ProjectId(project)
        rules = replace(await store.projects.rules(project_id), **changes)
        await store.projects.set_rules(project_id, rules, by=stored.operator())
        return rules

    rules = stored.with_store(folder, config, change)
    if as_json:
        out_json({"project_id": project, **asdict(rules)})
        return
    shown = (
        (name, _AS_THE_SETTINGS_SAY if value is None else str(value)) for name, value in asdict(rules).items()
    )
    out_table(("", project), shown)


def _number(name: str, text: str) -> int | None:
    if text == _AS_THE_SETTINGS_SAY:
        return None
    least = 3_600 if name.endswith("_ttl_s") else 0
    if not text.isdecimal() or not least <= int(text) < 1 << 62:
        option = "--" + name.replace("_", "-")
        raise RequestError(f"{option} takes a number from {least} up or 'default', not '{text}'", param=name)
    return int(text)
