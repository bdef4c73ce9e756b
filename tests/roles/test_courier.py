"""The courier with a real receiver: what is sent, what counts as delivered, and where nothing is sent."""

import asyncio
import ssl
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import InvalidWebhookSignatureError

from nightmill.core.batch import Event
from nightmill.core.clocks import Clocks
from nightmill.core.webhook import SENT_EVENT_TYPES, DeliveryState, WebhookEndpoint
from nightmill.core.webhook_url import RefusedUrlError
from nightmill.ids import WorkerId
from nightmill.roles.courier import Courier
from nightmill.settings import WebhookSettings
from nightmill.store import open_store
from nightmill.telemetry import WebhookAttempted
from nightmill.webhooks.sender import WebhookSender, addresses_of
from tests.roles.conftest import PROJECT, Mill, request_lines
from tests.webhook_receiver import CLOSE, ENDLESS, HANG, REDIRECT, receiving

SECRET = "whsec_bmV3"
CERTIFICATES = Path(__file__).resolve().parents[1] / "upstream/certificates"
OPEN = WebhookSettings(allow_private=("127.0.0.1/32",), allow_http=True)


@pytest.fixture
def receiver():
    with receiving() as running:
        yield running


class Clock:
    """Moves only when a test steps it."""

    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


class Post:
    """The couriers of a test over one store."""

    def __init__(self, mill: Mill):
        self.mill = mill
        self.store = mill.store
        self.clock = Clock()
        self.store = open_store(mill.settings.store_url, clock=self.clock)
        self.couriers = []

    def courier(self, name="courier_1", *, settings=OPEN, resolve=addresses_of, tls=None):
        made = Courier(
            store=self.store,
            sender=WebhookSender(settings, resolve=resolve, tls=tls, monotonic=time.monotonic),
            settings=settings,
            worker_id=WorkerId(name),
            notifier=self.mill.notifier,
            emit=self.mill.events.append,
            clocks=Clocks(wall=self.clock, monotonic=time.monotonic, random=lambda: 0.5),
        )
        self.couriers.append(made)
        return made

    async def endpoint(self, url, number=1, **fields):
        now = int(self.clock())
        given = {
            "id": f"whe_{number}",
            "project_id": PROJECT,
            "name": "n",
            "url": url,
            "event_types": SENT_EVENT_TYPES,
            "created_at": now,
            "updated_at": now,
            "signing_secret": SECRET,
        }
        await self.store.webhook_endpoints.add(WebhookEndpoint(**given | fields), most=100)

    async def ended_batch(self):
        batch = await self.mill.batch_of(request_lines(1))
        after = batch.after(Event.REJECTED, now=self.clock())
        assert await self.store.batches.move(after, expected=batch.status)
        return after

    async def deliver(self, courier=None):
        """One turn, with all its attempts."""
        courier = courier or self.couriers[0]
        await courier.turn()
        while courier._in_flight:
            await asyncio.wait(courier._in_flight)

    async def deliveries(self, endpoint_id="whe_1"):
        return (await self.store.webhook_deliveries.list(endpoint_id, limit=100)).items

    async def delivery(self, endpoint_id="whe_1"):
        (one,) = await self.deliveries(endpoint_id)
        return one


@pytest.fixture
async def post(folder_mill: Mill):
    made = Post(folder_mill)
    yield made
    for courier in made.couriers:
        await courier.drain(grace_s=0)
    await made.store.close()


async def test_the_official_package_accepts_what_is_delivered(post, receiver):
    await post.endpoint(f"{receiver.url}/hook?token=x")
    batch = await post.ended_batch()
    post.courier()
    await post.deliver()
    (got,) = receiver.received
    event = got.unwrapped(SECRET)
    assert (event.type, event.data.id, event.created_at) == ("batch.failed", batch.id, batch.failed_at)
    assert event.id.startswith("evt_")
    delivery = await post.delivery()
    assert got.path == "/hook?token=x"
    assert got.headers["webhook-id"] == delivery.id
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"].startswith("nightmill/")
    assert set(got.headers) == {
        *("host", "content-type", "content-length", "user-agent", "connection"),
        *("webhook-id", "webhook-timestamp", "webhook-signature"),
    } - ({"connection"} - set(got.headers))
    assert (delivery.state, delivery.attempts[0].status_code) == (DeliveryState.DELIVERED, 200)
    with pytest.raises(InvalidWebhookSignatureError):
        got.unwrapped("whsec_b3RoZXI=")


