"""Who may see the dashboard, which requests are accepted, and what a browser is kept from."""

import re
import time
import urllib.request
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import pytest
from itsdangerous import TimestampSigner, URLSafeTimedSerializer
from playwright.sync_api import Page, expect

from nightmill.api.context import ApiContext
from nightmill.core.api_key import digest_of
from nightmill.dashboard.app import with_dashboard
from nightmill.dashboard.calls import path_of
from nightmill.dashboard.live import OpenStreams
from nightmill.errors import NotFoundError, UnavailableError
from nightmill.settings import DashboardSettings, Settings
from nightmill.store.sqlite import sqlite_library
from tests.dashboard.conftest import RunningServer, chat_line
from tests.dashboard.screens import violations
from tests.dashboard.walls import Person

ELSEWHERE = "https://elsewhere.example"


@pytest.fixture
def person(server: RunningServer) -> Person:
    return Person(server.url)


@pytest.fixture
def stranger(locked: RunningServer) -> Person:
    return Person(locked.url)


@pytest.fixture
def admin(locked: RunningServer) -> Person:
    person = Person(locked.url)
    assert person.sign_in(locked.environment["OPENAI_API_KEY"]).status == 303
    return person


# --- a server without keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "elsewhere.example"},
        {"Origin": ELSEWHERE},
        {"Origin": "null"},
        {"X-Forwarded-For": "192.0.2.1"},
        {"Forwarded": "for=192.0.2.1"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/ui/files", "/?format=json", "/?_live=1"])
def test_an_open_dashboard_follows_the_rules_of_the_api_on_host_and_origin(person, headers, path):
    reply = person.get(path, headers)
    assert reply.status == 303
    assert "ui/sign-in" in (reply.header("location") or "")
    assert b"Batches" not in reply.body


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": None, "Origin": "http://localhost:3000"},
    ],
)
def test_a_form_of_another_page_is_refused_even_with_the_token(person, headers):
    person.get("/")
    assert person.csrf
    reply = person.post("/ui/project", {"project": "mine"}, headers)
    assert reply.status == 403
    assert not reply.cookies


@pytest.mark.parametrize("token", ["", "0" * 64, "é"])
def test_a_form_without_the_token_of_its_session_is_refused(person, token):
    person.get("/")
    assert person.post("/ui/project", {"csrf": token}).status == 403
    assert person.post("/ui/project").status == 303


def test_a_form_of_a_browser_that_says_nothing_of_its_origin_needs_the_token(person):
    person.get("/")
    silent = {"Sec-Fetch-Site": None}
    assert person.post("/ui/project", {"csrf": ""}, silent).status == 403
    assert person.post("/ui/project", headers=silent).status == 303


def test_a_body_of_another_kind_is_no_way_round_the_token(person):
    for kind in ("text/plain", "application/json", "multipart/form-data; boundary=x"):
        reply = person.send(
            "POST", "/ui/project", b"project=x", {"Content-Type": kind, "Sec-Fetch-Site": None}
        )
        assert reply.status == 403, kind


def test_headers_of_a_browser_change_nothing_in_the_calls_of_a_page(server, person):
    server.wait_until(server.submit([chat_line("a")]))
    plain = person.get("/?format=json").json()
    smuggled = {
        "X-Nightmill-Project": "another",
        "api-key": "sk-x",
        "Content-Encoding": "gzip",
        "Range": "bytes=0-1",
        "Expect": "100-continue",
        "Idempotency-Key": "one",
        "nightmill.caller": "admin",
    }
    assert [it["id"] for it in person.get("/?format=json", smuggled).json()["batches"]] == [
        it["id"] for it in plain["batches"]
    ]


def test_every_page_is_strict_about_scripts_frames_and_caches(person):
    for path in ("/", "/ui/sign-in", "/ui/nowhere", "/ui/static/app.js"):
        reply = person.get(path)
        policy = reply.header("content-security-policy") or ""
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.header("x-frame-options") == "DENY"
        assert reply.header("x-content-type-options") == "nosniff"
        assert reply.header("cache-control") == ("no-cache" if "static" in path else "no-store")


