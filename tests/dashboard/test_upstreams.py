"""The screens of upstreams: health, why the limit is what it is, and the buttons."""

import json
import re
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from starlette.requests import Request

from nightmill.dashboard.pages import Screen, live_blocks
from nightmill.dashboard.screens.upstreams import health_of, plots_of, show, show_one, trend
from tests.dashboard.conftest import RunningServer, chat_line, running_server
from tests.dashboard.screens import in_both_themes, violations
from tests.slow import only_slow

pytestmark = only_slow

SECRET = "sk-of-an-upstream"
ADDED = {
    "name": "spare",
    "url": "http://127.0.0.1:9/v1",
    "api_key": SECRET,
    "headers": {"X-Team": SECRET},
    "models": ["<script>document.title = 'stolen'</script>", *(f"model-{number}" for number in range(60))],
}
LIVE: dict[str, Any] = {"stalled": None, "rate_limit": None, "per_model": []}


def upstream(state: str = "active", **live: Any) -> dict[str, Any]:
    return {"state": state, "live": {**LIVE, **live}}


def held(model: str | None, reason: str) -> dict[str, Any]:
    return {"model": model, "held": {"reason": reason}}


@pytest.mark.parametrize(
    ("shown", "status", "reason"),
    [
        (upstream(), "active", ""),
        (upstream("paused"), "paused", "No attempt starts"),
        (upstream("draining"), "draining", "others with its models"),
        ({"state": "active", "live": None}, "away", "No worker reports it."),
        (upstream(stalled="the disk is full"), "held", "the disk is full"),
        (upstream(per_model=[held(None, "401: wrong key")]), "held", "401: wrong key"),
        (upstream(per_model=[held("m", "404"), held("n", "404")]), "held", "m: 404 (and 1 more models)"),
        (upstream(rate_limit="requests_per_minute"), "active", "wait because of requests_per_minute"),
    ],
)
def test_the_health_of_an_upstream_is_a_word_and_a_reason(
    shown: dict[str, Any], status: str, reason: str
) -> None:
    found, words = health_of(shown)
    assert found == status
    assert reason in words


def test_a_trend_goes_from_the_bottom_to_the_top_and_leaves_gaps_out() -> None:
    assert trend([0.0, None, 10.0]) == "0.0,23.0 120.0,1.0"
    assert trend([0.0, 0.0]) == "0.0,23.0 120.0,23.0"
    assert trend([None, 1.0]) is None
    assert trend([]) is None


def test_a_plot_without_a_value_is_left_out() -> None:
    names = ("limit", "in_flight", "answered_per_s", "refused_per_s", "failed_per_s", "output_tokens_per_s")
    one: dict[str, Any] = dict.fromkeys(names, 1) | {"engine_running": None, "engine_waiting": None}
    samples = [{**one, "at": at} for at in (0, 5)]
    assert [plot["name"] for plot in plots_of(samples)] == ["limit", "answers", "tokens"]
    assert [plot["name"] for plot in plots_of([{**it, "engine_running": 3} for it in samples])][
        -1
    ] == "engine"
    assert plots_of(samples[:1]) == []


def finished(work: Coroutine[Any, Any, Screen]) -> Screen:
    """What a coroutine returns that waits for nothing. (The browser's own event loop runs in this thread.)"""
    with pytest.raises(StopIteration) as end:
        work.send(None)
    screen: Screen = end.value.value
    return screen


