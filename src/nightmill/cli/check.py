"""`nightmill check`: is everything there that the database says is there?"""

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
        bool, typer.Option("--repair", help="Mend what can be mended without loss; stop the server first.")
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
    settings = flags.settings_of({"folder": str(folder) if folder else None}, config)
    checked = _mended(settings, deep=deep) if repair else _checked(settings, deep=deep)
    if as_json:
        out_json(_wire(checked))
    else:
        _tell(checked)
    raise typer.Exit(_exit_code(checked, repair=repair))


def _checked(settings: "Settings", *, deep: bool) -> "Checked":
    # Late: the database's libraries take longer to import than `--help` may take.
    from nightmill.admin.check import Depth, check
    from nightmill.admin.disk import kept_folder

    return check(kept_folder(settings), settings.store_url, depth=Depth.DEEP if deep else Depth.USUAL)


def _mended(settings: "Settings", *, deep: bool) -> "Checked":
    from nightmill.admin.check import Depth, check_and_mend
    from nightmill.admin.disk import kept_folder
    from nightmill.runtime.data_folder_lock import locked_folder
    from nightmill.store.snapshot import database_file

    folder = kept_folder(settings)
    database_file(settings.store_url)  # locking makes the folder, and a slip of the pen must not
    with locked_folder(folder):
        return check_and_mend(folder, settings.store_url, depth=Depth.DEEP if deep else Depth.USUAL)


def _exit_code(checked: "Checked", *, repair: bool) -> ExitCode:
    if not checked.left:
        return ExitCode.OK
    can_be_mended = not repair and all(finding.mend for finding in checked.left)
    return ExitCode.SOME_FAILED if can_be_mended else ExitCode.DAMAGED


def _tell(checked: "Checked") -> None:
    from nightmill.admin.findings import in_words

    left = set(checked.left)
    for finding in checked.found:
        step = ""
        if finding.mend is not None:
            step = f" [repair: {in_words(finding.mend)}]" if finding in left else " [mended]"
        out(f"{finding.kind}: {clean(finding.subject)}: {clean(finding.detail)}{step}")
    for finding in checked.left:
        if finding not in checked.found:
            out(f"{finding.kind}: {clean(finding.subject)}: {clean(finding.detail)}")
    mended = len(checked.found) - len(left.intersection(checked.found))
    if not checked.left:
        say(f"nightmill: nothing is wrong{f' any more, {mended} mended' if mended else ''}")
        return
    can_be_mended = sum(finding.mend is not None for finding in checked.left)
    told = f"{len(checked.left)} wrong, {can_be_mended} of them can be mended with --repair"
    say(f"nightmill: {mended} mended, {told}" if mended else f"nightmill: {told}")


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
        "repair": None if finding.mend is None else in_words(finding.mend),
        "mended": not is_left,
    }
