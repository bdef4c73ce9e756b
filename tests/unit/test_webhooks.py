"""The rules of webhooks: events, pauses between attempts, and the URLs and addresses that are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from openai.types.webhooks.webhook_create_params import WebhookCreateParams

from nightmill.core.batch import TERMINAL, Status
from nightmill.core.webhook import (
    EVENT_TYPES,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    RETRY_S,
    SENT_EVENT_TYPES,
    DeliveryAttempt,
    DeliveryState,
    WebhookDelivery,
    WebhookEndpoint,
    delivery_id_of,
    event_id_of,
    event_type_of,
    pause_s,
    payload_of,
)
from nightmill.core.webhook_url import RefusedUrlError, checked_url, networks_of, place_of, refusal_of
from nightmill.ids import BatchId, ProjectId
from nightmill.webhooks.signing import signed_headers

OFFICIAL = OpenAI(api_key="sk-none")
below_one = st.floats(min_value=0, max_value=1, exclude_max=True)


def delivery(**fields) -> WebhookDelivery:
    given = {
        "id": "wh_1",
        "endpoint_id": "whe_1",
        "event_id": "evt_1",
        "event_type": "batch.completed",
        "batch_id": BatchId("batch_1"),
        "payload": "{}",
        "created_at": 0,
        "state": DeliveryState.PENDING,
        "attempt_count": 0,
        "attempts": (),
        "next_at": 0.0,
        "retry_until": float(RETRY_S),
    }
    return WebhookDelivery(**given | fields)


def endpoint(**fields) -> WebhookEndpoint:
    given = {
        "id": "whe_1",
        "project_id": ProjectId("default"),
        "name": "n",
        "url": "https://example.com/token-in-path",
        "event_types": SENT_EVENT_TYPES,
        "created_at": 0,
        "updated_at": 0,
        "signing_secret": "whsec_bmV3",
    }
    return WebhookEndpoint(**given | fields)


# --- events ----------------------------------------------------------------------------------------------


def test_each_end_of_a_batch_has_its_event_and_no_other_status_has_one():
    ends = {status: event_type_of(status) for status in Status if event_type_of(status) is not None}
    assert set(ends) == TERMINAL
    assert ends == {status: f"batch.{status}" for status in TERMINAL}
    assert set(ends.values()) == set(SENT_EVENT_TYPES)


def test_the_published_event_types_are_those_of_the_official_package():
    published = str(WebhookCreateParams.__annotations__["event_types"])
    assert len(set(EVENT_TYPES)) == len(EVENT_TYPES) == 27
    assert all(f'"{name}"' in published or f"'{name}'" in published for name in EVENT_TYPES)


def test_a_payload_is_compact_and_names_only_the_batch():
    text = payload_of("evt_1", "batch.failed", created_at=12, subject_id="batch_1")
    assert text == (
        '{"id":"evt_1","object":"event","type":"batch.failed","created_at":12,"data":{"id":"batch_1"}}'
    )


def test_ids_are_stable_and_differ_by_event_and_endpoint():
    event = event_id_of(BatchId("batch_1"), "batch.failed")
    assert event == event_id_of(BatchId("batch_1"), "batch.failed")
    ids = {event, event_id_of(BatchId("batch_2"), "batch.failed"), event_id_of(BatchId("batch_1"), "x")}
    ids |= {delivery_id_of(event, "whe_1"), delivery_id_of(event, "whe_2")}
    assert len(ids) == 5
    assert delivery_id_of(event, "whe_1").startswith("wh_")


# --- signatures ------------------------------------------------------------------------------------------


def test_the_published_vector_has_the_published_signature():
    """Secret, id, time and signature of the official package's own test."""
    body = (
        '{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210,'
        ' "type": "response.completed", "data": {"id": "resp_123"}}'
    )
    headers = signed_headers(
        body,
        delivery_id="wh_685c059ae39c8190af8c71ed1022a24d",
        now=1750861210.9,
        secrets=["whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="],
    )
    assert headers["webhook-timestamp"] == "1750861210"
    assert headers["webhook-signature"] == "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY="


@given(st.text(), st.integers(min_value=1, max_value=2**32))
def test_the_official_package_accepts_what_is_signed(text, at):
    secret, other = "whsec_bmV3", "whsec_b2xk"
    payload = json.dumps(text)
    headers = signed_headers(payload, delivery_id="wh_1", now=at, secrets=[secret, other])
    for one in (secret, other):
        OFFICIAL.webhooks.verify_signature(payload, headers, secret=one, tolerance=2**33)


def test_an_old_secret_signs_until_it_expires():
    kept = endpoint(old_signing_secret="whsec_b2xk", old_secret_expires_at=100)
    assert kept.secrets_at(99) == ("whsec_bmV3", "whsec_b2xk")
    assert kept.secrets_at(100) == ("whsec_bmV3",)
    assert endpoint().secrets_at(0) == ("whsec_bmV3",)


def test_the_text_of_an_endpoint_shows_no_secret_and_no_url():
    shown = repr(endpoint(old_signing_secret="whsec_b2xk", old_secret_expires_at=100))
    assert "whsec" not in shown
    assert "token-in-path" not in shown


# --- attempts --------------------------------------------------------------------------------------------


@given(st.integers(min_value=1, max_value=10_000), below_one)
def test_a_pause_is_doubled_each_time_within_a_fifth_up_to_the_longest(count, random):
    exact = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(count - 1, 60))
    assert exact * 0.8 <= pause_s(count, random=random) < exact * 1.2 + 1e-9


