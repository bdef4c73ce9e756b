"""Tables and fields that fit the terminal."""

import os
import sys
import time

from openai.types import FileObject

from nightmill.cli.screen import out_fields, out_sentence, out_table, say
from nightmill.cli.table import Column, fitted
from nightmill.client import Client

ID = Column("ID", ["aaaaaaaa", "bbbbbbbb"])
MODEL = Column("MODEL", ["m", "n"], drop=1)
ENDPOINT = Column("ENDPOINT", ["/v1/chat/completions", "/v1/embeddings"], drop=2)
WHY = Column("WHY", ["It waits for an upstream.", ""], drop=0)


def test_all_columns_are_shown_where_they_fit():
    assert fitted([ID, MODEL, ENDPOINT, WHY], 70) == [
        "ID        MODEL  ENDPOINT              WHY",
        "aaaaaaaa  m      /v1/chat/completions  It waits for an upstream.",
        "bbbbbbbb  n      /v1/embeddings",
    ]


def test_the_last_column_is_cut_before_another_is_left_out():
    assert (
        fitted([ID, MODEL, ENDPOINT, WHY], 55)[1] == "aaaaaaaa  m      /v1/chat/completions  It waits for an…"
    )


def test_minor_columns_are_left_out_first():
    assert fitted([ID, MODEL, ENDPOINT, WHY], 45)[0] == "ID        MODEL  WHY"
    assert fitted([ID, MODEL, ENDPOINT, WHY], 24)[0] == "ID        WHY"


def test_without_a_width_nothing_is_cut_and_a_minor_column_without_cells_is_left_out():
    wide = [*(ID, MODEL, ENDPOINT), Column("WHY", ["x" * 300, ""], drop=1), Column("NOTE", ["", ""], drop=1)]
    assert fitted(wide, None)[1].endswith("x" * 300)
    assert "NOTE" not in fitted(wide, None)[0]


def test_a_column_keeps_its_least_width():
    why = Column("WHY", ["concurrency limit", ""], drop=1, least=17)
    assert fitted([ID, ENDPOINT, why], 40)[1] == "aaaaaaaa  concurrency limit"


def test_a_long_column_is_cut_before_another_is_left_out_and_gets_the_room_that_is_left():
    model = Column("MODEL", ["m" * 40, "n"], drop=1, least=10)
    assert (
        fitted([ID, model, ENDPOINT, WHY], 60)[1]
        == f"aaaaaaaa  {'m' * 13}…  /v1/chat/completions  It waits fo…"
    )
    assert fitted([ID, model, ENDPOINT, WHY], 50)[1] == f"aaaaaaaa  {'m' * 25}…  It waits fo…"


def test_on_a_terminal_the_last_column_of_a_table_and_a_long_value_take_several_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    out_table(("N", "DETAIL"), [("1", "It waits for an upstream that is away."), ("2", "")])
    out_fields([("why", "It waits for an upstream."), ("id", "b1")])
    assert capsys.readouterr().out.splitlines() == [
        "N  DETAIL",
        "1  It waits for an upstream",
        "   that is away.",
        "2",
        "why  It waits for an upstream.",
        "id   b1",
    ]


def test_on_a_terminal_a_message_is_wrapped_between_words_but_not_within_a_command(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    say("nightmill: there is no command 'lst'; see 'nightmill --help'")
    say("  it can't be read; start one with: nightmill serve --emulate")
    assert capsys.readouterr().err.splitlines() == [
        "nightmill: there is no command 'lst';",
        "see 'nightmill --help'",
        "  it can't be read; start one with:",
        "  nightmill serve --emulate",
    ]


def test_a_result_in_words_is_wrapped_like_a_message(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((20, 24)))
    out_sentence("  3f2a9c1b is in_progress, paused")
    assert capsys.readouterr().out.splitlines() == ["  3f2a9c1b is", "  in_progress,", "  paused"]


def test_in_a_pipe_a_message_is_one_line_however_long(capsys):
    say("word " * 100)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_in_a_pipe_each_row_is_one_line_however_long(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    out_table(("N", "DETAIL"), [("1", "x " * 50)])
    out_fields([("why", "x " * 50)])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_list_of_files_leaves_out_what_matters_less(nightmill, monkeypatch):
    names = ["mine.jsonl", f"batch_{'3f2a9c1b' * 4}_output.jsonl"]
    rows = [
        FileObject(
            id="file-dvyuBKxQbGzUG5hSVrBzP6",
            bytes=237_606,
            created_at=int(time.time()) - 65,
            expires_at=None,
            filename=name,
            object="file",
            purpose="batch_output",
            status="processed",
        )
        for name in names
    ]
    monkeypatch.setattr(Client, "files", lambda *_, **__: iter(rows))
    heading, *listed = nightmill("files", "list").out.splitlines()
    assert heading.split() == ["ID", "BYTES", "AGE", "FILENAME"]
    assert [row.split("  ")[-1] for row in listed] == ["mine.jsonl", "batch_3f2a9c1b…_output.jsonl"]
    monkeypatch.setenv("COLUMNS", "120")
    heading, *listed = nightmill("files", "list").out.splitlines()
    assert heading.split() == ["ID", "PURPOSE", "BYTES", "AGE", "EXPIRES", "IN", "FILENAME"]
    assert "never" in listed[0]
