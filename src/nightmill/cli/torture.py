"""`nightmill torture`."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, out_fields, out_json, say


def torture(
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=1, help="Kills in all.")] = 100,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed, the same choices.")] = 0,
    lines: Annotated[int, typer.Option("--lines", metavar="N", min=1, help="Lines of a batch.")] = 400,
    batches: Annotated[int, typer.Option("--batches", metavar="N", min=1, help="Batches open at once.")] = 4,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, help="Worker processes.")] = 2,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", metavar="FOLDER", help="Make the data folder in here, on the disk to be tried [.]."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Kill a server again and again on this disk, and prove that nothing was lost.

    It starts a server and the emulator, runs batches through the official client, kills with SIGKILL at
    every named crash point and at random instants, starts again, and in the end compares every file with
    the upstream's own record. Any breach makes the exit code 1 and keeps the folder.
    """
    from nightmill.client.local import finished
    from nightmill.torture import Plan
    from nightmill.torture import torture as tortured
    from nightmill.torture.table import as_json as document
    from nightmill.torture.table import rows

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="nightmill-torture-", dir=folder or Path.cwd()))
    plan = Plan(folder=place, kills=kills, seed=seed, lines=lines, batches=batches, workers=workers)
    try:
        report = finished(tortured(plan, show=say))
    except BaseException:
        say(f"nightmill: everything is kept in {place}")
        raise
    if as_json:
        out_json(document(report))
    else:
        out_fields(rows(report))
    if report.is_kept:
        shutil.rmtree(place)
        return
    for example in report.proof.examples:
        say(f"nightmill: {example}")
    say(f"nightmill: the promise is broken; everything is kept in {place}")
    raise typer.Exit(ExitCode.SOME_FAILED)
