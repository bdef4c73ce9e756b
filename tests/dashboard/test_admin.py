"""Keys and projects, webhooks and the system, as an admin, a tenant and a reader see them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.conftest import RunningServer, chat_line, running_server
from tests.dashboard.screens import in_both_themes, violations
from tests.dashboard.walls import Person, Reply
from tests.slow import only_slow
from tests.webhook_receiver import Receiver, receiving

pytestmark = only_slow

EVIL = "<script>alert(1)</script>\"'&"
_SECRET = re.compile(r'<code id="secret">([^<]+)</code>')


@dataclass
class Governed:
    """A server whose first key was made on its dashboard."""

    server: RunningServer
    first: Reply
    admin: Person
    secret: str

    def person(self, secret: str) -> Person:
        person = Person(self.server.url)
        assert person.sign_in(secret).status == 303
        return person

    def made_key(self, **fields: str) -> tuple[str, str]:
        """The secret and the id of a new key."""
        made = self.admin.post("/ui/keys/create", {"project_id": "default", "scope": "project", **fields})
        assert made.status == 200, made.text
        return secret_in(made), re.findall(r"key_[0-9a-f]{16}", made.raw)[0]


def secret_in(reply: Reply) -> str:
    return _SECRET.findall(reply.raw)[0]


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    settings = {
        "NIGHTMILL_WEBHOOKS__ALLOW_HTTP": "true",
        "NIGHTMILL_WEBHOOKS__ALLOW_PRIVATE": "127.0.0.1/32",
        "NIGHTMILL_UPSTREAM__API_KEY": "sk-of-the-upstream",
    }
    with running_server(tmp_path_factory.mktemp("governed"), **settings) as running:
        admin = Person(running.url)
        asked = admin.get("/ui/projects")
        assert "no key yet" in asked.text
        fields = {"name": "operator", "project_id": "default", "scope": "admin"}
        first = admin.post("/ui/keys/create", fields)
        secret = secret_in(first)
        running.environment["OPENAI_API_KEY"] = secret
        admin.get("/ui/projects")  # with the token of the new session
        yield Governed(running, first, admin, secret)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


# --- keys and projects --------------------------------------------------------------------------------------


def test_the_first_key_signs_its_maker_in_and_others_out(governed):
    assert "nightmill_session" in governed.first.cookies
    assert governed.first.header("cache-control") == "no-store"
    assert "signed in with it" in governed.first.text
    assert governed.admin.get("/ui/system").status == 200
    assert Person(governed.server.url).get("/ui/files").status == 303


def test_a_key_is_made_shown_once_used_and_revoked(governed):
    secret, key_id = governed.made_key(name="of the night", project_id="night")
    listed = governed.admin.get("/ui/projects")
    assert "of the night" in listed.text
    assert secret not in listed.text
    tenant = governed.person(secret)
    assert tenant.get("/ui/files").status == 200
    assert governed.admin.post("/ui/keys/revoke", {"id": key_id}).status == 303
    assert f"{key_id} is revoked." in governed.admin.get("/ui/projects").text
    shown = governed.admin.get("/ui/projects?revoked=1&format=json").json()
    assert key_id in [key["id"] for key in shown["keys"] if key["revoked_at"]]


def test_what_is_wrong_with_a_key_is_said_beside_the_fields(governed):
    reply = governed.admin.post("/ui/keys/create", {"name": EVIL, "project_id": "", "scope": "project"})
    assert reply.status == 400
    assert "project_id" in reply.text
    assert EVIL in reply.text
    assert EVIL not in reply.raw
    assert governed.admin.post("/ui/keys/revoke", {"id": "key_unknown"}).status == 404
    assert governed.admin.post("/ui/keys/revoke", {"id": "../projects"}).status == 404


def test_keys_and_limits_are_for_admins(governed):
    for scope in ("project", "read"):
        person = governed.person(governed.made_key(name=scope, scope=scope)[0])
        assert person.post("/ui/keys/create", {"name": "mine", "scope": "admin"}).status == 403
        assert person.post("/ui/keys/revoke", {"id": "key_1"}).status == 403
        assert person.post("/ui/projects/night", {"open_batches": "9"}).status == 403
        assert person.post("/ui/system/log-level", {"level": "debug"}).status == 403


def test_limits_of_a_project_are_set_and_cleared(governed):
    path = "/ui/projects/research%20%26%20more"
    assert governed.admin.post(path, {"open_batches": "1,200", "stored_bytes": "0"}).status == 303
    shown = governed.admin.get(f"{path}?format=json").json()
    assert shown["own"] == {"open_batches": 1200, "stored_bytes": 0}
    wrong = governed.admin.post(path, {"open_batches": EVIL})
    assert wrong.status == 400
    assert "whole number" in wrong.text
    assert EVIL not in wrong.raw
    short = governed.admin.post(path, {"input_ttl_s": "1"})
    assert (short.status, "input_ttl_s" in short.text) == (400, True)
    assert governed.admin.post(path, {}).status == 303
    assert governed.admin.get(f"{path}?format=json").json()["own"] == {}


# --- webhooks -----------------------------------------------------------------------------------------------


def test_a_webhook_is_made_tested_used_sent_again_and_deleted(governed, receiver):
    admin = governed.admin
    admin.post("/ui/project", {"project": "default"})
    fields = {"name": EVIL, "url": f"{receiver.url}/hook", "event_types": ["batch.completed"]}
    made = admin.post("/ui/webhooks", fields)
    secret = secret_in(made)
    assert secret.startswith("whsec_")
    (endpoint,) = admin.get("/ui/webhooks?format=json").json()["endpoints"]
    path = f"/ui/webhooks/{endpoint['id']}"
    assert admin.post(f"{path}/test", {"event_type": "batch.failed"}).status == 303
    assert "batch.failed was answered with 200" in admin.get(path).text
    batch_id = governed.server.submit([chat_line("a")])
    receiver.until_count(2)
    assert receiver.received[1].unwrapped(secret).data.id == batch_id
    shown = admin.get(f"{path}?format=json").json()
    assert [it["batch_id"] for it in shown["deliveries"]] == [batch_id]
    assert admin.post(f"{path}/resend", {"delivery_id": shown["deliveries"][0]["id"]}).status == 303
    receiver.until_count(3)
    page = admin.get(path)
    assert EVIL in page.text
    assert EVIL not in page.raw
    assert admin.post(f"{path}/disable").status == 303
    assert "gets no events until it is enabled" in admin.get(path).text
    assert "disabled" in admin.get("/ui/webhooks").text
    assert admin.post(f"{path}/enable").status == 303
    assert admin.get(f"{path}?format=json").json()["endpoint"]["disabled_at"] is None
    rotated = secret_in(admin.post(f"{path}/rotate", {"keeps_old": "1"}))
    assert rotated != secret
    assert admin.post(path, {**fields, "name": "pager"}).status == 303
    wrong = admin.post(path, {**fields, "url": "ftp://x", "event_types": []})
    assert wrong.status == 400
    assert "ftp://x" in wrong.text
    assert admin.get(f"{path}?format=json").json()["endpoint"]["name"] == "pager"
    assert admin.post(f"{path}/delete").status == 303
    assert admin.get(path).status == 404


def test_a_reader_sees_webhooks_and_changes_none(governed):
    reader = governed.person(governed.made_key(name="reader", scope="read")[0])
    page = reader.get("/ui/webhooks")
    assert page.status == 200
    assert "Make a webhook" not in page.text
    refused = reader.post(
        "/ui/webhooks", {"name": "n", "url": "https://example.com", "event_types": "batch.failed"}
    )
    assert (refused.status, "may only read" in refused.text) == (403, True)


def test_a_webhook_of_another_project_is_not_there(governed):
    fields = {"name": "n", "url": "http://127.0.0.1:9/", "event_types": ["batch.failed"]}
    owner = governed.person(governed.made_key(name="o", project_id="own")[0])
    owner.post("/ui/webhooks", fields)
    (endpoint,) = owner.get("/ui/webhooks?format=json").json()["endpoints"]
    other = governed.person(governed.made_key(name="p", project_id="other")[0])
    path = f"/ui/webhooks/{endpoint['id']}"
    assert other.get(path).status == 404
    assert other.post(f"{path}/rotate").status == 404
    assert other.post(f"{path}/delete").status == 404
    assert owner.get(path).status == 200


# --- the system ---------------------------------------------------------------------------------------------


def test_settings_are_shown_with_their_source_and_without_secrets(governed):
    page = governed.admin.get("/ui/system/settings")
    assert "NIGHTMILL_WEBHOOKS__ALLOW_HTTP" in page.text
    every = governed.admin.get("/ui/system/settings?all=1&format=json").json()
    found = {it["name"]: it for it in every["settings"]}
    assert len(found) == every["count"]
    assert found["emulator.enabled"]["source"] == "flag"
    assert found["upstream.api_key"]["value"] == "(hidden)"
    assert found["upstream.api_key"]["place"] == "NIGHTMILL_UPSTREAM__API_KEY"
    assert "sk-of-the-upstream" not in str(every)
    searched = governed.admin.get("/ui/system/settings?q=api.port&format=json").json()
    assert [it["name"] for it in searched["settings"]] == ["api.port"]


def test_the_audit_log_is_filtered(governed):
    _, key_id = governed.made_key(name="filtered")
    found = governed.admin.get(f"/ui/system/audit?subject_id={key_id}&format=json").json()
    assert [it["action"] for it in found["entries"]] == ["key.created"]
    assert governed.admin.get("/ui/system/audit?action=key&since=2026-01-01").status == 200
    none = governed.admin.get(f"/ui/system/audit?actor={EVIL}")
    assert "No entry is like that" in none.text
    assert EVIL not in none.raw
    assert governed.admin.get("/ui/system/audit?since=yesterday").status == 400


def test_the_level_of_the_log_is_changed(governed):
    assert governed.admin.post("/ui/system/log-level", {"level": "warning"}).status == 303
    assert governed.admin.get("/ui/system?format=json").json()["log_level"] == "warning"
    assert governed.admin.post("/ui/system/log-level", {"level": "loud"}).status == 400


# --- in a browser -------------------------------------------------------------------------------------------

PAGES = ("ui/projects", "ui/projects/default", "ui/system/settings", "ui/system/audit?action=project")


def test_the_pages_of_an_admin_are_accessible_in_both_themes(governed: Governed, page: Page) -> None:
    sign_in(governed, page)
    page.emulate_media(reduced_motion="reduce")
    governed.made_key(name=EVIL, project_id=EVIL)
    for path in PAGES:
        page.goto(f"{governed.server.url}/{path}")
        assert in_both_themes(page) == [], path


def test_a_person_makes_a_key_and_revokes_it(governed: Governed, page: Page) -> None:
    sign_in(governed, page)
    page.goto(f"{governed.server.url}/ui/projects")
    page.fill("#name", "made in a browser")
    page.select_option("#scope", "read")
    page.click("text=Make the key")
    expect(page.locator("#secret")).to_contain_text("sk-nightmill-")
    assert violations(page) == []
    page.click("text=To the keys and projects")
    row = page.locator("tr", has_text="made in a browser")
    expect(row).to_contain_text("read only")
    row.locator("summary").click()
    row.locator("button").click()
    expect(page.locator("#notices")).to_contain_text("is revoked")
    expect(page.locator("tr", has_text="made in a browser")).to_have_count(0)


def sign_in(governed: Governed, page: Page) -> None:
    page.goto(f"{governed.server.url}/ui/sign-in")
    page.fill("#key", governed.secret)
    page.click("main button")
    expect(page.locator("h1")).to_have_text("Batches")
