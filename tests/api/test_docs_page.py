import re
from urllib.parse import urljoin

import pytest

from nightmill.api.docs_page import VERSION

ADDRESS = re.compile(rb'(?:src=|href=|show\()"([^"]+)"')


@pytest.fixture
def server(serve):
    """A server with a key, where requests without a key get public paths only."""
    server = serve()
    server.new_key("default")
    return server


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_the_page_and_all_that_it_loads_come_from_this_server_without_a_key(server, path):
    page = server.send("GET", path)
    assert page.status == 200
    base = urljoin(path, "../" if path.endswith("/") else "")
    loaded = {
        urljoin(base, address.decode())
        for address in ADDRESS.findall(page.body)
        if address not in {b"data:,", b"../"}
    }
    assert loaded == {
        "/openapi.json",
        "/nightmill/openapi.json",
        f"/docs/swagger-ui.css?{VERSION}",
        f"/docs/swagger-ui-bundle.js?{VERSION}",
    }
    assert {address: server.send("GET", address).status for address in loaded} == dict.fromkeys(loaded, 200)


def test_the_page_names_no_other_server(server):
    assert b"//" not in server.send("GET", "/docs").body
    assert b"validatorUrl: null" in server.send("GET", "/docs").body


def test_the_page_works_behind_a_path_prefix(server):
    addresses = ADDRESS.findall(server.send("GET", "/docs").body)
    assert addresses
    assert [address for address in addresses if address.startswith(b"/")] == []


def test_requests_of_the_page_go_to_addresses_beside_it(server):
    page = server.send("GET", "/docs").body
    assert b"new URL(base, document.baseURI)" in page
    bases = [base.decode() for base in re.findall(rb'show\("[^"]+", "([^"]+)"', page)]
    assert [urljoin("http://a/batch/docs", base) for base in bases] == [
        "http://a/batch/v1",
        "http://a/batch/",
    ]


def test_the_files_have_a_media_type_that_browsers_accept_and_are_kept(server):
    style = server.send("GET", "/docs/swagger-ui.css")
    script = server.send("GET", "/docs/swagger-ui-bundle.js")
    assert style.headers["content-type"] == "text/css; charset=utf-8"
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in style.headers["cache-control"]
    assert server.send("HEAD", "/docs/swagger-ui-bundle.js").body == b""


def test_the_files_are_of_the_stated_version(server):
    script = server.send("GET", "/docs/swagger-ui-bundle.js").body
    assert f'"{VERSION}"'.encode() in script
