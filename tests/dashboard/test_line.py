"""The screen of a line in a real browser, over a model server that repeats what it is asked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from tests.acceptance.conftest import Server, ended, serving, until
from tests.dashboard.conftest import chat_line
from tests.dashboard.screens import in_both_themes, violations
from tests.retries.conftest import Moody, moody
from tests.slow import only_slow

SETTINGS = {
    "NIGHTMILL_UPSTREAM__MAX_ATTEMPTS": "2",
    "NIGHTMILL_WORKER__BEAT_S": "0.2",
    "NIGHTMILL_WORKER__LINES_PER_SEGMENT": "4",
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
HOSTILE = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    '"><svg onload="window.hit = 1">',
    "</pre></div></main><iframe src='javascript:parent.hit=1'></iframe>",
    "[click](javascript:window.hit=1) ![x](https://evil.example/x.png)",
    "{{ 7 * 7 }} {% raw %} ${7*7} <%= 7 %>",
    "<a href='javascript:window.hit=1' id=bad>x</a> https://evil.example/",
    "\u202eexe.gnp \u200b \x1b[31m \x00 \ud800",
    "<div hx-get='/ui/files' hx-trigger='load'>x</div>",
    "--><!-- &lt;script&gt; <![CDATA[ <base href='https://evil.example/'>",
)


@dataclass
class World:
    server: Server
    upstream: Moody
    client: OpenAI

    def submit(self, lines: list[dict[str, Any]] | bytes, **options: Any) -> str:
        text = lines
        if not isinstance(text, bytes):
            text = "".join(json.dumps(line) + "\n" for line in text).encode()
        file = self.client.files.create(file=("lines.jsonl", text), purpose="batch")
        batch = self.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_body={"nightmill": options} if options else None,
        )
        return batch.id

    def run(self, lines: list[dict[str, Any]] | bytes, **options: Any) -> Any:
        return ended(self.client, self.submit(lines, **options))

    def url(self, batch_id: str, number: int | str = "") -> str:
        return f"{self.server.url}/ui/batches/{batch_id}/lines/{number}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("line")
    with moody() as upstream, serving(folder, "--upstream", upstream.url, environment=SETTINGS) as server:
        yield World(server, upstream, OpenAI(base_url=f"{server.url}/v1", api_key="unused"))


def twin(page: Page, url: str) -> Any:
    answer = page.request.get(url + "?format=json")
    assert answer.ok, answer.text()
    return answer.json()


def assert_is_text(page: Page) -> None:
    """Nothing of a prompt or an answer became an element, a link or a request."""
    assert page.evaluate("window.hit") is None
    for selector in (
        "main script",
        "main iframe",
        "main [onerror], main [onload]",
        "main a[href^='javascript' i]",
        "main a[href*='evil.example']",
        "main svg[onload]",
        "main [hx-get]",
        "body base",
    ):
        assert page.locator(selector).count() == 0, selector
    sources = page.locator("main img").evaluate_all("all => all.map(one => one.getAttribute('src'))")
    assert all(source.startswith("data:image/") for source in sources)


def test_a_line_shows_roles_tools_images_the_answer_and_the_json_beside_it(world: World, page: Page) -> None:
    line = chat_line("weather-1", "Weather in Bern?")
    line["body"]["messages"] += [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"celsius": 7}'},
    ]
    batch = world.run([chat_line("first"), line], record_attempts=True)
    page.goto(world.url(batch.id, 2))
    expect(page.locator("h1")).to_contain_text("weather-1")
    expect(page.locator(".said .said-by strong")).to_have_text(
        ["user", "user", "assistant", "tool", "assistant"]
    )
    expect(page.locator(".said[data-side=answer]")).to_contain_text("answer to Weather in Bern?")
    expect(page.locator(".said-call summary")).to_have_text("calls weather")
    assert page.locator(".said-image img").evaluate("image => image.naturalWidth") == 1
    expect(page.locator("#raw-request pre")).to_contain_text('"custom_id": "weather-1"')
    expect(page.locator("#answer pre")).to_contain_text('"status_code": 200')
    expect(page.locator("table.attempts tbody tr")).to_have_count(1)
    expect(page.locator("table.attempts .status")).to_have_text("200")
    expect(page.locator("#live-state")).to_have_count(0)
    assert in_both_themes(page) == []


def test_hostile_prompts_and_answers_are_text(world: World, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(HOSTILE):
        line = chat_line(f"{text[:60]} {number}", text)
        line["body"]["messages"] += [
            {"role": text, "name": text, "content": [{"type": text, text: text}, text, 7, None]},
            {"role": "assistant", "tool_calls": [{"function": {"name": text, "arguments": text}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": text}}]},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "https://evil.example/"}}],
            },
        ]
        line["body"]["tools"] = [{"type": text, "function": {"name": text, "description": text}}]
        line["body"]["model"] = "emulated"
        lines.append(line)
    world.upstream.failing = {HOSTILE[0]: (400, HOSTILE[2])}
    batch = world.run(lines, record_attempts=True)
    for number in range(1, len(HOSTILE) + 1):
        page.goto(world.url(batch.id, number))
        expect(page.locator("#answer")).to_be_visible()
        assert_is_text(page)
        assert twin(page, world.url(batch.id, number))["messages"]
    page.goto(world.url(batch.id, 8))
    expect(page.locator(".said").nth(1)).to_contain_text("⟨U+202E⟩exe.gnp ⟨U+200B⟩ ␛[31m ␀ ?")
    page.goto(world.url(batch.id, 1))
    expect(page.locator(".facts")).to_contain_text(HOSTILE[2])
    assert not [url for url in asked if "evil" in url]
    assert violations(page) == []


def test_a_line_in_flight_becomes_an_answer_while_the_page_is_open(world: World, page: Page) -> None:
    world.upstream.held = {"hold on"}
    world.upstream.may_answer.clear()
    batch_id = world.submit([chat_line("a", "hold on"), chat_line("b", "hold on too")], record_attempts=True)
    until(lambda: "hold on" in world.upstream.asked)
    page.goto(world.url(batch_id, 1))
    expect(page.locator(".facts .status")).to_have_text("in flight")
    expect(page.locator("table.attempts")).to_contain_text("in flight")
    expect(page.locator(".said-wait")).to_be_visible()
    assert violations(page) == []
    world.upstream.may_answer.set()
    expect(page.locator(".facts .status")).to_have_text("answered")
    expect(page.locator(".said[data-side=answer]")).to_contain_text("answer to hold on")


@only_slow
def test_people_go_from_line_to_line_and_from_failure_to_failure(world: World, page: Page) -> None:
    world.upstream.failing = {"bad": (400, "too_odd")}
    lines = [chat_line(f"line-{number}", "bad" if number in (2, 7) else "ok") for number in range(1, 10)]
    batch = world.run(lines)
    page.goto(world.url(batch.id, 5))
    page.keyboard.press("]")
    page.wait_for_url("**/lines/6")
    page.keyboard.press("}")
    expect(page.locator("h1")).to_contain_text("line-7")
    expect(page.locator(".said[data-role=error]")).to_contain_text("too_odd")
    page.get_by_role("link", name="← Failed").click()
    page.wait_for_url("**/lines/2")
    page.keyboard.press("[")
    page.wait_for_url("**/lines/1")
    assert page.locator("a[data-go='[']").count() == 0
    page.keyboard.press("/")
    page.keyboard.type("line-9")
    page.keyboard.press("Enter")
    page.wait_for_url("**/lines/9")
    expect(page.locator(".crumbs")).to_contain_text("line 9 of 9")
    expect(page.locator("#attempts + p")).to_contain_text("--record-attempts")
    answer = page.request.get(world.url(batch.id).rstrip("/") + "?custom_id=nope")
    assert answer.status == 404
    assert "no line with this custom_id" in answer.text()
    page.goto(world.url(batch.id).rstrip("/") + "?ordinal=3")
    expect(page.locator("h1")).to_contain_text("line-4")


@only_slow
def test_a_line_that_is_no_request_is_shown_as_it_is(world: World, page: Page) -> None:
    good = [chat_line(f"good-{number}", "x" * 200) for number in range(300)]
    text = "".join(json.dumps(line) + "\n" for line in good).encode()
    text += b'{"custom_id": "<script>window.hit = 1</script>", \xff\xfe\n' + b"[" * 3_000 + b"\n"
    batch = world.run(text)
    assert batch.status == "failed"
    page.goto(world.url(batch.id, 301))
    expect(page.locator("#raw-request pre")).to_contain_text("<script>window.hit = 1</script>")
    expect(page.locator(".problem strong")).to_have_text("invalid_json_line")
    assert_is_text(page)
    assert violations(page) == []
    page.goto(world.url(batch.id, 302))
    expect(page.locator("#raw-request pre")).to_contain_text("[[[[[")


@only_slow
def test_a_huge_line_is_cut_and_leads_to_its_file(world: World, page: Page) -> None:
    line = chat_line("huge", "word " * 60_000)
    line["body"]["messages"] += [{"role": "user", "content": "x"}] * 500
    batch = world.run([line])
    page.goto(world.url(batch.id, 1))
    expect(page.locator(".said").first).to_contain_text("more characters")
    expect(page.locator(".said[data-side=answer]")).to_be_visible()
    assert len(page.content()) < 1_000_000
    page.get_by_role("link", name="The line in its file").click()
    expect(page.locator("h2#lines")).to_have_text("One line")
    expect(page.locator("table.lines")).to_contain_text("huge")


@only_slow
def test_numbers_that_are_no_line_are_said_so(world: World, page: Page) -> None:
    batch = world.run([chat_line("a")])
    for number in ("2", "0", "x", "99999999999999999999", "1%2f..%2f", "<script>"):
        answer = page.request.get(world.url(batch.id, number))
        assert answer.status in (400, 404), number
        assert "<script>alert" not in answer.text()
    assert page.request.get(world.url("batch_none", 1)).status == 404