@pytest.mark.parametrize(
    ("order", "status", "error"),
    [
        (500, 500, None),
        (404, 404, None),
        (418, 418, None),
        (REDIRECT, 302, None),
        (CLOSE, None, "the connection was closed before an answer came"),
        (HANG, None, "no answer within 0.3 s"),
    ],
)
async def test_an_attempt_that_fails_is_repeated_with_the_same_id_and_a_new_time(
    post, receiver, order, status, error
):
    await post.endpoint(f"{receiver.url}/hook")
    await post.ended_batch()
    post.courier(settings=OPEN.model_copy(update={"timeout_s": 0.3 if order == HANG else 15.0}))
    receiver.orders = [order]
    await post.deliver()
    waiting = await post.delivery()
    assert (waiting.state, waiting.attempt_count) == (DeliveryState.PENDING, 1)
    assert (waiting.attempts[0].status_code, waiting.attempts[0].error) == (status, error)
    await post.deliver()
    assert len(receiver.received) == 1, "the pause is kept"
    post.clock.now += 6
    await post.deliver()
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(second.headers["webhook-timestamp"]) >= int(first.headers["webhook-timestamp"]) + 5
    assert {one.path for one in receiver.received} == {"/hook"}, "a redirect is not followed"
    assert first.body == second.body
    assert second.unwrapped(SECRET)
    assert (await post.delivery()).state is DeliveryState.DELIVERED


async def test_a_receiver_that_is_away_is_attempted_again(post):
    with receiving() as away:
        url = f"{away.url}/hook"
    await post.endpoint(url)
    await post.ended_batch()
    post.courier()
    await post.deliver()
    (attempt,) = (await post.delivery()).attempts
    assert attempt.error == "no connection (Connection refused)"


async def test_an_answer_without_end_is_not_read(post, receiver):
    await post.endpoint(f"{receiver.url}/hook")
    await post.ended_batch()
    post.courier()
    receiver.orders = [ENDLESS]
    await post.deliver()
    assert (await post.delivery()).state is DeliveryState.DELIVERED


async def test_a_receiver_that_always_fails_is_given_up_after_72_hours(post, receiver):
    await post.endpoint(f"{receiver.url}/hook")
    await post.ended_batch()
    post.courier()
    receiver.usual = 500
    began = post.clock.now
    while (one := await post.delivery()).state is DeliveryState.PENDING:
        post.clock.now = max(post.clock.now, one.next_at)
        await post.deliver()
    assert (await post.delivery()).state is DeliveryState.FAILED
    assert post.clock.now - began == pytest.approx(72 * 3_600, abs=2)
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
    assert 20 < len(receiver.received) < 60


async def test_both_secrets_sign_for_a_day_after_a_rotation_that_keeps_the_old_one(post, receiver):
    await post.endpoint(f"{receiver.url}/hook")
    post.courier()
    await post.store.webhook_endpoints.rotate(PROJECT, "whe_1", "whsec_dHdv", keeps_old=True)
    await post.ended_batch()
    await post.deliver()
    (both,) = receiver.received
    assert len(both.headers["webhook-signature"].split(" ")) == 2
    assert both.unwrapped(SECRET).id == both.unwrapped("whsec_dHdv").id
    post.clock.now += 86_401
    await post.ended_batch()
    await post.deliver()
    new = receiver.received[-1]
    assert len(new.headers["webhook-signature"].split(" ")) == 1


async def test_two_couriers_never_send_a_delivery_at_the_same_time(post, receiver):
    await post.endpoint(f"{receiver.url}/hook")
    for _ in range(12):
        await post.ended_batch()
    receiver.usual = 500
    couriers = [post.courier(f"courier_{number}") for number in range(3)]
    for _ in range(6):
        await asyncio.gather(*(post.deliver(courier) for courier in couriers for _ in range(2)))
        post.clock.now += 400
    assert set(receiver.most_in_flight.values()) == {1}
    counts = [one.attempt_count for one in await post.deliveries()]
    assert sum(counts) == len(receiver.received)


async def test_a_slow_endpoint_holds_up_no_other(post, receiver):
    await post.endpoint(f"{receiver.url}/slow", 1)
    await post.endpoint(f"{receiver.url}/quick", 2)
    for _ in range(6):
        await post.ended_batch()
    settings = OPEN.model_copy(update={"per_endpoint": 2, "concurrency": 4})
    courier = post.courier(settings=settings)

    def arrived(path):
        return sum(one.path == path for one in receiver.received)

    async with asyncio.timeout(60):
        while arrived("/quick") < 6:
            await courier.turn()
            await asyncio.sleep(0.005)
    assert arrived("/slow") == 2
    receiver.let_go.set()


async def test_a_draining_courier_finishes_its_attempts(post, receiver):
    await post.endpoint(f"{receiver.url}/hook")
    await post.ended_batch()
    courier = post.courier()
    await courier.turn()
    await courier.drain(grace_s=60)
    assert (await post.delivery()).state is DeliveryState.DELIVERED


async def test_a_deleted_endpoint_gets_nothing_more(post, receiver):
    await post.endpoint(f"{receiver.url}/hook")
    await post.ended_batch()
    await post.store.webhook_endpoints.delete(PROJECT, "whe_1")
    post.courier()
    await post.deliver()
    assert receiver.received == []