class Visitor:
    """A visit whose calls of the API get these answers, by the end of the path."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers
        self.api = self

    async def get(self, path: str, _: Any = None) -> Any:
        return next(answer for end, answer in self._answers.items() if path.endswith(end))

    def path(self, _: str) -> str:
        return "gpu"

    def query(self, _: str) -> str | None:
        return None


NO_SAMPLES: dict[str, Any] = {"data": [], "limit_changes": []}
ENGINE = {"engine": "vllm", "running": 60, "waiting": 3, "kv_use": 0.97, "hit_share": 0.25, "preemptions": 2}
MODEL: dict[str, Any] = {
    "model": "qwen3-8b",
    "limit": 64,
    "rule": "hold: plateau",
    "why": "A higher limit brought no more goodput.",
    "advice": "raise --max-num-seqs",
    "in_flight": 60,
    "answered_per_s": 2.5,
    "tokens_per_s": 100.0,
    "held": {"reason": "401: <b>wrong</b> key", "since": 0.0, "until": None, "needs_operator": True},
}
REPORTED: dict[str, Any] = {
    "object": "upstream",
    "name": "gpu",
    "state": "active",
    "revision": 0,
    "origin": "workers",
    "live": None,
    "recent": None,
}
BUSY: dict[str, Any] = {
    **LIVE,
    "workers": 2,
    "in_flight": 60,
    "waiting": 9,
    "per_model": [MODEL],
    "gauges": ENGINE,
    "listed_models": [f"model-{number}" for number in range(60)],
    "listed_models_read_at": 0.0,
}
RECENT = {"over_s": 300, "answered": 90, "refused": 7, "failed": 1}


def shown(upstream: dict[str, Any], samples: dict[str, Any] = NO_SAMPLES) -> str:
    """The live blocks of the list and of the page of one upstream."""
    answers = {"samples": samples, "gpu": dict(upstream)}
    listed = finished(show(Visitor(upstreams={"data": [dict(upstream)], "problems": []}, **answers)))  # pyright: ignore[reportArgumentType]
    one = finished(show_one(Visitor(**answers)))  # pyright: ignore[reportArgumentType]
    scope: dict[str, Any] = {
        "type": "http",
        "path": "/ui/upstreams",
        "headers": [],
        "query_string": b"",
        "server": ("host", 1),
    }
    return "".join(
        html
        for screen in (listed, one)
        for html in live_blocks(Request(scope), screen, area="", shows_content=True).values()
    )


def test_an_upstream_that_no_worker_reports_is_shown() -> None:
    html = shown({**REPORTED, "origin": "file", "url": "http://gpu/v1"})
    assert "not reported" in html
    assert "No worker has sent it a line yet, and none reports it" in html


def test_an_upstream_that_only_workers_know_is_shown_without_its_url() -> None:
    html = shown({**REPORTED, "live": {**BUSY, "per_model": [], "gauges": None}})
    assert "in the settings of the workers" in html


def test_limit_rule_advice_engine_and_hold_are_said_in_words() -> None:
    html = shown({**REPORTED, "live": BUSY, "recent": RECENT})
    for words in (
        "60 of 64</b>",
        "hold: plateau",
        "A higher limit brought no more goodput.",
        "raise --max-num-seqs",
        "60 running",
        "KV cache",
        "97%",
        "7 refused",
        "It stays so until a setting is changed",
        "401: &lt;b&gt;wrong&lt;/b&gt; key",
    ):
        assert words in html


def test_a_change_of_the_limit_that_no_rule_explains_is_called_steps() -> None:
    changes = [{"at": 5.0, "from": None, "to": 32, "rule": None, "why": None}]
    html = shown({**REPORTED, "live": BUSY}, {"data": [], "limit_changes": changes})
    assert "– → <b>32</b>" in html
    assert "In several steps between two samples." in html


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One whose upstreams are paused and changed."""
    with running_server(tmp_path_factory.mktemp("upstreams")) as running:
        yield running


@pytest.fixture(scope="module")
def added(server: RunningServer) -> RunningServer:
    """The server with an upstream that was added at run time."""
    server.post("/nightmill/v1/upstreams", ADDED)
    return server


@pytest.fixture
def spare(added: RunningServer) -> RunningServer:
    """As `added`, and the upstream is active."""
    added.post("/nightmill/v1/upstreams/spare/resume")
    return added


def state_of(server: RunningServer, name: str) -> str:
    return server.get(f"/nightmill/v1/upstreams/{name}")["state"]


def test_an_upstream_is_paused_and_resumed_from_the_list(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}/ui/upstreams")
    row = page.locator("#row-default")
    row.get_by_role("button", name="Pause").click()
    expect(page.locator("#notices")).to_contain_text("default is paused")
    expect(row.locator(".status")).to_have_text("paused")
    assert state_of(server, "default") == "paused"
    row.get_by_role("button", name="Resume").click()
    expect(row.locator(".status")).to_have_text(re.compile("active|not reported"))
    assert state_of(server, "default") == "active"


@pytest.fixture
def plain_page(browser: Browser) -> Iterator[Page]:
    """A tab without JavaScript."""
    context = browser.new_context(java_script_enabled=False)
    yield context.new_page()
    context.close()


