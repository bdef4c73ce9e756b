"""A person at a browser without scripts: cookies, forms with their token, and nothing else."""

import html
import http.client
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

_TOKEN = re.compile(r'data-csrf="([0-9a-f]*)"')
_BROWSER = {"Accept": "text/html,*/*", "Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def text(self) -> str:
        return html.unescape(self.body.decode())

    @property
    def raw(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for given, value in self.headers if given.lower() == name.lower()), None)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies that are set, with their attributes."""
        set_ = [value for name, value in self.headers if name.lower() == "set-cookie"]
        return {value.partition("=")[0]: value.partition("=")[2] for value in set_}


@dataclass
class Person:
    """Follows no redirect; `cookies` are sent with every request."""

    url: str
    cookies: dict[str, str] = field(default_factory=dict[str, str])
    csrf: str = ""

    def get(self, path: str, headers: Mapping[str, str | None] | None = None) -> Reply:
        reply = self.send("GET", path, headers=headers)
        if found := _TOKEN.search(reply.body.decode("utf-8", "replace")):
            self.csrf = found[1]
        return reply

    def post(
        self,
        path: str,
        fields: Mapping[str, str | list[str]] | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Reply:
        """An ordinary form; the token is that of the page loaded last, unless `fields` has another."""
        body = urlencode({"csrf": self.csrf, **(fields or {})}, doseq=True).encode()
        form = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        return self.send("POST", path, body, form)

    def sign_in(self, key: str, following: str = "") -> Reply:
        reply = self.post("/ui/sign-in", {"key": key, "next": following})
        self.get("/ui/webhooks")
        return reply

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Reply:
        cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        sent = {**_BROWSER, **(cookies if self.cookies else {}), **(headers or {})}
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
        try:
            connection.request(method, path, body, {name: it for name, it in sent.items() if it is not None})
            response = connection.getresponse()
            reply = Reply(response.status, response.getheaders(), response.read())
        finally:
            connection.close()
        for name, value in reply.cookies.items():
            self.cookies[name] = value.partition(";")[0].strip('"')
            if not self.cookies[name]:
                del self.cookies[name]
        return reply
