"""Coverage-guided fuzzing of one target: `python -m tests.fuzz.atheris_targets form -max_total_time=60`.

`make fuzz` runs each target for a while, in an environment of its own. What breaks a promise is kept in a
file that libFuzzer names; give its name as an argument to see it again.
"""

import sys
import tempfile
from pathlib import Path


def main() -> None:
    import atheris  # only here: it is no dependency of the tests

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
