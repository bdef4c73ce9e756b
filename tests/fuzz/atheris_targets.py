"""Coverage-guided fuzzing of one target: `python -m tests.fuzz.atheris_targets form -max_total_time=60`.

`make fuzz` runs each target for a while, in a separate environment. libFuzzer writes a failing input to a
file; give the name of the file as an argument to reproduce the failure.
"""

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris  # imported here only, because atheris is not a dependency of the tests

    with atheris.instrument_imports(include=["nightmill", "multipart"]):
        from tests.fuzz.targets import TARGETS, seeds

    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds()[name]):
            (Path(corpus) / str(number)).write_bytes(seed)
        given = [word for word in sys.argv[1:] if not word.startswith("-")]
        atheris.Setup([*sys.argv, *([] if given else [corpus])], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
