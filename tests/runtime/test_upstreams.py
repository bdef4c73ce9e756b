"""`--upstream auto` beside a real nightmill, which listens where llama.cpp usually does."""

from functools import partial
from pathlib import Path

import pytest

from nightmill.errors import SetupError
from nightmill.runtime import upstreams
from nightmill.settings import load
from nightmill.upstream import find_local_servers
from tests.faults.served import serving


async def test_a_nightmill_is_never_taken_for_a_model_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    settings = load(flags={"upstream": {"url": "auto"}}, environment={})
    with serving(tmp_path) as served:
        servers = (("llama.cpp", served.port),)
        monkeypatch.setattr(upstreams, "find_local_servers", partial(find_local_servers, servers=servers))
        with pytest.raises(SetupError, match="found no model server"):
            await upstreams.choose_upstream(settings, say=said.append)
    [left_out] = said
    assert left_out.startswith(f"left out http://127.0.0.1:{served.port}/v1: that is a nightmill")
