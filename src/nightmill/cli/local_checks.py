"""What `nightmill doctor` finds out about this machine: its settings, the data folder, and its upstreams."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nightmill.cli import flags
from nightmill.cli.prune import size_text
from nightmill.cli.server_checks import Finding, Level, finding_of_trial
from nightmill.errors import SetupError

if TYPE_CHECKING:
    from nightmill.settings import Settings


def local_findings(folder: Path | None, config: Path | None, *, is_served: bool) -> Iterator[Finding]:
    """From the settings to the upstreams.

    Args:
        is_served: a server runs already; then its address and its upstreams are not tried from here.
    """
    try:
        settings = flags.settings_of({"folder": folder}, config)
    except SetupError as error:
        yield Finding(Level.FAILED, "settings", str(error))
        return
    yield Finding(Level.OK, "settings", "they can be read; see them with: nightmill settings")
    yield from _of_folder(settings)
    yield _of_disk(settings)
    if not is_served:
        yield from _of_address(settings)
        yield from _of_upstreams(settings)


def _of_folder(settings: "Settings") -> Iterator[Finding]:
    folder = settings.folder.absolute()
    if not folder.exists():
        yield Finding(Level.SKIPPED, "folder", f"there is no {folder} yet; nightmill serve makes it")
    elif not folder.is_dir():
        yield Finding(Level.FAILED, "folder", f"{folder} is not a folder; name another with --folder")
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            Level.FAILED, "folder", f"{folder} can't be written by this user; see its owner and mode"
        )
    else:
        database = folder / "nightmill.sqlite"
        held = f", with a database of {size_text(database.stat().st_size)}" if database.is_file() else ""
        yield Finding(Level.OK, "folder", f"{folder}{held}")


def _of_disk(settings: "Settings") -> Finding:
    place = settings.folder.absolute()
    while not place.exists():
        place = place.parent
    free_bytes, reserved_bytes = shutil.disk_usage(place).free, settings.retention.free_bytes
    text = f"{size_text(free_bytes)} are free"
    if free_bytes < reserved_bytes:
        more = f"nothing is written below {size_text(reserved_bytes)} (retention.free_bytes)"
        return Finding(Level.FAILED, "disk", f"{text}, and {more}; see docs/disk.md")
    if free_bytes < 2 * reserved_bytes:
        more = f"writing stops at {size_text(reserved_bytes)} (retention.free_bytes)"
        return Finding(Level.WARNING, "disk", f"{text}, and {more}; see docs/disk.md")
    return Finding(Level.OK, "disk", text)


def _of_address(settings: "Settings") -> Iterator[Finding]:
    host, port = settings.api.host, settings.api.port
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        text = f"a server can't listen on {host}:{port}: {error.strerror}; choose another with --port"
        yield Finding(Level.WARNING, "address", text)
    else:
        yield Finding(Level.OK, "address", f"a server can listen on {host}:{port}")


def _of_upstreams(settings: "Settings") -> Iterator[Finding]:
    if settings.emulator.enabled or settings.model.path is not None:
        return
    if not settings.all_upstreams:
        text = "the settings name none; give nightmill serve one with --upstream, --model or --emulate"
        yield Finding(Level.WARNING, "upstreams", text)
    # Imported here: these take most of a second to import.
    from nightmill.client.local import finished
    from nightmill.upstream.diagnosis import diagnose

    for upstream in settings.all_upstreams:
        if upstream.url is None or upstream.url == "auto":
            text = f"{upstream.name}: nightmill serve looks for it at its start"
            yield Finding(Level.SKIPPED, "upstream", text)
            continue
        diagnosis = finished(diagnose(upstream, url=upstream.url, models=upstream.models))
        steps = [{"is_ok": step.is_ok, "text": step.text} for step in diagnosis.steps]
        yield finding_of_trial(upstream.name, diagnosis.is_usable, steps)
