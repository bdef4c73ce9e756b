"""How batches are put into words: counts, failures, durations and short ids, the same in every command.

A line of a batch is done when it is either ok (a 2xx answer) or failed; the others are left. Everything here
is pure. Reading failures belongs to `failures`, tables and stderr to the commands.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

SHORT_ID_LENGTH: Final = 8
_PREFIX: Final = "batch_"
_BATCH_ID: Final = re.compile(r"(batch_[0-9a-f]{8})[0-9a-f]{24}")
_FULL_ID_LENGTH: Final = len(_PREFIX) + 32
_LONGEST_MESSAGE: Final = 120
_MOST_GROUPS: Final = 3
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed lines of one kind.

    Args:
        count: how many lines.
        code: their HTTP status, or the code of lines without an answer, such as `batch_expired`.
        message: the message of one of them; empty where there is none.
    """

    count: int
    code: str
    message: str = ""


def counts_text(total: int, ok: int, failed: int) -> str:
    """`280 of 300 done (260 ok, 20 failed)`; without brackets while no line is done."""
    done = ok + failed
    text = f"{done:,} of {total:,} done"
    return f"{text} ({ok:,} ok, {failed:,} failed)" if done else text


def final_counts_text(total: int, ok: int, failed: int) -> str:
    """`counts_text` of a batch that has ended, with the lines that it leaves: `, 20 left`."""
    left = total - ok - failed
    text = counts_text(total, ok, failed)
    return f"{text}, {left:,} left" if left > 0 else text


def failures_text(groups: Sequence[FailureGroup], failed: int | None = None) -> str:
    """`20 failed: 20x 404 "The model nope does not exist."`; empty if no line failed.

    Args:
        groups: the most frequent first.
        failed: how many lines failed, where the groups are of the first of them only.
    """
    read = sum(group.count for group in groups)
    failed = max(read, failed or 0)
    if not failed:
        return ""
    text = f"{failed:,} failed"
    if not groups:
        return text
    of_read = f"; of the first {read:,}" if read < failed else ""
    return f"{text}{of_read}: {kinds_text(groups)}"


def kinds_text(groups: Sequence[FailureGroup]) -> str:
    """`20x 404 "The model nope does not exist."`, the most frequent kinds of several."""
    kinds = [_kind_text(group) for group in groups[:_MOST_GROUPS]]
    if len(groups) > _MOST_GROUPS:
        rest = groups[_MOST_GROUPS:]
        kinds.append(f"{sum(group.count for group in rest):,}x of {len(rest):,} other kinds")
    return ", ".join(kinds)


def _kind_text(group: FailureGroup) -> str:
    message = clean(group.message)
    return f"{group.count:,}x {clean(group.code)}" + (
        f' "{cut(message, _LONGEST_MESSAGE)}"' if message else ""
    )


def with_short_ids(text: str) -> str:
    """The text with the ids of batches cut: `batch_3f2a9c1b…_output.jsonl`."""
    return _BATCH_ID.sub(r"\1…", text)


def short_id(batch_id: str) -> str:
    """The beginning of a batch id that every command takes: `batch_3f2a9c1b...` is `3f2a9c1b`.

    The id of another server stays whole: other servers do not all make ids of random digits.
    """
    if len(batch_id) != _FULL_ID_LENGTH or not batch_id.startswith(_PREFIX):
        return batch_id
    return batch_id[len(_PREFIX) :][:SHORT_ID_LENGTH]


def clock(seconds: float) -> str:
    """`0:05`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """A duration of one unit: `12 s`, `5 min`, `3 h`, `4 d`."""
    if seconds < _MINUTE_S:
        return f"{max(0, int(seconds))} s"
    if seconds < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)} min"
    if seconds < 2 * _DAY_S:
        return f"{int(seconds // _HOUR_S)} h"
    return f"{int(seconds // _DAY_S)} d"


def moment(unix_s: float, wall: float) -> str:
    """The local time, with the day if it is not within 12 hours."""
    is_near = abs(unix_s - wall) < 12 * 3600
    found = datetime.fromtimestamp(unix_s).astimezone()
    return found.strftime("%H:%M:%S" if is_near else "%Y-%m-%d %H:%M")


def cut(text: str, most: int) -> str:
    """The text, with an ellipsis in place of what is beyond `most` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def clean(text: str) -> str:
    """The text on one line and without control characters."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
