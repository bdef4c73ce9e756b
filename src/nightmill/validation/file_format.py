"""Names the format of a file that is not JSON Lines in UTF-8, from its first bytes."""

LONGEST_SIGNATURE_BYTES = 16

_ZIP = b"PK\x03\x04"
_OFFICE_PARTS = (b"[Content_Types].xml", b"xl/")
_BINARY = (
    (b"\x1f\x8b", "gzip data"),
    (_ZIP, "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1\x00\x00", "an Arrow file"),
    (b"Obj\x01", "an Avro file"),
    (b"SQLite format 3\x00", "a SQLite database"),
    (b"%PDF-", "a PDF document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document, such as .xls"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"GGUF\x03\x00", "a GGUF model file"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32 text"),
    (b"\x00\x00\xfe\xff", "UTF-32 text"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)
_NULS = {
    (True, True, True, False): "UTF-32 text",
    (False, True, True, True): "UTF-32 text",
    (True, False, True, False): "UTF-16 text",
    (False, True, False, True): "UTF-16 text",
}
"""JSON begins with ASCII characters, so the zeros of the first four bytes show the encoding (RFC 4627, 3)."""


def binary_format(beginning: bytes) -> str | None:
    """The name of a compressed or binary format, or None."""
    if beginning.startswith(_ZIP) and any(part in beginning for part in _OFFICE_PARTS):
        return "an Office document, such as .xlsx"
    return next((name for signature, name in _BINARY if beginning.startswith(signature)), None)


def other_encoding(beginning: bytes) -> str | None:
    """The name of a Unicode encoding other than UTF-8, with or without a byte order mark, or None."""
    for mark, name in _BYTE_ORDER_MARKS:
        if beginning.startswith(mark):
            return name
    zeros = [byte == 0 for byte in beginning[:4]]
    return _NULS.get((zeros[0], zeros[1], zeros[2], zeros[3])) if len(zeros) == 4 else None