@given(st.lists(below_one, min_size=1, max_size=20), st.floats(min_value=0, max_value=15))
def test_a_receiver_that_always_fails_is_attempted_for_72_hours_and_then_given_up(randoms, duration_s):
    """Whatever the spread: the attempts fill the 72 hours, none comes after them, and they are few."""
    now, count, state, times = 0.0, 0, DeliveryState.PENDING, []
    while state is DeliveryState.PENDING:
        times.append(now)
        assert len(times) < 60
        attempt = DeliveryAttempt(at=now, duration_s=duration_s, status_code=500)
        one = delivery(attempt_count=count, next_at=now)
        state, now = one.after(attempt, now=now + duration_s, random=randoms[count % len(randoms)])
        count += 1
    assert state is DeliveryState.FAILED
    assert times[-1] <= RETRY_S
    assert times[-1] >= RETRY_S - 1.2 * LONGEST_PAUSE_S
    assert times == sorted(times)
    assert len(times) >= 20


@pytest.mark.parametrize(
    ("status", "state"),
    [(200, "delivered"), (204, "delivered"), (299, "delivered")]
    + [(code, "pending") for code in (199, 300, 301, 302, 307, 304, 400, 404, 410, 429, 500, 503)],
)
def test_only_2xx_ends_a_delivery(status, state):
    attempt = DeliveryAttempt(at=0, duration_s=0, status_code=status)
    assert delivery().after(attempt, now=1, random=0.5)[0] == state


def test_no_answer_is_a_failure():
    attempt = DeliveryAttempt(at=0, duration_s=15, error="no answer within 15 s")
    assert delivery().after(attempt, now=15, random=0.5) == (DeliveryState.PENDING, 20.0)


def test_the_list_of_attempts_is_bounded():
    attempt = DeliveryAttempt(at=0, duration_s=0, status_code=500)
    assert len(delivery(attempts=(attempt,) * 50).with_attempt(attempt)) == 50


# --- URLs and addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "must begin with https"),
        ("ftp://example.com/", "must begin with https"),
        ("file:///etc/passwd", "must begin with https"),
        ("gopher://example.com/", "must begin with https"),
        ("javascript:alert(1)", "must begin with https"),
        ("//example.com/", "must begin with https"),
        ("example.com/hook", "must begin with https"),
        ("https://", "must begin with https"),
        ("https:///path", "must begin with https"),
        ("https://user@example.com/", "user name or a password"),
        ("https://user:pass@example.com/", "user name or a password"),
        ("https://:@example.com/", "user name or a password"),
        ("https://example.com#@10.0.0.1/", "fragment"),
        ("https://example.com\\@10.0.0.1/", "backslash"),
        ("https://example.com/a b", "space"),
        ("https://example.com/\r\nHost: x", "control character"),
        ("https://ex\u00e4mple.com/", "beyond ASCII"),
        ("https://example.com:0/", "port is 0"),
        ("https://example.com:99999/", "not a URL"),
        ("https://example.com:x/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://example.com/" + "a" * 2048, "longer than 2048"),
    ],
)
def test_a_url_that_is_not_for_webhooks_is_refused_with_the_reason(url, reason):
    with pytest.raises(RefusedUrlError, match=reason):
        checked_url(url, allow_http=False)


def test_a_good_url_has_host_and_port():
    assert checked_url("https://Example.com/hook?token=x", allow_http=False) == ("example.com", 443)
    assert checked_url("https://example.com:8443/", allow_http=False) == ("example.com", 8443)
    assert checked_url("http://[::1]/", allow_http=True) == ("::1", 80)


def test_only_scheme_and_host_of_a_url_are_shown():
    assert place_of("https://example.com:8443/T0KEN?key=T0KEN") == "https://example.com:8443"


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.0.9", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "private or reserved"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("100.100.100.200", "private"),
        ("192.0.0.192", "private"),
        ("198.18.0.1", "private"),
        ("169.254.169.254", "link-local"),
        ("169.254.170.2", "link-local"),
        ("168.63.129.16", "metadata"),
        ("224.0.0.1", "multicast"),
        ("240.0.0.1", "private or reserved"),
        ("255.255.255.255", "private or reserved"),
        ("192.0.2.1", "private or reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "private"),
        ("fec0::1", "private"),
        ("ff02::1", "multicast"),
        ("2001:db8::1", "private or reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:7f00:1", "loopback"),
        ("::127.0.0.1", "loopback"),
        ("64:ff9b::10.0.0.1", "private"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b:1::1", "private or reserved"),
        ("2002:7f00:1::", "loopback"),
        ("2002:a9fe:a9fe::", "link-local"),
        ("2001:0:7f00:1::", "loopback"),
        ("not an address", "not an IP"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address, word):
    assert word in (refusal_of(address) or "")


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_a_public_address_is_allowed(address):
    assert refusal_of(address) is None


def test_an_allowed_network_allows_its_addresses_and_no_others():
    allowed = networks_of(["10.1.0.0/16", "127.0.0.1", "fd00::/8"])
    for address in ("10.1.2.3", "127.0.0.1", "::ffff:10.1.2.3", "fd12::1"):
        assert refusal_of(address, allowed=allowed) is None, address
    for address in ("10.2.0.1", "127.0.0.2", "::1", "169.254.169.254"):
        assert refusal_of(address, allowed=allowed) is not None, address