def test_a_row_of_the_list_is_a_few_lines_high(server: RunningServer, page: Page) -> None:
    page.goto(f"{server.url}/ui/upstreams")
    row = page.locator("tbody tr").first.bounding_box()
    assert row is not None
    assert row["height"] < 120


def test_an_upstream_is_drained_and_resumed_without_javascript(
    spare: RunningServer, plain_page: Page
) -> None:
    plain_page.goto(f"{spare.url}/ui/upstreams/spare")
    plain_page.get_by_role("button", name="Drain").click()
    expect(plain_page.locator("h1")).to_contain_text("draining")
    assert state_of(spare, "spare") == "draining"
    plain_page.get_by_role("button", name="Resume").click()
    expect(plain_page.locator("#notices")).to_contain_text("spare is active")
    assert state_of(spare, "spare") == "active"


def test_the_reset_of_an_added_upstream_says_first_that_it_removes_it(
    server: RunningServer, plain_page: Page
) -> None:
    server.post("/nightmill/v1/upstreams", {**ADDED, "name": "passing"})
    plain_page.goto(f"{server.url}/ui/upstreams")
    plain_page.get_by_role("link", name="passing").click()
    expect(plain_page.get_by_role("button", name="Remove it")).to_be_hidden()
    plain_page.locator("summary", has_text="Reset").click()
    expect(plain_page.locator(".confirm-box")).to_contain_text("a reset removes it, its key included")
    plain_page.get_by_role("button", name="Remove it").click()
    expect(plain_page.locator("#notices")).to_contain_text("passing is removed")
    assert plain_page.url == f"{server.url}/ui/upstreams"


def test_a_test_says_of_each_step_whether_it_is_ok(spare: RunningServer, page: Page) -> None:
    page.goto(f"{spare.url}/ui/upstreams/default")
    page.get_by_role("button", name="Test", exact=True).click()
    expect(page.locator(".notice")).to_contain_text("default can be used.")
    assert set(page.locator(".step .status").all_inner_texts()) == {"ok"}
    assert violations(page) == []
    page.goto(f"{spare.url}/ui/upstreams/spare")
    page.get_by_role("button", name="Test", exact=True).click()
    expect(page.locator(".problem")).to_contain_text("spare can't be used as it is.")
    expect(page.locator(".step .status[data-status=failed]").first).to_be_visible()


def test_no_key_is_shown_and_names_of_models_are_text(spare: RunningServer, page: Page) -> None:
    for path in ("/ui/upstreams", "/ui/upstreams/spare"):
        page.goto(spare.url + path)
        expect(page.get_by_text("stolen").first).to_be_visible()
        assert page.title() != "stolen"
        assert SECRET not in page.content()
        assert SECRET not in json.dumps(spare.get(f"{path}?format=json"))


def test_a_paused_upstream_has_no_violation_in_either_theme(spare: RunningServer, page: Page) -> None:
    spare.post("/nightmill/v1/upstreams/spare/pause")
    page.goto(f"{spare.url}/ui/upstreams/spare")
    page.locator("summary", has_text="Reset").click()
    assert in_both_themes(page) == []


def test_limit_and_answers_are_drawn_over_time(server: RunningServer, page: Page) -> None:
    # An upstream without work has few samples.
    server.submit([chat_line("a", "[emulate: slow, delay 6]"), chat_line("b")])
    page.goto(f"{server.url}/ui/upstreams/default")
    expect(page.locator("#plot-limit canvas")).to_be_visible(timeout=60_000)
    expect(page.locator("#plot-answers canvas")).to_be_visible()
    page.get_by_role("link", name="6 hours").click()
    expect(page.get_by_role("link", name="6 hours")).to_have_attribute("aria-current", "true")
    assert server.get("/ui/upstreams/default?over=21600&format=json")["over_s"] == 21_600
    assert server.get("/ui/upstreams/default?over=1&format=json")["over_s"] == 600


def test_an_upstream_that_does_not_exist_is_not_found(server: RunningServer, page: Page) -> None:
    response = page.goto(f"{server.url}/ui/upstreams/nowhere")
    assert response is not None
    assert response.status == 404
    expect(page.locator(".problem")).to_contain_text("There is no upstream 'nowhere'.")
