"""The source code keeps to its figures; `make house` prints them."""

from tests.house import figures
from tests.house.figures import SourceFile

FILES = figures.product_files()


def test_the_product_does_not_grow_unnoticed():
    lines = sum(file.line_count for file in FILES)
    on_data_path = sum(file.line_count for file in FILES if file.path.split("/")[2] in figures.DATA_PATH)
    assert lines <= figures.MOST_LINES
    assert len(FILES) <= figures.MOST_FILES
    assert on_data_path <= figures.MOST_DATA_PATH_LINES


def test_no_file_is_too_long_to_be_read_at_once():
    assert [file.path for file in FILES if file.line_count > figures.LONG_FILE_LINES] == []


def test_few_files_are_too_short_to_be_worth_a_file():
    assert len(figures.short_files(FILES)) <= 12


def test_no_constructor_has_more_than_eight_parameters():
    assert figures.wide_constructors(FILES) == []


def test_a_wide_constructor_is_found():
    parameters = ", ".join(f"argument_{number}" for number in range(9))
    file = SourceFile("wide.py", f"class Wide:\n    def __init__(self, {parameters}): ...\n")
    assert figures.wide_constructors([file]) == ["wide.py: Wide(9)"]


def test_one_reader_decides_which_answer_of_a_line_stands():
    assert figures.deciders_of_answers(FILES) == []


def test_no_old_word_is_left():
    assert figures.old_words(figures.prose_files()) == []


def test_an_old_word_is_found_with_its_place():
    assert figures.old_words([SourceFile("a.py", "first\n# whoever asks\n")]) == ["a.py:2: whoever"]


def test_no_paper_outside_the_repository_is_cited():
    assert figures.foreign_citations(figures.prose_files()) == []
