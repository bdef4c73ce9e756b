"""Sends log lines to standard error, with time and level."""

import logging


def start_logs(level: str) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    logging.getLogger("nightmill").setLevel(level.upper())