def test_a_file_of_this_version_is_kept_for_good_and_any_other_is_asked_for_again(person):
    (address,) = set(re.findall(r"ui/static/app\.js\?\w+", person.get("/").raw))
    kept = person.get(f"/{address}")
    assert (kept.status, kept.header("cache-control")) == (200, "public, max-age=31536000, immutable")
    for other in (
        f"/{address}0",
        "/ui/static/app.js?0.1.0",
        address.replace("ui/", "/ui/").replace("app", "no"),
    ):
        assert person.get(other).header("cache-control") == "no-cache"


def test_the_way_to_the_root_is_counted_as_the_browser_counts(person):
    assert '<base href="../../">' in person.get("/ui/nowhere/a%2Fb%3Fc%23d").raw


@pytest.mark.parametrize("name", ["", "a/b", "../batches"])
def test_a_name_of_a_form_leads_to_no_other_route(name):
    assert path_of("v1", "files", "a b%?#") == "/v1/files/a%20b%25%3F%23"
    with pytest.raises(NotFoundError):
        path_of("v1", "files", name)


# --- signing in ---------------------------------------------------------------------------------------------


def test_a_stranger_is_sent_to_sign_in_and_back_to_the_page(locked, stranger):
    asked = stranger.get("/ui/files?purpose=batch")
    assert (asked.status, asked.header("location")) == (
        303,
        "../ui/sign-in?next=ui%2Ffiles%3Fpurpose%3Dbatch",
    )
    assert stranger.get("/?format=json", {"Accept": "application/json"}).status == 401
    reply = stranger.sign_in(locked.environment["OPENAI_API_KEY"], "ui/files?purpose=batch")
    assert (reply.status, reply.header("location")) == (303, "../ui/files?purpose=batch")
    attributes = reply.cookies["nightmill_session"].lower()
    assert "httponly" in attributes
    assert "samesite=lax" in attributes
    assert "secure" not in attributes
    assert locked.environment["OPENAI_API_KEY"] not in str(reply.headers)
    assert stranger.get("/ui/files").status == 200


def test_behind_tls_the_cookie_is_for_tls_only(locked, stranger):
    fields = {"key": locked.environment["OPENAI_API_KEY"], "next": ""}
    reply = stranger.post("/ui/sign-in", fields, {"X-Forwarded-Proto": "https"})
    assert "secure" in reply.cookies["nightmill_session"].lower()


@pytest.mark.parametrize("key", ["", "sk-wrong", "<script>alert(1)</script>", "é" * 100, "x" * 10_000])
def test_a_wrong_key_is_refused_and_not_shown(stranger, key):
    reply = stranger.post("/ui/sign-in", {"key": key})
    assert reply.status == 401
    assert "not valid here" in reply.text
    assert not key or key not in reply.text
    assert "nightmill_session" not in stranger.cookies


def test_a_form_that_everyone_may_send_is_small(stranger):
    assert stranger.post("/ui/sign-in", {"key": "x" * 20_000}).status == 413
    assert stranger.post("/ui/theme", {"theme": "x" * 20_000}).status == 413


def test_only_so_many_pages_are_updated_at_once():
    streams = OpenStreams(1)
    streams.check()
    with streams.one(), pytest.raises(UnavailableError, match="1 pages are being updated"):
        streams.check()
    streams.check()


@pytest.mark.parametrize(
    "following",
    [
        "https://elsewhere.example/",
        "//elsewhere.example",
        "/\\elsewhere.example",
        "\\\\elsewhere.example",
        "javascript:alert(1)",
        "ui/../../elsewhere",
        "ui/%2e%2e/%2E%2e/elsewhere",
        "ui/..\\..\\elsewhere",
        "ui/x\r\nSet-Cookie: a=b",
        " https://elsewhere.example",
    ],
)
def test_signing_in_leads_nowhere_else(locked, stranger, following):
    reply = stranger.sign_in(locked.environment["OPENAI_API_KEY"], following)
    assert reply.header("location") in (".././", "../ui/x%0D%0ASet-Cookie:%20a=b")
    assert set(reply.cookies) <= {"nightmill_session", "nightmill_project", "nightmill_action"}


