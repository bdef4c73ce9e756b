"""New batch: a file is dropped and checked, a batch is created, and its first answers are shown."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Route, expect

from nightmill.validation import InputRules, InputValidator
from tests.dashboard.conftest import WAIT_MS, RunningServer, chat_line
from tests.dashboard.screens import in_both_themes, violations
from tests.slow import only_slow

MODEL = "nightmill-emulator"
SCRIPT = "<script>document.title = 'injected'</script>"
DROP = """([name, text]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([text], name));
  const zone = document.getElementById("drop");
  for (const type of ["dragenter", "dragover", "drop"]) {
    zone.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }
}"""


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def lines_of(count: int, text: str = "Hello") -> list[dict[str, Any]]:
    return [chat_line(f"line-{number}", f"{text} {number}", model=MODEL) for number in range(1, count + 1)]


def choose(page: Page, tmp_path: Path, text: str, name: str = "lines.jsonl") -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    page.set_input_files("#file", path)


def batch_id_of(page: Page) -> str:
    return page.url.split("/batches/")[1].split("/")[0]


def test_a_dropped_file_becomes_a_batch_that_waits_after_its_first_answers_and_then_ends(
    server: RunningServer, page: Page
) -> None:
    page.goto(server.url + "/ui/new")
    page.evaluate(DROP, ["tickets.jsonl", text_of(lines_of(12))])
    expect(page.locator("h2", has_text="tickets.jsonl")).to_be_visible()
    expect(page.locator("#verdict")).to_have_text("12 lines are valid.")
    expect(page.locator("#endpoint")).to_have_value("/v1/chat/completions")
    page.fill("#canary", "3")
    page.fill("#metadata", "team = support")
    page.get_by_role("button", name="Create the batch").click()
    go_on = page.get_by_role("button", name="Go on with 9 lines")
    expect(go_on).to_be_visible()
    expect(page.locator(".answer")).to_have_count(3)
    expect(page.locator(".answer").first).to_contain_text("Hello 1")
    expect(page.locator(".answer").first).to_contain_text("This answer is emulated")
    batch_id = batch_id_of(page)
    waiting = server.get(f"/nightmill/v1/batches/{batch_id}")
    assert (waiting["request_counts"]["completed"], waiting["metadata"]) == (3, {"team": "support"})
    go_on.click()
    expect(page.locator("#notices")).to_contain_text("The other lines are being sent.")
    assert page.url == f"{server.url}/ui/batches/{batch_id}"
    page.goto(server.url)
    expect(page.locator(f"#row-{batch_id} .status").first).to_have_text("completed")
    assert server.wait_until(batch_id).request_counts.completed == 12


def test_wrong_lines_are_named_by_number_and_can_be_left_out(
    server: RunningServer, page: Page, tmp_path: Path
) -> None:
    lines = [json.dumps(line) for line in lines_of(60)]
    lines[16], lines[40], lines[58] = "{'custom_id': 'x'}", lines[3], lines[58].replace("POST", "GET")
    page.goto(server.url + "/ui/new")
    uploads, checks = list[Route](), list[Route]()
    page.route("**/ui/new/upload", lambda route: uploads.append(route))  # noqa: PLW0108 - playwright marks it
    page.route("**/ui/new/check*", lambda route: checks.append(route))  # noqa: PLW0108
    choose(page, tmp_path, "\n".join(lines))
    # The browser finds them during the upload, before the server has looked.
    expect(page.locator("#checking-text")).to_have_text("60 read, 3 invalid")
    expect(page.locator("#found li")).to_have_count(3)
    uploads[0].continue_()
    expect(page.locator("#check")).to_contain_text("So far: 3 of 60 lines are invalid.")
    expect(page.locator("#check li").first).to_contain_text("Line 17: This line is not parseable")
    checks[0].continue_()
    expect(page.locator("#verdict")).to_contain_text("3 of 60 lines are invalid.")
    for number, said in (("17", "not parseable"), ("41", "duplicate"), ("59", "must be 'POST'")):
        expect(page.locator("table.errors tr", has_text=said).locator("td.numbers")).to_have_text(number)
    assert violations(page) == []
    page.get_by_label("Send all lines").check()
    page.get_by_role("button", name="Create the batch without these 3 lines").click()
    expect(page.locator("#notices")).to_contain_text("was created")
    counts = server.wait_until(batch_id_of(page)).request_counts
    assert (counts.completed, counts.failed, counts.total) == (57, 3, 60)


def test_a_file_without_any_request_is_not_uploaded_and_its_lines_are_shown(
    server: RunningServer, page: Page, tmp_path: Path
) -> None:
    before = {file.id for file in server.client.files.list()}
    page.goto(server.url + "/ui/new")
    # The upload would end first, so that only the check decides.
    page.route("**/ui/new/upload", lambda _: None)
    choose(page, tmp_path, f"{SCRIPT}\n" * 30, name="page.html")
    expect(page.locator("#drop-problem")).to_contain_text("none of its lines is a request")
    expect(page.locator("#found li")).to_contain_text("Line 1, 2, 3, 4, 5 and 25 more")
    expect(page.locator("#found code")).to_contain_text(SCRIPT)
    expect(page).to_have_title("New batch · nightmill")
    assert violations(page) == []
    assert {file.id for file in server.client.files.list()} == before


def test_a_model_that_is_not_served_is_named_with_the_near_one_and_a_trial(
    server: RunningServer, page: Page, tmp_path: Path
) -> None:
    page.goto(server.url + "/ui/new")
    choose(page, tmp_path, text_of([chat_line("a", model="nightmil-emulator")]))
    warning = page.locator("#check .warning")
    expect(warning).to_contain_text("No upstream lists the model nightmil-emulator (1 line).")
    expect(warning).to_contain_text(f"Did you mean {MODEL}?")
    warning.get_by_role("link", name="Try a line").click()
    expect(page.locator("#request")).to_have_value(re.compile("nightmil-emulator"))


def test_first_lines_that_take_long_are_waited_for_and_can_be_seen_to_run(
    server: RunningServer, page: Page
) -> None:
    slow = chat_line("a", "Hi [emulate: slow, delay 30]", model=MODEL)
    batch_id = server.submit([slow, *lines_of(2)], extra_body={"nightmill": {"canary": 1}})
    server.wait_until(batch_id, "in_progress")
    page.goto(f"{server.url}/ui/batches/{batch_id}/canary")
    expect(page.locator(".canary-state")).to_contain_text("First lines answered: 0 of 1.")
    assert server.get(f"/ui/batches/{batch_id}/canary?format=json")["phase"] == "running"
    server.client.batches.cancel(batch_id)
    expect(page.locator(".canary-state")).to_contain_text("The batch is cancel")


def test_the_page_of_a_file_and_its_first_answers_have_no_violation_and_run_no_text(
    server: RunningServer, page: Page, tmp_path: Path
) -> None:
    page.goto(server.url + "/ui/new")
    lines = [
        *lines_of(4, SCRIPT),
        chat_line("x" * 300, f"{SCRIPT} [emulate: 404]", model=MODEL),
        *lines_of(1),
    ]
    lines[-1]["custom_id"] = SCRIPT
    choose(page, tmp_path, text_of(lines), name="<img src=x onerror=alert(1)>.jsonl")
    expect(page.locator("#verdict")).to_be_visible()
    page.locator(".beginning summary").click()
    assert in_both_themes(page) == []
    page.get_by_role("button", name="Create the batch").click()
    expect(page.get_by_role("button", name="Go on with 1 line")).to_be_visible()
    expect(page.locator(".answer")).to_have_count(5)
    expect(page.locator(".canary-state")).to_contain_text("First lines: 4 ok, 1 failed.")
    assert in_both_themes(page) == []
    expect(page).to_have_title("First answers · nightmill")
    page.set_viewport_size({"width": 390, "height": 780})
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    page.get_by_role("button", name="Cancel the batch").click()
    expect(page.locator("#notices")).to_contain_text("being cancelled")
    assert server.wait_until(batch_id_of(page)).status == "cancelled"


def test_without_scripts_a_file_is_uploaded_checked_and_made_a_batch(
    server: RunningServer, browser: Browser, tmp_path: Path
) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(server.url + "/ui/new")
    choose(page, tmp_path, text_of(lines_of(3)) + "broken\n")
    page.get_by_role("button", name="Upload").click()
    page.get_by_role("link", name="Check them now").click()
    expect(page.locator("#verdict")).to_contain_text("1 of 4 lines is invalid.")
    page.get_by_label("Send all lines").check()
    page.get_by_role("button", name="Create the batch without this line").click()
    expect(page.locator("#notices")).to_contain_text("was created")
    assert server.wait_until(batch_id_of(page)).request_counts.completed == 3
    context.close()


@only_slow
def test_a_refused_form_keeps_what_was_written(server: RunningServer, page: Page, tmp_path: Path) -> None:
    page.goto(server.url + "/ui/new")
    choose(page, tmp_path, text_of(lines_of(2)))
    expect(page.locator("#verdict")).to_be_visible()
    page.get_by_label("Send all lines").check()
    page.fill("#metadata", "team support")
    page.get_by_role("button", name="Create the batch").click()
    expect(page.locator(".problem")).to_have_text("Write each line of the metadata as key = value.")
    expect(page.locator("#metadata")).to_have_value("team support")
    expect(page.get_by_label("Send all lines")).to_be_checked()


@only_slow
def test_a_form_that_is_sent_twice_makes_one_batch(server: RunningServer, page: Page) -> None:
    file_id = server.client.files.create(file=("a.jsonl", text_of(lines_of(1)).encode()), purpose="batch").id
    page.goto(f"{server.url}/ui/new?file={file_id}")
    form = {
        "csrf": page.locator("body").get_attribute("data-csrf") or "",
        "key": "the key of this page",
        "file": file_id,
        "endpoint": "/v1/chat/completions",
        "window": "24h",
        "start": "all",
    }
    sent = [page.request.post(f"{server.url}/ui/new/create", form=form, max_redirects=0) for _ in range(2)]
    assert [answer.status for answer in sent] == [303, 303]
    assert sent[0].headers["location"] == sent[1].headers["location"]
    without = page.request.post(f"{server.url}/ui/new/create", form={**form, "csrf": "wrong"})
    assert without.status == 403


@only_slow
def test_a_file_can_be_deleted_before_a_batch_is_made_of_it(server: RunningServer, page: Page) -> None:
    file_id = server.client.files.create(file=("b.jsonl", text_of(lines_of(1)).encode()), purpose="batch").id
    page.goto(f"{server.url}/ui/new?file={file_id}")
    page.get_by_role("button", name="Delete the file").click()
    expect(page.locator("#notices")).to_have_text("The file was deleted.")
    assert file_id not in {file.id for file in server.client.files.list()}


def test_the_upload_of_another_site_is_refused(server: RunningServer, page: Page) -> None:
    file = {"name": "a.jsonl", "mimeType": "application/jsonl", "buffer": text_of(lines_of(1)).encode()}
    headers = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    answer = page.request.post(
        f"{server.url}/ui/new/upload", multipart={"purpose": "batch", "file": file}, headers=headers
    )
    assert answer.status in (401, 403)


def test_the_browser_refuses_the_lines_that_the_server_refuses_with_the_same_words(
    server: RunningServer, page: Page
) -> None:
    page.goto(server.url + "/ui/new")
    for endpoint, needed in (("/v1/chat/completions", "messages"), ("/v1/embeddings", "input")):
        for lines in mixed_files(endpoint, needed):
            found = server_errors(endpoint, lines)
            seen = page.evaluate(CHECK, list(b"\n".join(lines)))
            assert (seen["valid"], seen["invalid"]) == (sum(map(bool, lines)) - len(found), len(found))
            for group in seen["groups"]:
                for number in group["lines"]:
                    assert found[number] == group["message"] or group["message"] in SHORTER, lines[number - 1]


CHECK = """(bytes) => new Promise((done) => {
  const check = new Worker("ui/static/new_batch_check.js");
  check.onmessage = (event) => event.data.type === "progress" || done(event.data);
  check.postMessage(new File([new Uint8Array(bytes)], "lines.jsonl"));
})"""
SHORTER = {
    "Value of 'method' must be 'POST'.",
    "The url is not /v1/chat/completions, as in the first line.",
    "The url is not /v1/embeddings, as in the first line.",
    "Streaming is not supported in the Batch API.",
    "The custom_id is a duplicate of another request.",
}
"""One message for many lines, where the server's names the value of each."""


