"""Texts for the `format` of a JSON Schema, recognisable as made up: example domains, test networks."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from nightmill.emulator.content import WORDS


def format_sample(name: str, random: Random) -> str | None:
    """A text of the format; None if the format is not known."""
    make = _MAKERS.get(name)
    return None if make is None else make(random)


def _date(random: Random) -> str:
    return f"2026-{random.randint(1, 12):02}-{random.randint(1, 28):02}"


def _time(random: Random) -> str:
    return f"{random.randint(0, 23):02}:{random.randint(0, 59):02}:{random.randint(0, 59):02}Z"


def _date_time(random: Random) -> str:
    return f"{_date(random)}T{_time(random)}"


def _host(random: Random) -> str:
    return f"{random.choice(WORDS)}.example.com"


def _email(random: Random) -> str:
    return f"emulated.{random.choice(WORDS)}@example.com"


def _uri(random: Random) -> str:
    return f"https://{_host(random)}/emulated/{random.choice(WORDS)}"


def _uuid(random: Random) -> str:
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _ipv4(random: Random) -> str:
    return f"192.0.2.{random.randint(1, 254)}"


def _ipv6(random: Random) -> str:
    return f"2001:db8::{random.randint(1, 0xFFFF):x}"


def _duration(random: Random) -> str:
    return f"PT{random.randint(1, 59)}M"


def _pointer(random: Random) -> str:
    return f"/{random.choice(WORDS)}"


def _relative_pointer(random: Random) -> str:
    return f"0/{random.choice(WORDS)}"


def _word(random: Random) -> str:
    return random.choice(WORDS)


def _template(random: Random) -> str:
    return f"{_uri(random)}/{{id}}"


def _base64(random: Random) -> str:
    return random.choice(("ZW11bGF0ZWQ=", "bWFkZSB1cA=="))


_MAKERS: Final[Mapping[str, Callable[[Random], str]]] = {
    "date": _date,
    "time": _time,
    "date-time": _date_time,
    "datetime": _date_time,
    "duration": _duration,
    "email": _email,
    "idn-email": _email,
    "hostname": _host,
    "idn-hostname": _host,
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "uri": _uri,
    "url": _uri,
    "iri": _uri,
    "uri-reference": _uri,
    "iri-reference": _uri,
    "uri-template": _template,
    "uuid": _uuid,
    "json-pointer": _pointer,
    "relative-json-pointer": _relative_pointer,
    "regex": _word,
    "byte": _base64,
}
