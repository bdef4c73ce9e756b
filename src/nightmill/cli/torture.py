"""`nightmill torture`."""

import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nightmill.cli.failures import ExitCode
from nightmill.cli.screen import Json, out_fields, out_json, say
from nightmill.errors import SetupError

if TYPE_CHECKING:
    from nightmill_torture.report import Report


def torture(
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=1, help="Faults in all.")] = 100,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed, the same choices.")] = 0,
    lines: Annotated[int, typer.Option("--lines", metavar="N", min=1, help="Lines of a batch.")] = 400,
    batches: Annotated[int, typer.Option("--batches", metavar="N", min=1, help="Batches open at once.")] = 4,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Worker processes [2; of a fleet 4]."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder", metavar="FOLDER", help="Make the data folder in here, on the disk to be tried [.]."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="URL", help="Torture a fleet over this Postgres: an empty database."),
    ] = None,
    blobs: Annotated[
        str | None,
        typer.Option(
            "--blobs",
            metavar="URL",
            help="The fleet's bucket; endpoint and keys come from NIGHTMILL_BLOBS__... [a folder].",
        ),
    ] = None,
    restart_store: Annotated[
        str | None,
        typer.Option(
            "--restart-store",
            metavar="COMMAND",
            help="Restarts that Postgres; without it all connections are cut instead.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="local|ray",
            help="Where the fleet's workers run; ray starts a cluster of several nodes.",
        ),
    ] = "local",
    as_json: Json = False,
) -> None:
    """Kill a server again and again on this disk, and prove that nothing was lost.

    It starts a server and the emulator, runs batches through the official client, kills with SIGKILL at
    every failpoint and at random instants, starts the server again, and in the end compares every file with
    the upstream's own record. Any breach makes the exit code 1 and keeps the folder.

    With --store it tests a fleet: API servers and worker hosts, which it kills, freezes, and cuts off from
    Postgres and the bucket.
    """
    if store is None and (blobs is not None or restart_store is not None):
        raise SetupError("--blobs and --restart-store need a fleet: name its Postgres with --store")
    if engine not in ("local", "ray"):
        raise SetupError(f"there is no engine '{engine}'; choose local or ray")
    if store is None and engine != "local":
        raise SetupError("--engine needs a fleet: name its Postgres with --store")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="nightmill-torture-", dir=folder or Path.cwd()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: every process is ended
    sizes = {"kills": kills, "seed": seed, "lines": lines, "batches": batches, "workers": workers}
    services = {"store": store, "blobs": blobs, "restart_store": restart_store, "engine": engine}
    try:
        report, shown = _run(as_json, folder=place, **sizes, **services)
    except BaseException:
        if any(place.iterdir()):
            say(f"nightmill: everything is kept in {place}")
        else:
            place.rmdir()
        raise
    if as_json:
        out_json(shown)
    else:
        out_fields(shown)
    if report.is_kept:
        shutil.rmtree(place)
        return
    for example in report.proof.examples:
        say(f"nightmill: {example}")
    also_kept = "" if store is None else ", in the database and in the bucket"
    say(f"nightmill: the promise is broken; everything is kept in {place}{also_kept}")
    raise typer.Exit(ExitCode.SOME_FAILED)


def _run(as_json: bool, **options: Any) -> tuple["Report", Any]:
    """The report of a run, and what is printed of it."""
    from nightmill.client.local import finished

    try:
        from nightmill_torture import Plan, report
        from nightmill_torture import torture as run
    except ImportError as error:
        raise SetupError(f"the crash harness can't be loaded ({error}); reinstall nightmill") from None
    made = finished(run(Plan(**options), show=say))
    return made, report.as_json(made) if as_json else report.rows(made)