def mixed_files(endpoint: str, needed: str) -> Iterator[list[bytes]]:
    """Files that begin with a valid line and end with its custom_id once more, and have other lines with
    mistakes between. A file has fewer kinds of mistakes than the page lists."""
    body = {"model": MODEL, needed: ["x"]}
    line = {"custom_id": "first", "method": "POST", "url": endpoint, "body": body}
    others: list[dict[str, Any]] = [
        *({name: value for name, value in line.items() if name != left_out} for left_out in line),
        *({**line, name: value} for name in line for value in (None, 7, 1.5, True, [], {})),
        {**line, "method": "GET"},
        {**line, "url": "/v1/responses"},
        *({**line, "body": {**body, "model": value}} for value in (None, "", 0, 7, False, [], {})),
        *({**line, "body": {**body, needed: value}} for value in (None, "", 0, False)),
        *({**line, "body": {**body, "stream": value}} for value in (True, False, None)),
        {**line, "body": {"model": MODEL}},
        {**line, "body": {needed: ["x"]}},
    ]
    for number, other in enumerate(others):
        if other.get("custom_id") == "first":
            other["custom_id"] = f"line-{number}"
    texts = [json.dumps(other).encode() for other in others]
    texts += [b"{", b"[]", b"7", b"1.5", b'"x"', b"null", b"true", b"{'a': 1}", b'{"a": \xff}', b""]
    first = json.dumps(line).encode()
    for start in range(0, len(texts), 15):
        yield [first, *texts[start : start + 15], first]


def server_errors(endpoint: str, lines: list[bytes]) -> dict[int | None, str]:
    """The message of each line that the server's check refuses, by line number."""
    text = b"\n".join(lines)
    validator = InputValidator(InputRules(endpoint=endpoint))
    validator.take(text)
    validator.finish()
    duplicates = validator.duplicate_pass()
    assert duplicates is not None
    duplicates.take(text)
    duplicates.finish()
    return {error.line: error.message for error in validator.result(duplicates).errors}
