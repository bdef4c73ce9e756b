"""Any damage to parts and line indexes is found and repaired, and each line is answered once."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

picks = st.integers(0, 10_000)
harms = st.one_of(
    st.tuples(st.just("cut"), picks, picks),
    st.tuples(st.just("flip"), picks, picks),
    st.tuples(st.just("remove"), picks, st.just(0)),
    st.tuples(st.just("grow"), picks, picks),
    st.tuples(st.just("zero"), picks, picks),
)


def harm(path: Path, kind: str, offset: int) -> None:
    text = bytearray(path.read_bytes())
    match kind:
        case "remove":
            path.unlink()
        case "cut":
            os.truncate(path, offset % (len(text) + 1))
        case "grow":
            path.write_bytes(bytes(text) + os.urandom(offset % 200))
        case _ if text:
            start = offset % len(text)
            text[start : start + 16] = bytes(16) if kind == "zero" else [text[start] ^ 0x55]
            path.write_bytes(text)


@given(damage=st.lists(harms, min_size=1, max_size=6))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_damage_to_parts_and_line_indexes_is_repaired(data, damage):
    before = data.path
    with tempfile.TemporaryDirectory() as target_folder:
        folder = type(data)(Path(target_folder) / "data")
        shutil.copytree(before, folder.path)
        targets = [*folder.parts(), *sorted((folder.blobs / "lines").glob("*/*"))]
        for kind, pick, offset in damage:
            target = targets[pick % len(targets)]
            if target.exists():
                harm(target, kind, offset)

        assert folder.repair().left == ()
        folder.run_to_successful_end()