def test_a_form_for_signing_in_on_another_page_is_refused(locked, stranger):
    fields = {"key": locked.environment["OPENAI_API_KEY"]}
    assert stranger.post("/ui/sign-in", fields, {"Sec-Fetch-Site": "cross-site"}).status == 403
    foreign = {"Sec-Fetch-Site": None, "Origin": ELSEWHERE}
    assert stranger.post("/ui/sign-in", fields, foreign).status == 403
    assert not stranger.cookies


def test_a_proxy_that_removes_the_port_from_the_host_locks_no_one_out(locked, stranger):
    fields = {"key": locked.environment["OPENAI_API_KEY"], "next": ""}
    headers = {"Sec-Fetch-Site": None, "Host": "batch.example", "Origin": "http://batch.example:8443"}
    assert stranger.post("/ui/sign-in", fields, headers).status == 303


def test_a_cookie_that_was_changed_is_worth_nothing(locked, admin):
    good = admin.cookies["nightmill_session"]
    digest = digest_of(locked.environment["OPENAI_API_KEY"])
    forged = URLSafeTimedSerializer("guessed", salt="nightmill.session").dumps([digest, "00"])
    content, _, signature = good.partition(".")
    for value in (good[:-2], good + "x", content, f"{content}.{signature[::-1]}", forged, "", "a.b.c", "é"):
        admin.cookies["nightmill_session"] = value.encode().decode("latin-1")
        assert admin.get("/ui/files").status == 303, value
    admin.cookies["nightmill_session"] = good
    assert admin.get("/ui/files").status == 200


def stored(server: RunningServer) -> tuple[str, list[str]]:
    """The secret of the dashboard and the digests of the keys, from a server's database."""
    with closing(sqlite_library().module.connect(f"{server.folder}/data/nightmill.sqlite")) as connection:
        ((secret,),) = connection.execute("SELECT value FROM secret WHERE name = 'dashboard'")
        return secret, [row[0] for row in connection.execute("SELECT digest FROM api_key")]


@pytest.mark.parametrize(("age_s", "status"), [(600, 200), (604_000, 200), (605_000, 303), (-600, 303)])
def test_a_session_ends_after_the_time_of_the_settings(locked, admin, age_s, status):
    class Signer(TimestampSigner):
        def get_timestamp(self) -> int:
            return int(time.time()) - age_s

    opened = URLSafeTimedSerializer("-", salt="nightmill.session")
    content = opened.loads_unsafe(admin.cookies["nightmill_session"])[1]
    signer = URLSafeTimedSerializer(stored(locked)[0], salt="nightmill.session", signer=Signer)
    admin.cookies["nightmill_session"] = signer.dumps(content)
    assert admin.get("/ui/files").status == status


def test_a_copy_of_the_database_opens_no_session(locked, admin, stranger):
    assert admin.cookies  # the secret is made for the first session
    secret, digests = stored(locked)
    signer = URLSafeTimedSerializer(secret, salt="nightmill.session")
    for digest in digests:
        for content in ([digest, "00" * 16], [digest.encode().hex(), "00" * 16], [digest], [1, 2], {"a": 1}):
            stranger.cookies["nightmill_session"] = signer.dumps(content)
            assert stranger.get("/ui/files").status == 303


def test_a_cookie_does_not_show_the_key(locked, admin):
    content = URLSafeTimedSerializer("-", salt="nightmill.session").loads_unsafe(
        admin.cookies["nightmill_session"]
    )[1]
    key = locked.environment["OPENAI_API_KEY"]
    assert digest_of(key) not in str(content)
    assert key not in bytes.fromhex(content[0]).decode("latin-1")


def test_a_cookie_of_another_program_spoils_no_session(admin):
    admin.cookies = {"bad;name[": "{", **admin.cookies}
    assert admin.get("/ui/files").status == 200


def test_the_token_of_another_session_is_refused(locked, admin):
    other = Person(locked.url)
    other.sign_in(locked.environment["OPENAI_API_KEY"])
    assert other.csrf != admin.csrf
    assert admin.post("/ui/project", {"csrf": other.csrf}).status == 403
    assert admin.post("/ui/project").status == 303


