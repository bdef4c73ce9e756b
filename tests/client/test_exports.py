"""Everything public of the client is exported, resolves, and has a description."""

import inspect
import re
from collections.abc import Iterator
from textwrap import dedent

import pytest

import nightmill
from nightmill import client, errors
from nightmill.client import session
from tests.client.batch_server import BatchServer, chat

EXAMPLE = re.compile(r"^ *```python\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)


def public_methods(cls: type) -> list[str]:
    """Methods and properties that the class defines itself."""
    return [
        name
        for name, value in vars(cls).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    ]


def is_ours(value: object) -> bool:
    return getattr(value, "__module__", "").startswith("nightmill.")


@pytest.mark.parametrize("owner", [nightmill, client], ids=lambda owner: owner.__name__)
def test_every_exported_name_resolves(owner):
    assert set(owner.__all__) <= {*dir(owner)}
    assert all(getattr(owner, name) is not None for name in owner.__all__)


def test_the_names_and_their_homes_agree():
    assert set(client._HOMES) == set(client.__all__)
    assert set(nightmill.__all__) - {"__version__", "client", "testing"} <= set(client.__all__)


def test_the_whole_family_of_errors_is_exported():
    family = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.NightmillError)
    }
    # It never leaves a worker.
    assert family - {"LeaseLost"} <= set(nightmill.__all__)


@pytest.mark.parametrize("name", client.__all__)
def test_every_exported_name_has_a_description(name):
    value = getattr(client, name)
    if not is_ours(value) or not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", [name for name in client.__all__ if not name.startswith("Async")])
def test_every_public_method_has_a_description(name):
    value = getattr(client, name)
    if not is_ours(value) or not inspect.isclass(value):
        return
    missing = [method for method in public_methods(value) if not inspect.getdoc(getattr(value, method))]
    assert missing == []


def examples() -> Iterator[tuple[str, str]]:
    for name in client.__all__:
        value = getattr(client, name)
        methods = (
            [getattr(value, method) for method in public_methods(value)] if inspect.isclass(value) else []
        )
        for owner in (value, *methods):
            for found in EXAMPLE.finditer(inspect.getdoc(owner) or ""):
                yield getattr(owner, "__qualname__", name), dedent(found["code"])


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in examples()])
def test_the_example_of_a_description_runs(server, code, monkeypatch, capsys):
    pytest.importorskip("pandas")
    server.answer = BatchServer(lambda _: (200, chat('{"name": "Ucayali", "length_km": 1771}')))
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setattr(session, "FIRST_POLL_S", 0.001)
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert re.search("Ucayali|This answer is emulated", capsys.readouterr().out)
