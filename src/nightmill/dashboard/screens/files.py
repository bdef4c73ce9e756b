"""The screens "Files" and "File": what is stored, who uses it, and its lines page by page."""

from typing import Any, Final, cast
from urllib.parse import quote, urlencode

from starlette.responses import Response

from nightmill.core.file import NOT_DOWNLOADABLE, OF_LINES, Purpose
from nightmill.core.result_filter import ordinal_of
from nightmill.core.words import with_short_ids
from nightmill.dashboard.calls import path_of
from nightmill.dashboard.navigation import FILES
from nightmill.dashboard.pages import Screen, error_page
from nightmill.dashboard.shown_text import pretty_cut, shown, shown_cut
from nightmill.dashboard.visit import Visit, action, screen

_PER_PAGE: Final = 50
_LINE_BYTES: Final = 4 << 10
_WHOLE_LINE_BYTES: Final = 1 << 20
_PREVIEW: Final = 160
_LONGEST_NAME: Final = 120
_PLACES: Final = ("offset", "before", "line")
HIDDEN: Final = "Prompts and answers are hidden: the server's setting dashboard.content is false."


async def show_files(visit: Visit) -> Screen:
    purpose = visit.query("purpose")
    query = {"purpose": purpose, "after": visit.query("after"), "limit": _PER_PAGE}
    found = await visit.api.get("/nightmill/v1/files", query)
    following = {"purpose": purpose or "", "after": found["last_id"] or ""}
    return Screen(
        template="files.html",
        title="Files",
        document={
            "files": [_named(file) for file in found["data"]],
            "purpose": purpose,
            "purposes": [it.value for it in Purpose],
            "is_first_page": query["after"] is None,
            "next": _with("ui/files", following) if found["has_more"] else None,
        },
    )


async def find_file(visit: Visit) -> Response:
    """Opens a file by its id."""
    file = await visit.api.get(path_of("nightmill", "v1", "files", visit.query("id") or "-"))
    return visit.redirect(f"ui/files/{quote(file['id'], safe='')}")


async def show_file(visit: Visit) -> Screen:
    file_id = visit.path("file_id")
    file = await visit.api.get(path_of("nightmill", "v1", "files", file_id))
    has_lines = file["purpose"] in OF_LINES
    is_whole = visit.query("whole") is not None
    lines = None
    if has_lines and visit.shows_content:
        place = {name: visit.query(name) for name in _PLACES}
        size = {"limit": 1, "max_bytes": _WHOLE_LINE_BYTES} if is_whole else {"limit": _PER_PAGE}
        page = await visit.api.get(path_of("nightmill", "v1", "files", file_id, "lines"), {**place, **size})
        lines = _page(file, page, is_whole=is_whole)
    named = _named(file)
    return Screen(
        template="file.html",
        title=named["name"],
        document={
            "file": named,
            "has_lines": has_lines,
            "is_downloadable": file["purpose"] not in NOT_DOWNLOADABLE,
            "is_whole": is_whole,
            "lines": lines,
        },
    )


async def download(visit: Visit) -> Response:
    """The bytes of a file, as the API gives them."""
    if not visit.shows_content:
        return error_page(visit.request, HIDDEN, status=403)
    forwarded = visit.api.forward(path_of("v1", "files", visit.path("file_id"), "content"))
    return cast("Response", forwarded)


async def ask_delete(visit: Visit) -> Screen:
    file = await visit.api.get(path_of("nightmill", "v1", "files", visit.path("file_id")))
    return Screen(template="file_delete.html", title="Delete a file", document={"file": _named(file)})


async def delete(visit: Visit) -> Response:
    await visit.api.delete(path_of("v1", "files", visit.path("file_id")))
    return visit.redirect("ui/files", notice="The file is deleted.")


def _named(file: dict[str, Any]) -> dict[str, Any]:
    """A file with a name that is short and has no hidden characters."""
    name = shown_cut(with_short_ids(file["filename"]), _LONGEST_NAME)[0] or file["id"]
    return {**file, "filename": shown(file["filename"]), "name": name}


def _page(file: dict[str, Any], page: dict[str, Any], *, is_whole: bool) -> dict[str, Any]:
    """A page of lines with the addresses around it."""
    path = f"ui/files/{quote(file['id'], safe='')}"
    return {
        "rows": [_row(file, line, path, is_whole=is_whole) for line in page["data"]],
        "first": path if page["start"] else None,
        "previous": _with(path, {"before": page["start"]}) if page["start"] else None,
        "next": _with(path, {"offset": page["end"]}) if page["has_more"] else None,
        "last": _with(path, {"before": page["size_bytes"]}) if page["has_more"] else None,
        "around": _with(path, {"offset": page["start"]}),
        "share": page["start"] / page["size_bytes"] if page["size_bytes"] else 0.0,
    }


def _row(file: dict[str, Any], line: dict[str, Any], path: str, *, is_whole: bool) -> dict[str, Any]:
    text = line["text"]
    laid_out, is_cut = (shown(text), True) if line["is_cut"] else pretty_cut(text)
    return {
        "line": line["line"],
        "offset": line["offset"],
        "custom_id": None if line["custom_id"] is None else shown_cut(line["custom_id"], _LONGEST_NAME)[0],
        "preview": shown(text[:_PREVIEW]),
        "text": laid_out,
        "size_bytes": line["size_bytes"],
        "is_cut": is_cut,
        "whole": None if is_whole else _with(path, {"offset": line["offset"], "whole": 1}),
        "page": _page_of_line(file, line),
    }


def _page_of_line(file: dict[str, Any], line: dict[str, Any]) -> str | None:
    """The screen of a line, if a batch has read or written the file."""
    if not file["batches"]:
        return None
    use = file["batches"][0]
    path = f"ui/batches/{quote(use['id'], safe='')}/lines"
    if use["as"] == "input":
        return None if line["line"] is None or not line["text"].strip() else f"{path}/{line['line']}"
    try:
        return _with(path, {"ordinal": ordinal_of(line["text"].encode())})
    except ValueError:
        return None


def _with(path: str, query: dict[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value != ""}
    return f"{path}?{urlencode(given)}" if given else path


routes = (
    screen("/ui/files", show_files, area=FILES),
    action("/ui/files/find", find_file, methods=("GET",)),
    screen("/ui/files/{file_id}", show_file, area=FILES),
    action("/ui/files/{file_id}/download", download, methods=("GET",)),
    screen("/ui/files/{file_id}/delete", ask_delete, area=FILES),
    action("/ui/files/{file_id}/delete", delete),
)