async def test_the_events_name_the_server_but_not_the_path_of_the_url(post, receiver):
    await post.endpoint(f"{receiver.url}/T0KEN?key=T0KEN")
    await post.ended_batch()
    post.courier()
    receiver.orders = [503]
    await post.deliver()
    (seen,) = [event for event in post.mill.events if isinstance(event, WebhookAttempted)]
    assert (seen.place, seen.state, seen.reason) == (receiver.url, "pending", "it answers 503")
    assert "T0KEN" not in repr(post.mill.events)
    assert SECRET not in repr(post.mill.events)


# --- where nothing is sent -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "017700000001",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ],
)
async def test_no_way_to_write_this_machine_reaches_it(post, receiver, host):
    await post.endpoint(f"http://{host}:{receiver.port}/hook")
    await post.ended_batch()
    post.courier(settings=WebhookSettings(allow_http=True))
    await post.deliver()
    assert receiver.received == []
    (attempt,) = (await post.delivery()).attempts
    assert "the URL is refused" in attempt.error


async def test_a_name_that_changes_its_address_is_checked_at_every_connection(post, receiver):
    """Public at the first look-up, loopback at the second: the connection goes nowhere."""
    answers = [["1.1.1.1"], ["127.0.0.1"]]
    sender = WebhookSender(
        WebhookSettings(allow_http=True),
        resolve=lambda _host, _port: answers.pop(0),
        monotonic=time.monotonic,
    )
    await sender.check(f"http://rebind.example:{receiver.port}/")
    attempt = await sender.post(f"http://rebind.example:{receiver.port}/", "{}", {}, now=0)
    assert "resolves to 127.0.0.1, which is a loopback address" in attempt.error
    assert receiver.received == []
    sender.close()


async def test_the_connection_goes_to_the_address_that_was_checked(post, receiver):
    """The name is looked up once for an attempt, and another answer afterwards changes nothing."""
    asked = []

    def resolve(host, port):
        asked.append((host, port))
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    sender = WebhookSender(OPEN, resolve=resolve, monotonic=time.monotonic)
    attempt = await sender.post(f"http://hook.example:{receiver.port}/", "{}", {}, now=0)
    assert attempt.status_code == 200
    assert asked == [("hook.example", receiver.port)]
    assert receiver.received[0].headers["host"] == f"hook.example:{receiver.port}"
    sender.close()


async def test_one_private_address_among_public_ones_is_refused(post):
    sender = WebhookSender(
        WebhookSettings(), resolve=lambda *_: ["1.1.1.1", "10.0.0.1"], monotonic=time.monotonic
    )
    attempt = await sender.post("https://hook.example/", "{}", {}, now=0)
    assert "resolves to 10.0.0.1" in attempt.error
    sender.close()


async def test_proxies_and_passwords_of_the_environment_are_not_used(post, receiver, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password S3CRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    await post.endpoint(f"{receiver.url}/hook")
    await post.ended_batch()
    post.courier()
    await post.deliver()
    (got,) = receiver.received
    assert got.path == "/hook"
    assert "authorization" not in got.headers


@given(st.text(), st.sampled_from(["", "https://", "http://", "https://a@", "https://[", "http://h.example"]))
def test_no_text_of_a_url_raises_anything_but_a_reason(text, start):
    sender = WebhookSender(
        WebhookSettings(allow_http=True), resolve=lambda *_: ["10.0.0.1"], monotonic=time.monotonic
    )
    with pytest.raises(RefusedUrlError):
        asyncio.run(sender.check(start + text))
    attempt = asyncio.run(sender.post(start + text, "{}", {}, now=0))
    assert "the URL is refused" in attempt.error
    sender.close()


@pytest.mark.parametrize(
    ("certificate", "host", "status", "error"),
    [
        ("localhost", "localhost", 200, None),
        ("localhost", "hook.example", None, "its TLS certificate is not valid for the host"),
        ("elsewhere", "localhost", None, "its TLS certificate is not valid for the host"),
        ("expired", "localhost", None, "its TLS certificate is not valid for the host"),
    ],
)
async def test_the_certificate_must_be_of_the_host_of_the_url(post, certificate, host, status, error):
    """Although the connection goes to an address, not to the name."""
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(CERTIFICATES / f"{certificate}.pem")
    with receiving(of_server) as receiver:
        sender = WebhookSender(
            OPEN,
            resolve=lambda *_: ["127.0.0.1"],
            tls=ssl.create_default_context(cafile=CERTIFICATES / "authority.pem"),
            monotonic=time.monotonic,
        )
        attempt = await sender.post(f"https://{host}:{receiver.port}/", "{}", {}, now=0)
        sender.close()
    assert (attempt.status_code, attempt.error) == (status, error)
    assert len(receiver.received) == (0 if status is None else 1)
