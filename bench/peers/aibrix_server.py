"""AIBrix's metadata service without Kubernetes or Redis: local stores, a real upstream in its dry run."""

import os
import sys
from pathlib import Path

url, port = sys.argv[1:3]
os.environ["LOCAL_STORAGE_PATH"] = str(Path.cwd() / "storage")

import uvicorn  # noqa: E402 - the environment comes first
from aibrix.batch.client import GatewayEndpointSource  # noqa: E402 - as above
from aibrix.metadata import app as service  # noqa: E402 - as above
from aibrix.storage import StorageType  # noqa: E402 - as above


class _NoRedis:
    """A Redis client that is only pinged and closed; batches are kept in files."""

    async def ping(self) -> bool:
        return True

    async def close(self) -> None:
        return


service.settings.STORAGE_TYPE = service.settings.METASTORE_TYPE = StorageType.LOCAL
service.NoopEndpointSource = lambda: GatewayEndpointSource(url.removesuffix("/v1"))
app = service.build_app(service.build_app_args(dry_run=True))
app.state.metadata_store = _NoRedis()
uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
