from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nightmill.parts import FolderParts


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[FolderParts]:
    parts = FolderParts(tmp_path / "parts", commit_interval_s=0.005, buffer_bytes=1 << 20, retry_s=0.01)
    yield parts
    await parts.close()
