"""The screens of files in a real browser, and what is hidden when the server hides content."""

import json

from playwright.sync_api import Page, expect

from tests.dashboard.conftest import RunningServer, chat_line
from tests.dashboard.screens import in_both_themes, violations
from tests.slow import only_slow

SECRET = "a-prompt-that-is-hidden"
NAME = "we<script>window.hit = 1</script>ird' onmouseover='x \u202egnp.jsonl"


def upload(server: RunningServer, text: bytes, name: str = "lines.jsonl", purpose: str = "batch") -> str:
    return server.client.files.create(file=(name, text), purpose=purpose).id  # pyright: ignore[reportArgumentType]


def lines_text(count: int) -> bytes:
    lines = [chat_line(f"row-{number}", f"Text {number} <b>bold</b>") for number in range(1, count + 1)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@only_slow
def test_files_are_listed_with_the_batches_that_use_them(server: RunningServer, page: Page) -> None:
    batch_id = server.submit([chat_line("a"), chat_line("b", "Hi [emulate: 404]")])
    batch = server.wait_until(batch_id)
    page.goto(server.url + "/ui/files")
    for file_id, role in (
        (batch.input_file_id, "input"),
        (batch.output_file_id, "output"),
        (batch.error_file_id, "error"),
    ):
        uses = page.locator(f"#row-{file_id} .uses")
        expect(uses).to_contain_text(role)
        expect(uses.locator("a")).to_have_attribute("href", f"ui/batches/{batch_id}")
    page.get_by_role("link", name="batch_output", exact=True).click()
    expect(page.locator(f"#row-{batch.output_file_id}")).to_be_visible()
    expect(page.locator(f"#row-{batch.input_file_id}")).to_have_count(0)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("table.lines")).to_be_visible()
    page.goto(f"{server.url}/ui/files/{batch.output_file_id}")
    page.locator("td.line-name a").first.click()
    page.wait_for_url(f"**/ui/batches/{batch_id}/lines/1")
    page.goto(f"{server.url}/ui/files/{batch.error_file_id}")
    page.locator("td.line-name a").first.click()
    page.wait_for_url(f"**/ui/batches/{batch_id}/lines/2")


def test_a_file_is_read_page_by_page_in_both_directions(server: RunningServer, page: Page) -> None:
    file_id = upload(server, lines_text(130))
    page.goto(f"{server.url}/ui/files/{file_id}")
    numbers = page.locator("table.lines tbody tr td:first-child")
    expect(numbers.first).to_have_text("1")
    expect(numbers).to_have_count(50)
    page.get_by_role("link", name="Next").click()
    expect(numbers.first).to_have_text("51")
    page.get_by_role("link", name="Last").click()
    expect(numbers.last).to_have_text("130")
    expect(numbers.first).to_have_text("81")
    page.get_by_role("link", name="Previous").click()
    expect(numbers.first).to_have_text("31")
    page.get_by_label("Line", exact=True).fill("77")
    page.get_by_role("button", name="Go").click()
    expect(numbers.first).to_have_text("77")
    page.locator("table.lines summary").first.click()
    expect(page.locator("table.lines pre").first).to_contain_text('"content": "Text 77 <b>bold</b>"')
    page.get_by_role("link", name="First").click()
    expect(numbers.first).to_have_text("1")
    answer = page.request.get(f"{server.url}/ui/files/{file_id}?line=131")
    assert answer.status == 404
    assert page.request.get(f"{server.url}/ui/files/{file_id}?line=x").status == 400


def test_hostile_names_and_lines_are_text(server: RunningServer, page: Page) -> None:
    lines = lines_text(1_000) + b"\n".join(
        [
            b"<script>window.hit = 1</script>",
            b'{"custom_id": "<img src=x onerror=window.hit=1>", "x": "</pre><iframe src=//evil.example>"}',
            b'{"custom_id": "\\ud800\\u202e"}',
            b"\xff\xfe\x00\x1b[31m",
            b"[" * 20_000,
            b"",
            b" ",
        ]
    )
    file_id = upload(server, lines, NAME)
    page.goto(server.url + "/ui/files")
    expect(page.locator(f"#row-{file_id} a").first).to_contain_text("we<script>window.hit = 1</script>ird")
    assert violations(page) == []
    page.goto(f"{server.url}/ui/files/{file_id}?line=1001")
    expect(page.locator("table.lines tbody tr")).to_have_count(7)
    expect(page.locator("td.line-name").nth(1)).to_have_text("<img src=x onerror=window.hit=1>")
    expect(page.locator("td.line-name").nth(2)).to_have_text("?⟨U+202E⟩")
    expect(page.locator(".line-preview").nth(3)).to_have_text("\ufffd\ufffd␀␛[31m")
    expect(page.locator(".line-preview").nth(4)).to_have_text("[" * 160)
    assert page.evaluate("window.hit") is None
    assert page.locator("main script, main iframe, main img, main [onerror], main [onmouseover]").count() == 0
    assert in_both_themes(page) == []


