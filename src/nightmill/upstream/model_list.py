"""The models that an upstream lists at `/v1/models`."""

from typing import cast

import msgspec

MOST_MODELS = 10_000
"""Of one list; further ones are not read."""


class ListedModel(msgspec.Struct, frozen=True):
    """One entry of a list, without fields that OpenAI does not publish.

    Args:
        id: the name of the model.
        created: Unix seconds; 0 where the upstream gives none.
        owner: empty where the upstream gives none.
    """

    id: str
    created: int = 0
    owner: str = ""


def parse_models(answer: bytes) -> list[ListedModel] | None:
    """The models of an upstream's response that have an id; None when the response is no list of models."""
    try:
        parsed: object = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    entries = cast("dict[str, object]", parsed).get("data") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        return None
    listing: list[ListedModel] = []
    for entry in cast("list[object]", entries)[:MOST_MODELS]:
        if not isinstance(entry, dict):
            continue
        fields = cast("dict[str, object]", entry)
        name, created, owner = fields.get("id"), fields.get("created"), fields.get("owned_by")
        if isinstance(name, str) and name:
            is_time = type(created) is int and 0 <= created < 1 << 31
            listing.append(
                ListedModel(
                    name, cast("int", created) if is_time else 0, owner if isinstance(owner, str) else ""
                )
            )
    return listing
