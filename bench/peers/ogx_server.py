"""OGX's server with its reference batches, files on disk, and one OpenAI-compatible upstream."""

import os
import sys
from pathlib import Path

_CONFIG = """
version: 2
distro_name: bench
apis: [batches, files, inference]
providers:
  inference:
  - provider_id: vllm
    provider_type: remote::vllm
    config: {{base_url: "{url}", api_token: bench}}
  files:
  - provider_id: builtin-files
    provider_type: inline::localfs
    config:
      storage_dir: {folder}/files
      metadata_store: {{table_name: files_metadata, backend: sql_default}}
  batches:
  - provider_id: reference
    provider_type: inline::reference
    config:
      sqlstore: {{table_name: batches, backend: sql_default}}
storage:
  backends:
    kv_default: {{type: kv_sqlite, db_path: {folder}/kv.db}}
    sql_default: {{type: sql_sqlite, db_path: {folder}/sql.db}}
  stores:
    metadata: {{namespace: registry, backend: kv_default}}
    inference: {{table_name: inference_store, backend: sql_default, enabled: false}}
    conversations: {{table_name: openai_conversations, backend: sql_default}}
    prompts: {{table_name: prompts, backend: sql_default}}
    connectors: {{table_name: connectors, backend: sql_default}}
registered_resources:
  models:
  - {{model_id: bench, provider_id: vllm, provider_model_id: bench, model_type: llm, metadata: {{}}}}
server:
  port: {port}
"""

url, port = sys.argv[1:3]
folder = Path.cwd()
config = folder / "config.yaml"
config.write_text(_CONFIG.format(url=url, port=port, folder=folder))
ogx = str(Path(sys.executable).with_name("ogx"))
os.execv(ogx, [ogx, "run", str(config), "--port", port, "--insecure"])