@only_slow
def test_a_file_is_downloaded_whole_and_deleted_after_a_question(server: RunningServer, page: Page) -> None:
    text = lines_text(3)
    file_id = upload(server, text, NAME)
    page.goto(f"{server.url}/ui/files/{file_id}")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download").click()
    assert downloading.value.path().read_bytes() == text
    answer = page.request.get(f"{server.url}/ui/files/{file_id}/download")
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    expect(page.get_by_role("button", name="New batch from it")).to_have_attribute(
        "href", f"ui/new?file={file_id}"
    )
    page.get_by_role("button", name="Delete").click()
    expect(page.locator("h1")).to_have_text("Delete this file?")
    assert violations(page) == []
    page.get_by_role("button", name="Delete the file").click()
    expect(page.locator(".notice")).to_have_text("The file is deleted.")
    assert page.request.get(f"{server.url}/ui/files/{file_id}").status == 404
    assert page.request.post(f"{server.url}/ui/files/{file_id}/delete", form={"x": "y"}).status == 403


@only_slow
def test_a_file_is_found_by_its_id_and_other_files_have_no_lines(server: RunningServer, page: Page) -> None:
    file_id = upload(server, b"\x89PNG\r\n", "picture.png", "vision")
    page.goto(server.url + "/ui/files")
    page.keyboard.press("/")
    page.keyboard.type(file_id)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/ui/files/{file_id}")
    expect(page.locator("#lines + p")).to_contain_text("no lines to show")
    for wrong in ("file-none", "..%2f..%2fetc%2fpasswd", "<script>", ""):
        assert page.request.get(f"{server.url}/ui/files/find?id={wrong}").status == 404
        assert page.request.get(f"{server.url}/ui/files/{wrong or '-'}").status == 404
    assert page.request.get(f"{server.url}/ui/files?after=file-none").status == 404


def test_a_server_that_hides_content_shows_none_of_it(hiding: RunningServer, page: Page) -> None:
    lines = [chat_line("a", SECRET), chat_line("b", f"{SECRET} [emulate: 404]")]
    batch = hiding.wait_until(hiding.submit(lines))
    wrong = hiding.submit([chat_line("c", SECRET), {**chat_line("d", SECRET), "url": f"/{SECRET}"}])
    hiding.wait_until(wrong)
    pages = [f"/ui/batches/{batch.id}/lines/{number}" for number in (1, 2)]
    pages += [f"/ui/batches/{wrong}/lines/{number}" for number in (1, 2)]
    files = [batch.input_file_id, batch.output_file_id, batch.error_file_id]
    pages += [f"/ui/files/{file_id}" for file_id in files]
    pages += [f"/ui/files/{batch.input_file_id}?offset=0&whole=1"]
    for path in pages:
        for query in ("", "format=json"):
            answer = page.request.get(f"{hiding.url}{path}{'&' if '?' in path else '?'}{query}")
            assert answer.ok
            assert SECRET not in answer.text()
            assert "emulated, no model was asked" not in answer.text()
    for file_id in files:
        assert page.request.get(f"{hiding.url}/ui/files/{file_id}/download").status == 403
    page.goto(f"{hiding.url}/ui/batches/{batch.id}/lines/2")
    expect(page.locator(".facts .status")).to_have_text("failed")
    expect(page.locator("main")).to_contain_text("Prompts and answers are hidden")
    expect(page.get_by_role("link", name="Try this request")).to_have_count(0)
    assert violations(page) == []
    page.goto(f"{hiding.url}/ui/files/{batch.input_file_id}")
    expect(page.get_by_role("button", name="Download")).to_have_count(0)
    assert violations(page) == []
