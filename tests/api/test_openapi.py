"""The served OpenAPI document, and a client generated from it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nightmill.api import batch_wire, file_wire

OPERATIONS = {
    ("post", "/batches"): "createBatch",
    ("get", "/batches"): "listBatches",
    ("get", "/batches/{batch_id}"): "retrieveBatch",
    ("post", "/batches/{batch_id}/cancel"): "cancelBatch",
    ("post", "/files"): "createFile",
    ("get", "/files"): "listFiles",
    ("get", "/files/{file_id}"): "retrieveFile",
    ("delete", "/files/{file_id}"): "deleteFile",
    ("get", "/files/{file_id}/content"): "downloadFile",
    ("post", "/uploads"): "createUpload",
    ("post", "/uploads/{upload_id}/parts"): "addUploadPart",
    ("post", "/uploads/{upload_id}/complete"): "completeUpload",
    ("post", "/uploads/{upload_id}/cancel"): "cancelUpload",
    ("get", "/models"): "listModels",
    ("get", "/models/{model}"): "retrieveModel",
}
BODIES = {
    "createBatch": "CreateBatchRequest",
    "createFile": "CreateFileRequest",
    "createUpload": "CreateUploadRequest",
    "addUploadPart": "AddUploadPartRequest",
    "completeUpload": "CompleteUploadRequest",
}
ANSWERS = {
    "createBatch": "Batch",
    "listBatches": "ListBatchesResponse",
    "retrieveBatch": "Batch",
    "cancelBatch": "Batch",
    "createFile": "OpenAIFile",
    "listFiles": "ListFilesResponse",
    "retrieveFile": "OpenAIFile",
    "deleteFile": "DeleteFileResponse",
    "createUpload": "Upload",
    "addUploadPart": "UploadPart",
    "completeUpload": "Upload",
    "cancelUpload": "Upload",
    "listModels": "ListModelsResponse",
    "retrieveModel": "Model",
}
REQUIRED = {
    "Batch": ["id", "object", "endpoint", "input_file_id", "completion_window", "status", "created_at"],
    "BatchRequestCounts": ["total", "completed", "failed"],
    "CreateBatchRequest": ["input_file_id", "endpoint", "completion_window"],
    "CreateFileRequest": ["file", "purpose"],
    "CreateUploadRequest": ["filename", "purpose", "bytes", "mime_type"],
    "CompleteUploadRequest": ["part_ids"],
    "DeleteFileResponse": ["id", "object", "deleted"],
    "FileExpirationAfter": ["anchor", "seconds"],
    "ListBatchesResponse": ["object", "data", "has_more"],
    "ListFilesResponse": ["object", "data", "first_id", "last_id", "has_more"],
    "OpenAIFile": ["id", "object", "bytes", "created_at", "filename", "purpose", "status"],
    "UploadPart": ["id", "object", "created_at", "upload_id"],
}


@pytest.fixture
def document(server):
    answer = server.send("GET", "/openapi.json")
    assert answer.status == 200
    return answer.json()


def operations(document):
    return {
        operation["operationId"]: operation
        for item in document["paths"].values()
        for operation in item.values()
    }


def test_paths_and_operation_ids_are_the_published_ones(document):
    found = {
        (method, path): operation["operationId"]
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert found == OPERATIONS
    assert document["openapi"] == "3.1.0"
    assert document["servers"][0]["url"] == "/v1"
    assert document["security"] == [{"ApiKeyAuth": []}]
    assert document["components"]["securitySchemes"] == {"ApiKeyAuth": {"type": "http", "scheme": "bearer"}}


def test_bodies_and_answers_have_the_published_schemas(document):
    for name, operation in operations(document).items():
        bodies = operation.get("requestBody", {}).get("content", {}).values()
        assert [body["schema"]["$ref"].rpartition("/")[2] for body in bodies] == (
            [BODIES[name]] if name in BODIES else []
        )
        answers = operation["responses"]
        assert "422" not in answers
        for status, answer in answers.items():
            if status != "200":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}
        assert {"400", "401", "404", "429", "500", "503"} < set(answers)
        if name in ANSWERS:
            schema = answers["200"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{ANSWERS[name]}"}


def test_the_required_fields_are_the_published_ones(document):
    schemas = document["components"]["schemas"]
    for name, required in REQUIRED.items():
        assert sorted(schemas[name]["required"]) == sorted(required), name
    assert not [name for name in schemas if name.startswith("_") or "Validation" in name]


def test_every_reference_resolves(document):
    text = json.dumps(document)
    used = {piece.split('"', 1)[0] for piece in text.split('"#/components/schemas/')[1:]}
    assert used <= set(document["components"]["schemas"])
    assert '"$defs"' not in text
    assert '"const"' not in text


def test_the_document_lists_the_values_that_settings_allow(serve):
    limits = {"completion_windows": ["24h", "7d"], "endpoints": ["/v1/embeddings"]}
    document = serve(settings={"limits": limits}).send("GET", "/openapi.json").json()
    asked = document["components"]["schemas"]["CreateBatchRequest"]["properties"]
    assert asked["completion_window"]["enum"] == ["24h", "7d"]
    assert asked["endpoint"]["enum"] == ["/v1/embeddings"]


def test_a_generated_client_has_the_published_methods(document, tmp_path):
    source = tmp_path / "openapi.json"
    source.write_text(json.dumps(document))
    generator = Path(sys.executable).with_name("openapi-generator-cli")
    subprocess.run(
        [generator, "generate", "-i", source, "-g", "python", "-o", tmp_path / "client"],
        check=True,
        capture_output=True,
        timeout=100,
    )
    package = tmp_path / "client" / "openapi_client"
    tree = ast.parse((package / "api" / "batch_api.py").read_text())
    arguments = {
        function.name: [argument.arg for argument in function.args.args if not argument.arg.startswith("_")]
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
    }
    assert arguments["create_batch"] == ["self", "create_batch_request"]
    assert arguments["retrieve_batch"] == ["self", "batch_id"]
    assert arguments["cancel_batch"] == ["self", "batch_id"]
    assert arguments["list_batches"] == ["self", "after", "limit"]
    models = {path.stem for path in (package / "models").glob("*.py")}
    assert {
        "batch",
        "batch_errors",
        "batch_request_counts",
        "list_batches_response",
        "open_ai_file",
    } <= models
    assert not [name for name in models if "any_of" in name or name.startswith("inner")]


def test_models_and_on_wire_functions_agree(server, client, key):
    file = client.files.create(file=("a.jsonl", b'{"custom_id": "a"}\n'), purpose="batch")
    document = {"input_file_id": file.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = server.send_json("/v1/batches", document, key=key).json()
    shown = [
        (batch_wire.Batch, batch),
        (file_wire.OpenAIFile, server.send("GET", f"/v1/files/{file.id}", key=key).json()),
        (batch_wire.ListBatchesResponse, server.send("GET", "/v1/batches", key=key).json()),
        (file_wire.ListFilesResponse, server.send("GET", "/v1/files", key=key).json()),
    ]
    for model, fields in shown:
        model.model_validate(fields)
        assert set(fields) == set(model.model_fields)
    assert list(batch) == list(batch_wire.Batch.model_fields)
