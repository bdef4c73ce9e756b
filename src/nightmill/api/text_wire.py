"""Stored lines in JSON documents: text that may be long, and that need not be UTF-8."""

import codecs
from typing import Any


def text_on_wire(text: bytes, *, size_bytes: int, most_bytes: int) -> dict[str, Any]:
    """`text` (bytes that are not UTF-8 are replaced), `size_bytes` of the whole, and whether it is cut.

    Args:
        text: the whole, or its beginning.
    """
    kept = text[:most_bytes]
    is_cut = len(kept) < size_bytes
    # A letter that the cut divides is left out, not replaced.
    decoded = codecs.getincrementaldecoder("utf-8")("replace").decode(kept, not is_cut)
    return {"text": decoded, "size_bytes": size_bytes, "is_cut": is_cut}
