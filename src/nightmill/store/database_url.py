"""The URL of a store's database: parsing, and opening the database that it names."""

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from nightmill.errors import SetupError
from nightmill.store.clock import Clock
from nightmill.store.database import Database
from nightmill.store.sqlite import SqliteDatabase

FORMS = "sqlite:///folder/file.sqlite or postgresql://user@host/database"


def open_database(url: str, *, clock: Clock, busy_timeout_s: float) -> Database:
    """The first transaction connects; this call does not.

    Raises:
        SetupError: the URL is of an unknown kind, or its driver is not installed.
    """
    parsed = parse_url(url)
    if is_postgres(parsed):
        # The driver is an optional dependency.
        from nightmill.store.postgres import PostgresDatabase  # noqa: PLC0415

        return PostgresDatabase(parsed, busy_timeout_s=busy_timeout_s)
    return SqliteDatabase(sqlite_path(parsed), clock=clock, busy_timeout_s=busy_timeout_s)


def parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ValueError, ArgumentError):
        raise SetupError(f"the store's URL can't be read; write it as {FORMS}") from None
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql", "postgres"):
        raise SetupError(f"the store can't live in '{kind}'; write its URL as {FORMS}")
    return parsed


def shown_database(url: str) -> str:
    """The URL without its password and options."""
    return parse_url(url).set(query={}).render_as_string(hide_password=True)


def is_postgres(url: URL) -> bool:
    return url.get_backend_name() != "sqlite"


def sqlite_path(url: URL) -> Path:
    if not url.database or url.database == ":memory:":
        raise SetupError("the store needs a SQLite file that all its processes can open, not memory")
    return Path(url.database)


def sqlite_file(url: str) -> Path:
    """The file of the SQLite store that a URL names."""
    return sqlite_path(parse_url(url))
