"""Tables that fit the terminal."""

from nightmill.cli.table import Column, fitted

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
