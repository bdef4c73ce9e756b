"""`nightmill check`: compares the database with the files on disk."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli import flags
from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, clean, out, out_json, say

if TYPE_CHECKING:
    from nightmill.admin.check import Checked
    from nightmill.admin.findings import Finding
    from nightmill.settings import Settings


def check(
    folder: flags.Folder = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Repair what can be repaired without loss; stop the server first."),
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every file of every batch too, and count its lines.")
    ] = False,
    config: flags.Config = None,
    as_json: Json = False,
) -> None:
    """Compare the database with the files on disk, and say what is wrong and what `--repair` would do.

    Without `--repair` nothing is changed, and a server may be running.
    """
    settings = flags.settings_of({"folder": folder}, config)
    checked = _repaired(settings, deep=deep) if repair else _checked(settings, deep=deep)
    if as_json:
        out_json(_wire(checked))
    else:
        _print(checked)
    raise typer.Exit(_exit_code(checked, repair=repair))


def _checked(settings: "Settings", *, deep: bool) -> "Checked":
    # Imported here: the database's libraries are slow to import and `--help` does not need them.
    from nightmill.admin.check import Depth, check
    from nightmill.admin.disk import kept_folder

    return check(kept_folder(settings), settings.store_url, depth=Depth.DEEP if deep else Depth.USUAL)


def _repaired(settings: "Settings", *, deep: bool) -> "Checked":
    from nightmill.admin.check import Depth, check_and_repair
    from nightmill.admin.disk import kept_folder
    from nightmill.runtime.data_folder_lock import locked_folder
    from nightmill.store.snapshot import database_file

    folder = kept_folder(settings)
    database_file(settings.store_url)  # locking would create a folder whose name was mistyped
    with locked_folder(folder):
        return check_and_repair(folder, settings.store_url, depth=Depth.DEEP if deep else Depth.USUAL)


def _exit_code(checked: "Checked", *, repair: bool) -> ExitCode:
    if not checked.left:
        return ExitCode.OK
    repairable = not repair and all(finding.repair for finding in checked.left)
    return ExitCode.SOME_FAILED if repairable else ExitCode.DAMAGED


def _print(checked: "Checked") -> None:
    from nightmill.admin.findings import in_words

    left = set(checked.left)
    for finding in checked.found:
        step = ""
        if finding.repair is not None:
            step = f" [repair: {in_words(finding.repair)}]" if finding in left else " [repaired]"
        out(f"{finding.kind}: {clean(finding.subject)}: {clean(finding.detail)}{step}")
    for finding in checked.left:
        if finding not in checked.found:
            out(f"{finding.kind}: {clean(finding.subject)}: {clean(finding.detail)}")
    repaired = len(checked.found) - len(left.intersection(checked.found))
    if not checked.left:
        say(f"nightmill: nothing is wrong{f' any more, {repaired} repaired' if repaired else ''}")
        return
    repairable = sum(finding.repair is not None for finding in checked.left)
    summary = f"{len(checked.left)} wrong, {repairable} of them can be repaired with --repair"
    say(f"nightmill: {repaired} repaired, {summary}" if repaired else f"nightmill: {summary}")


def _wire(checked: "Checked") -> dict[str, Any]:
    left = set(checked.left)
    new = [finding for finding in checked.left if finding not in checked.found]
    return {
        "wrong": len(checked.left),
        "findings": [_finding_on_wire(it, is_left=it in left) for it in (*checked.found, *new)],
    }


def _finding_on_wire(finding: "Finding", *, is_left: bool) -> dict[str, Any]:
    from nightmill.admin.findings import in_words

    return {
        "kind": str(finding.kind),
        "subject": finding.subject,
        "detail": finding.detail,
        "repair": None if finding.repair is None else in_words(finding.repair),
        "repaired": not is_left,
        "mended": not is_left,  # the old name, until 0.2
    }