def test_a_revoked_key_ends_its_sessions_and_their_live_updates(locked):
    secret, key_id = locked.new_key()
    person = Person(locked.url)
    person.sign_in(secret)
    assert person.get("/ui/files").status == 200
    cookie = {"Cookie": f"nightmill_session={person.cookies['nightmill_session']}"}
    request = urllib.request.Request(f"{locked.url}/?_live=1", headers=cookie)
    with urllib.request.urlopen(request, timeout=60) as stream:
        assert stream.readline()
        locked.command("keys", "revoke", key_id)
        stream.read()  # ends
    assert person.get("/ui/files").status == 303
    assert person.post("/ui/sign-in", {"key": secret}).status == 401


def test_a_key_in_a_header_needs_no_token_but_no_page_may_use_it(locked, stranger):
    headers = {"Authorization": f"Bearer {locked.environment['OPENAI_API_KEY']}"}
    assert stranger.post("/ui/project", headers={**headers, "Sec-Fetch-Site": None}).status == 303
    assert stranger.post("/ui/project", headers={**headers, "Sec-Fetch-Site": "cross-site"}).status == 403


def test_a_theme_can_be_chosen_before_signing_in(stranger):
    assert stranger.post("/ui/theme", {"theme": "dark", "next": "ui/sign-in"}).status == 303
    assert 'data-theme="dark"' in stranger.get("/ui/sign-in").raw
    assert stranger.post("/ui/theme", {"theme": "dark"}, {"Sec-Fetch-Site": "cross-site"}).status == 403


# --- roles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["project", "read"])
def test_pages_of_the_operator_need_an_admin_key(locked, scope):
    person = Person(locked.url)
    person.sign_in(locked.new_key(scope)[0])
    for path in ("/ui/projects", "/ui/system", "/ui/upstreams", "/ui/workers"):
        reply = person.get(path)
        assert reply.status == 403, path
        assert "needs an admin key" in reply.text
        assert person.get(f"{path}?_live=1").status == 403
        assert path.removeprefix("/") not in person.get("/ui/webhooks").raw
    assert person.post("/ui/project", {"project": "another"}).status == 403


def test_the_cookie_of_a_project_moves_only_an_admin(locked, admin):
    tenant = Person(locked.url)
    tenant.sign_in(locked.new_key(project="night")[0])
    batch_id = locked.submit([chat_line("a")])
    for project in ("default", "t\u00e4glich \u65e5", '"; x=y'):
        assert admin.post("/ui/project", {"project": project}).status == 303
        shown = [it["id"] for it in admin.get("/?format=json").json()["batches"]]
        assert (batch_id in shown) == (project == "default")
    admin.post("/ui/project", {"project": ""})
    tenant.cookies["nightmill_project"] = "default"
    assert tenant.get("/?format=json").json()["batches"] == []


def test_signing_in_as_another_person_forgets_the_chosen_project(locked, admin):
    admin.post("/ui/project", {"project": "another"})
    assert "nightmill_project" in admin.cookies
    admin.sign_in(locked.environment["OPENAI_API_KEY"])
    assert "nightmill_project" not in admin.cookies


# --- settings -----------------------------------------------------------------------------------------------


def test_a_dashboard_that_is_turned_off_leaves_the_api_alone():
    async def api(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    settings = Settings(dashboard=DashboardSettings(enabled=False))
    assert with_dashboard(api, cast("ApiContext", SimpleNamespace(settings=settings))) is api


# --- in a browser -------------------------------------------------------------------------------------------


def test_a_person_is_refused_signs_in_and_signs_out(locked: RunningServer, page: Page) -> None:
    page.goto(f"{locked.url}/ui/files")
    page.fill("#key", "sk-wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#wrong")).to_contain_text("not valid here")
    assert violations(page) == []
    page.fill("#key", locked.environment["OPENAI_API_KEY"])
    page.click("main button")
    expect(page.locator("h1")).to_have_text("Files")
    page.click("text=Sign out")
    expect(page.locator("h1")).to_have_text("Sign in")
    page.goto(locked.url)
    expect(page.locator("h1")).to_have_text("Sign in")
