"""Blob storage of a fleet: a shared folder, or an S3 server, by preference that of Ceph."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import machine, tools


@dataclass(frozen=True, slots=True)
class Storage:
    """`environment` is for every process of the fleet; `pids` are the process ids of the S3 server."""

    name: str
    environment: dict[str, str]
    pids: tuple[int, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)

    def cpu_s(self) -> float:
        return sum(map(machine.tree_cpu_s, self.pids))

    def objects(self, folder: str) -> int:
        """The number of objects below `folder`, which equals the number of puts: nothing is deleted."""
        if not self.settings:
            return 0
        import asyncio  # noqa: PLC0415 - only here

        from nightmill.blobs.connect import connect  # noqa: PLC0415 - needs an extra
        from nightmill.settings import BlobSettings  # noqa: PLC0415 - as above

        async def count() -> int:
            bucket = connect(BlobSettings.model_validate(self.settings))
            try:
                return len([key async for key in bucket.keys_under(folder)])
            finally:
                await bucket.close()

        return asyncio.run(count())


@contextmanager
def shared_folder(folder: Path) -> Iterator[Storage]:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield Storage("folder", {"NIGHTMILL_FOLDER": str(folder)})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def bucket(folder: Path) -> Iterator[Storage]:
    """The gateway of Ceph, installed on demand where possible; otherwise moto, which is Python and slow."""
    from tests.fleet.rgw import RadosGateway, missing_programs  # noqa: PLC0415 - only the fleet's rows need it

    if missing_programs():
        tools.install_system("radosgw", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common")
    if missing_programs():
        from tests.s3_server import S3Server  # noqa: PLC0415 - as above

        moto = S3Server.start()
        try:
            yield _on_s3("S3 (moto)", folder, moto.settings(moto.make_bucket()), (moto.process.pid,))
        finally:
            moto.stop()
        return
    gateway = RadosGateway.start()
    try:
        pids = tuple(daemon.pid for daemon in gateway.daemons)
        yield _on_s3("S3 (Ceph)", folder, gateway.settings(), pids)
    finally:
        gateway.stop()


def _on_s3(name: str, folder: Path, settings: dict[str, object], pids: tuple[int, ...]) -> Storage:
    environment = {f"NIGHTMILL_BLOBS__{key.upper()}": str(value) for key, value in settings.items()}
    return Storage(name, {"NIGHTMILL_FOLDER": str(folder), **environment}, pids, settings)
