"""A batch from Python, without a server of nightmill's own: the upstream is asked directly.

python examples/python_run.py http://localhost:11434/v1
"""

import sys

import nightmill


def main() -> None:
    upstream = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:11434/v1"
    nightmill.run("examples/embeddings.jsonl", upstream=upstream)


if __name__ == "__main__":
    main()
