"""The bars below the cell of a notebook, shown through a module in the place of IPython."""

import sys
import types

import pytest

from nightmill.client.notebook import Bar, Bars, NotebookDisplay, is_notebook
from nightmill.client.progress import Snapshot, shown, shown_all


class Handle:
    def __init__(self, shown: list[Bars]) -> None:
        self.update = shown.append


class Shell:
    """A shell of IPython, with a kernel in a notebook."""


@pytest.fixture
def cell(monkeypatch) -> list[Bars]:
    """What a notebook shows below the cell, the newest last."""
    bars: list[Bars] = []
    shell = Shell()
    shell.kernel = object()

    def display(bars_shown: Bars, *, display_id: bool) -> Handle:
        assert display_id
        bars.append(bars_shown)
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
        show(Snapshot(status="completed", total=4, completed=3, failed=1, failures="1 failed: 1x 404"))
    [[first], [last]] = [bars.bars for bars in cell]
    assert first.notes == ("The upstream is held.",)
    assert (first.done, first.total, first.has_ended) == (0, 4, False)
    assert (last.done, last.total, last.notes, last.has_ended) == (4, 4, ("1 failed: 1x 404",), True)
    assert last.text.startswith("completed: 4 of 4 done (3 ok, 1 failed)")
    assert capsys.readouterr() == ("", "")


def test_several_batches_have_a_bar_each(cell):
    with shown_all() as show:
        show(
            [
                Snapshot(batch_id=f"batch_{name * 32}", status="in_progress", total=4, completed=1, failed=0)
                for name in "ab"
            ]
        )
    [shown_bars] = cell
    assert [bar.text.partition(" ")[0] for bar in shown_bars.bars] == ["aaaaaaaa", "bbbbbbbb"]
    assert shown_bars._repr_html_().count("<progress") == 2


def test_a_stream_that_is_given_is_used_in_a_notebook_too(cell, capsys):
    with shown(sys.stdout) as show:
        show(Snapshot(status="completed", total=1, completed=1, failed=0))
    assert cell == []
    assert "completed" in capsys.readouterr().out


def test_the_same_bars_are_not_sent_again(cell):
    display = NotebookDisplay()
    for done in (1, 1, 2):
        display.show(Bars((Bar(done, 2, "text"),)))
    assert [bars.bars[0].done for bars in cell] == [1, 2]


def test_bars_are_html_and_text():
    bars = Bars((Bar(3, 4, "3 of 4 <done>", ("a & b",)), Bar(0, 0, "t")))
    html = bars._repr_html_()
    assert '<progress value="3" max="4"' in html
    assert "3 of 4 &lt;done&gt;" in html
    assert "a &amp; b" in html
    assert repr(bars) == "3 of 4 <done>\na & b\nt"


def test_a_bar_moves_without_a_number_until_the_lines_are_counted():
    assert "value=" not in Bar(0, 0, "validating").html
    assert 'value="0" max="1"' in Bar(0, 0, "failed", has_ended=True).html
