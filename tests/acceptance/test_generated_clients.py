"""Python clients by openapi-generator, from the published OpenAPI description and from the served one.

The generated models raise on an answer of another type or without a required key. Pydantic ignores keys that
are not published; these tests look for them.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.acceptance.conftest import CHAT, TERMINAL, until

pytestmark = pytest.mark.slow

PUBLISHED = Path(__file__).parents[3] / "shared" / "contract" / "openai-batch.openapi.yaml"
GENERATOR = Path(sys.executable).with_name("openapi-generator-cli")
NEEDED = ("dateutil", "urllib3")
"""What a generated client imports beside pydantic."""


@pytest.fixture(scope="module", params=["published", "served"])
def generated(request, server, tmp_path_factory) -> Iterator[ModuleType]:
    """The package of a newly generated client, importable until the tests of the module have ended."""
    for name in NEEDED:
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "published":
        if not PUBLISHED.exists():
            pytest.skip(f"the published description is not at {PUBLISHED}")
        source = PUBLISHED
    else:
        source = folder / "openapi.json"
        source.write_bytes(server.send("GET", "/openapi.json").body)
    package = f"{request.param}_client"
    only = "apis,models,supportingFiles,apiDocs=false,apiTests=false,modelDocs=false,modelTests=false"
    command = [GENERATOR, "generate", "-g", "python", "-i", source, "-o", folder / "client"]
    subprocess.run(
        [*command, "--package-name", package, "--global-property", only],
        check=True,
        capture_output=True,
        timeout=100,
        env={"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -Xshare:auto", "PATH": "/usr/bin:/bin"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "client")
        yield importlib.import_module(package)
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


@pytest.fixture
def batches(generated, server) -> Iterator[Any]:
    configuration = generated.Configuration(host=f"{server.url}/v1", access_token="sk-none")
    with generated.ApiClient(configuration) as client:
        yield generated.BatchApi(client)


def checked(answer: Any) -> Any:
    """The object of the answer, after a check that its model knows every key."""
    assert answer.status_code == 200
    _same_keys(json.loads(answer.raw_data), answer.data)
    return answer.data


def _same_keys(sent: Any, model: Any) -> None:
    if not hasattr(type(model), "model_fields"):
        return
    names = {field.alias or name: name for name, field in type(model).model_fields.items()}
    assert set(sent) <= set(names), type(model)
    for key, value in sent.items():
        found = getattr(model, names[key])
        if isinstance(value, list):
            for one, of_model in zip(value, found, strict=True):
                _same_keys(one, of_model)
        elif isinstance(value, dict):
            _same_keys(value, found)


@pytest.mark.timeout(240)
def test_the_four_batch_calls(generated, batches, client, jsonl):
    uploaded = client.files.create(file=jsonl(3), purpose="batch")
    asked = generated.CreateBatchRequest(
        input_file_id=uploaded.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"made": "by a generated client"},
    )
    batch = checked(batches.create_batch_with_http_info(asked))
    assert (batch.status, batch.endpoint, batch.input_file_id) == ("validating", CHAT, uploaded.id)
    assert batch.metadata == {"made": "by a generated client"}
    assert batch.request_counts.total == 0

    def retrieved() -> Any:
        found = checked(batches.retrieve_batch_with_http_info(batch.id))
        return found if found.status in TERMINAL else None

    done = until(retrieved)
    assert (done.status, done.request_counts.completed) == ("completed", 3)
    assert done.usage.output_tokens_details.reasoning_tokens == 0

    page = checked(batches.list_batches_with_http_info(limit=1))
    assert ([one.id for one in page.data], page.first_id, page.last_id) == ([batch.id],) + (batch.id,) * 2
    behind = checked(batches.list_batches_with_http_info(after=batch.id, limit=100))
    assert batch.id not in {one.id for one in behind.data}

    with pytest.raises(generated.ApiException) as caught:
        batches.cancel_batch(batch.id)
    assert caught.value.status == 409
    assert "'completed'" in json.loads(caught.value.body)["error"]["message"]
    with pytest.raises(generated.ApiException) as caught:
        batches.retrieve_batch("batch_" + "0" * 32)
    assert caught.value.status == 404


def test_a_failed_and_a_cancelled_batch_are_parsed(generated, batches, client, jsonl):
    bad = client.files.create(file=jsonl(1) + b"{\n", purpose="batch")
    asked = {"endpoint": CHAT, "completion_window": "24h"}
    failed = batches.create_batch(generated.CreateBatchRequest(input_file_id=bad.id, **asked))
    until(lambda: batches.retrieve_batch(failed.id).status == "failed")
    failed = checked(batches.retrieve_batch_with_http_info(failed.id))
    assert [(error.code, error.line) for error in failed.errors.data] == [("invalid_json_line", 2)]

    many = client.files.create(file=jsonl(40_000), purpose="batch")
    batch = batches.create_batch(generated.CreateBatchRequest(input_file_id=many.id, **asked))
    cancelled = checked(batches.cancel_batch_with_http_info(batch.id))
    assert cancelled.status in {"cancelling", "cancelled"}
    assert cancelled.cancelling_at is not None
    until(lambda: batches.retrieve_batch(batch.id).status == "cancelled")
    checked(batches.retrieve_batch_with_http_info(batch.id))


def test_files_are_listed_read_and_deleted(generated, server, client, jsonl):
    configuration = generated.Configuration(host=f"{server.url}/v1", access_token="sk-none")
    made = client.files.create(file=jsonl(1), purpose="batch")
    with generated.ApiClient(configuration) as api_client:
        files = generated.FilesApi(api_client)
        assert checked(files.retrieve_file_with_http_info(made.id)).id == made.id
        page = checked(files.list_files_with_http_info(purpose="batch", limit=1, order="desc"))
        assert [one.id for one in page.data] == [made.id]
        assert checked(files.delete_file_with_http_info(made.id)).deleted is True
        empty = checked(files.list_files_with_http_info(purpose="vision-of-nobody"))
        assert (empty.data, empty.first_id, empty.last_id, empty.has_more) == ([], "", "", False)
