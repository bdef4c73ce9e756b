"""The dashboard behind the nginx and the Caddy of docs/howto/behind-a-proxy.md, with TLS and below a path."""

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, expect

from tests.dashboard.conftest import WAIT_MS, RunningServer, chat_line
from tests.docs.test_proxy_page import NGINX, PROXIES, Command, certificate, nginx, proxied
from tests.slow import only_slow

__all__ = ["certificate"]
BROWSER = {"accept": "text/html", "sec-fetch-site": "same-origin"}


@pytest.mark.parametrize("proxy", PROXIES)
def test_signing_in_links_forms_and_live_updates_work_below_a_path(
    proxy: Command, locked: RunningServer, certificate: Path, tmp_path: Path
) -> None:
    with proxied(proxy, locked.url, certificate, tmp_path, has_prefix=True) as client:
        root = str(client.base_url)
        asked = client.get(f"{root}ui/files", headers=BROWSER)
        assert asked.status_code == 303
        assert urljoin(f"{root}ui/files", asked.headers["location"]) == f"{root}ui/sign-in?next=ui%2Ffiles"
        fields = {"key": locked.environment["OPENAI_API_KEY"], "next": "ui/files"}
        foreign = client.post(
            f"{root}ui/sign-in", data=fields, headers={**BROWSER, "sec-fetch-site": "cross-site"}
        )
        assert foreign.status_code == 403
        signed = client.post(f"{root}ui/sign-in", data=fields, headers=BROWSER)
        assert urljoin(f"{root}ui/sign-in", signed.headers["location"]) == f"{root}ui/files"
        assert "secure" in signed.headers["set-cookie"].lower()
        page = client.get(f"{root}ui/files", headers=BROWSER)
        base = urljoin(f"{root}ui/files", re.findall(r'<base href="([^"]+)"', page.text)[0])
        assert base == root
        for link in re.findall(r'(?:href|src)="(ui/static/[^"]+)"', page.text):
            assert client.get(urljoin(base, link)).status_code == 200, link
        batch_id = locked.submit([chat_line("a")])
        with client.stream("GET", f"{root}?_live=1") as stream:
            assert any(batch_id in line for line in stream.iter_lines())


@only_slow
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_browser_stays_below_the_path(
    locked: RunningServer, certificate: Path, tmp_path: Path, browser: Browser
) -> None:
    context = browser.new_context(ignore_https_errors=True)
    context.set_default_timeout(WAIT_MS)
    with proxied(nginx, locked.url, certificate, tmp_path, has_prefix=True) as client:
        root = str(client.base_url)
        page = context.new_page()
        page.goto(f"{root}ui/files")
        page.fill("#key", locked.environment["OPENAI_API_KEY"])
        page.click("main button")
        page.wait_for_url(f"{root}ui/files")
        page.select_option("#theme-choice", "dark")
        expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        assert page.url == f"{root}ui/files"
        page.click("nav >> text=Batches")
        page.wait_for_url(root)
        expect(page.locator("#live-state")).to_have_text("live", timeout=WAIT_MS)
        batch_id = locked.submit([chat_line("a")])
        page.goto(f"{root}ui/batches/{batch_id}")
        code = page.locator("#code-title ~ details").first
        expect(code.locator("pre")).to_contain_text(f'base_url="{root}v1"')
        expect(code.locator("[data-copy]")).to_have_attribute("data-copy", re.compile(re.escape(f"{root}v1")))
        page.goto("about:blank")
    context.close()
