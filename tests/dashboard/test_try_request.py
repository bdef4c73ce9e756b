"""Try: one request is sent from a page, and its answer is shown beside it."""

import json
import re

from playwright.sync_api import Browser, Page, expect

from tests.dashboard.conftest import WAIT_MS, RunningServer, chat_line
from tests.dashboard.screens import in_both_themes
from tests.slow import only_slow

pytestmark = only_slow

SECRET = "the-secret-prompt"
SCRIPT = "<script>document.title = 'injected'</script>"


def ask(page: Page, content: str) -> None:
    page.fill("#request", json.dumps({"messages": [{"role": "user", "content": content}]}))
    page.get_by_role("button", name="Send").click()


def test_a_request_is_answered_with_its_time_and_tokens_without_leaving_the_page(
    server: RunningServer, page: Page
) -> None:
    page.goto(server.url + "/ui/try")
    expect(page.locator("#model")).to_have_value("nightmill-emulator")
    ask(page, SCRIPT)
    answer = page.locator("#answer")
    expect(answer.locator(".talk")).to_contain_text("This answer is emulated")
    expect(answer.locator(".talk")).to_contain_text(SCRIPT)
    expect(answer.locator(".card", has_text="Tokens out")).to_contain_text(re.compile("[1-9]"))
    expect(answer).to_contain_text("upstream default")
    expect(page).to_have_title("Try · nightmill")
    assert in_both_themes(page) == []


def test_a_failure_says_what_to_do_and_broken_json_where_it_is_broken(
    server: RunningServer, page: Page
) -> None:
    page.goto(server.url + "/ui/try")
    expect(page.locator("#model")).to_have_value("nightmill-emulator")
    ask(page, "Hi [emulate: 429]")
    expect(page.locator("#answer .problem")).to_contain_text("The server limits the rate")
    page.fill("#request", '{"messages": \n oh}')
    page.locator("#request").press("Control+Enter")
    expect(page.locator("#answer .problem")).to_contain_text("not valid JSON: line 2, column 2")
    page.fill("#request", '{"messages": [], "stream": true}')
    page.locator("#request").press("Control+Enter")
    expect(page.locator("#answer .problem")).to_contain_text("Streaming is not supported")


def test_a_line_of_a_batch_or_of_a_file_is_taken_over(server: RunningServer, page: Page) -> None:
    batch_id = server.submit([chat_line("a", "first"), chat_line("b", "second")])
    server.wait_until(batch_id)
    page.goto(f"{server.url}/ui/try?batch={batch_id}&line=2")
    expect(page.locator("#request")).to_have_value(re.compile("second"))
    expect(page.locator("#model")).to_have_value("")
    file_id = server.client.batches.retrieve(batch_id).input_file_id
    page.goto(f"{server.url}/ui/try?file={file_id}&line=1")
    expect(page.locator("#request")).to_have_value(re.compile("first"))
    page.goto(f"{server.url}/ui/try?file={file_id}&line=9")
    expect(page.locator(".problem")).to_contain_text("no line 9")


def test_without_scripts_the_page_comes_back_with_the_answer(server: RunningServer, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(server.url + "/ui/try?endpoint=/v1/embeddings")
    page.fill("#model", "any-embedder")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#answer .status")).to_have_text("ok")
    expect(page.locator("#endpoint")).to_have_value("/v1/embeddings")
    expect(page.locator("#model")).to_have_value("any-embedder")
    context.close()


def test_a_trial_needs_the_token_of_the_page(server: RunningServer, page: Page) -> None:
    form = {"endpoint": "/v1/embeddings", "request": '{"model": "m", "input": "x"}', "csrf": "wrong"}
    assert page.request.post(server.url + "/ui/try", form=form).status == 403


def test_a_server_that_hides_content_shows_no_prompt_and_no_answer_on_the_way_to_a_batch(
    hiding: RunningServer, page: Page
) -> None:
    batch_id = hiding.submit(
        [chat_line("a", SECRET), chat_line("b", SECRET)],
        extra_body={"nightmill": {"canary": 1, "canary_pause": True}},
    )
    file_id = hiding.client.batches.retrieve(batch_id).input_file_id
    page.goto(f"{hiding.url}/ui/batches/{batch_id}/canary")
    expect(page.get_by_role("button", name="Go on with 1 line")).to_be_visible()
    expect(page.locator(".answer .status")).to_have_text("ok")
    for path in (
        f"ui/batches/{batch_id}/canary",
        f"ui/new?file={file_id}&check=1",
        f"ui/new/check?file={file_id}",
        f"ui/try?file={file_id}&line=1",
        f"ui/try?batch={batch_id}&line=1",
    ):
        for accepted in ("text/html", "application/json"):
            answer = page.request.get(f"{hiding.url}/{path}", headers={"Accept": accepted})
            assert answer.status == 200, path
            assert SECRET not in answer.text(), path
            assert "This answer is emulated" not in answer.text(), path


def test_a_server_that_hides_content_gives_the_figures_of_a_trial_alone(
    hiding: RunningServer, page: Page
) -> None:
    page.goto(hiding.url + "/ui/try")
    expect(page.locator("#model")).to_have_value("nightmill-emulator")
    with page.expect_response("**/ui/try") as sent:
        ask(page, SECRET)
    expect(page.locator("#answer .notice")).to_have_text("This server does not show prompts and answers.")
    expect(page.locator("#answer .status")).to_have_text("ok")
    assert SECRET not in sent.value.text()
    form = {
        "endpoint": "/v1/chat/completions",
        "request": json.dumps(chat_line("a", SECRET)["body"]),
        "csrf": page.locator("body").get_attribute("data-csrf") or "",
    }
    whole = page.request.post(hiding.url + "/ui/try", form=form).text()
    assert SECRET not in whole
    assert "emulated, no model" not in whole
