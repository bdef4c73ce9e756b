"""Decision records share one form: the number of the file name, a title, a date and a status."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_has_its_number_a_date_and_a_status(record: Path):
    heading, blank, status, *_ = record.read_text(encoding="utf-8").split("\n")
    assert re.fullmatch(rf"# {record.name[:4]}: [A-Z].*[^.]", heading)
    assert not blank
    assert re.match(r"Date: \d{4}-\d\d-\d\d\. Status: [a-z]", status)


def test_the_numbers_have_no_gap():
    assert [int(record.name[:4]) for record in RECORDS] == list(range(1, len(RECORDS) + 1))
