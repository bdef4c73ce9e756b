"""The bar below the cell of a notebook, shown through a module in the place of IPython."""

import sys
import types

import pytest

from nightmill.client.notebook import Bar, NotebookDisplay, is_notebook
from nightmill.client.progress import Snapshot, shown


class Handle:
    def __init__(self, shown: list[Bar]) -> None:
        self.update = shown.append


class Shell:
    """A shell of IPython, with a kernel in a notebook."""


@pytest.fixture
def cell(monkeypatch) -> list[Bar]:
    """What a notebook shows below the cell, the newest last."""
    bars: list[Bar] = []
    shell = Shell()
    shell.kernel = object()

    def display(bar: Bar, *, display_id: bool) -> Handle:
        assert display_id
        bars.append(bar)
        return Handle(bars)

    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: shell
    package.display = module
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return bars


def test_without_ipython_there_is_no_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not is_notebook()


def test_ipython_in_a_terminal_is_no_notebook(cell):
    assert is_notebook()
    sys.modules["IPython"].get_ipython = Shell
    assert not is_notebook()
    sys.modules["IPython"].get_ipython = lambda: None
    assert not is_notebook()


def test_progress_is_shown_below_the_cell_and_not_on_stderr(cell, capsys):
    moments = iter([0.0, 10.0])
    with shown(now=lambda: next(moments)) as show:
        show(Snapshot(status="in_progress", total=4, completed=0, failed=0, why="The upstream is held."))
        show(Snapshot(status="completed", total=4, completed=3, failed=1))
    first, last = cell
    assert (first.done, first.total, first.note, first.has_ended) == (0, 4, "The upstream is held.", False)
    assert (last.done, last.total, last.has_ended) == (4, 4, True)
    assert last.text.startswith("completed: 4 of 4")
    assert "1 failed" in last.text
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_is_given_is_used_in_a_notebook_too(cell, capsys):
    with shown(sys.stdout) as show:
        show(Snapshot(status="completed", total=1, completed=1, failed=0))
    assert cell == []
    assert "completed" in capsys.readouterr().out


def test_the_same_bar_is_not_sent_again(cell):
    display = NotebookDisplay()
    for done in (1, 1, 2):
        display.show(Bar(done, 2, "text"))
    assert [bar.done for bar in cell] == [1, 2]


def test_a_bar_is_html_and_text():
    bar = Bar(3, 4, "3 of 4 <done>", "a & b")
    html = bar._repr_html_()
    assert '<progress value="3" max="4"' in html
    assert "3 of 4 &lt;done&gt;" in html
    assert "a &amp; b" in html
    assert repr(bar) == "3 of 4 <done>\na & b"
    assert repr(Bar(0, 0, "t")) == "t"


def test_a_bar_moves_without_a_number_until_the_lines_are_counted():
    assert "value=" not in Bar(0, 0, "validating")._repr_html_()
    assert 'value="0" max="1"' in Bar(0, 0, "failed", has_ended=True)._repr_html_()
