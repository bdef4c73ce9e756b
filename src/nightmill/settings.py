"""One typed settings tree: flags over environment over TOML file over defaults.

Environment names are `NIGHTMILL_` + the path with `__` between levels (`NIGHTMILL_UPSTREAM__URL`). A
secret may come from a file: append `_FILE` to its name. The reference page `docs/settings.md` is printed from
the docstrings below. `OPENAI_BASE_URL` and `OPENAI_API_KEY` are never read: they tell clients where *we* are.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from nightmill.core.batch import ENDPOINTS
from nightmill.core.limits import Limits
from nightmill.errors import SetupError

PREFIX = "NIGHTMILL_"
DAY_S = 86_400


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ApiSettings(_Section):
    """Where nightmill listens and how it answers."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs at least one API key."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port to listen on; 0 takes a free one."""
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    """How long SIGTERM waits for requests and attempts in flight."""
    max_json_bytes: Annotated[int, Field(ge=1_024)] = 1 << 20
    """Largest JSON request body."""
    max_header_bytes: Annotated[int, Field(ge=1_024)] = 64 << 10
    """Largest request line and headers together."""
    upload_idle_s: Annotated[float, Field(gt=0)] = 60.0
    """An upload that sends nothing for so long is dropped and leaves nothing behind."""
    max_open_uploads: Annotated[int, Field(ge=1)] = 128
    """Uploads being received at once; more get 429."""
    max_connections: Annotated[int, Field(ge=1)] = 2_000
    """Connections open at once. One more takes the place of the one that has been idle for longest; when none
    is idle it gets 503."""
    keep_alive_s: Annotated[int, Field(ge=1)] = 75
    """An idle connection is closed after so many seconds."""
    header_s: Annotated[float, Field(gt=0)] = 20.0
    """A request line and headers may take so long to arrive; then 408."""
    download_idle_s: Annotated[float, Field(gt=0)] = 120.0
    """An answer of which the client takes nothing for so long is cut."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """Requests one API key may make in a minute; 0 sets no limit."""


class LimitSettings(_Section):
    """Limits of files and batches. The defaults are OpenAI's (docs/openai-behaviour.md 3.2)."""

    lines_per_file: Annotated[int, Field(ge=1)] = 50_000
    """Request lines in one input file."""
    input_file_bytes: Annotated[int, Field(ge=1)] = 209_715_200
    """Size of one file with purpose `batch`."""
    file_bytes: Annotated[int, Field(ge=1)] = 536_870_912
    """Size of one file with any other purpose."""
    upload_bytes: Annotated[int, Field(ge=1)] = 8 << 30
    """Size of one upload in parts."""
    upload_part_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """Size of one part."""
    line_bytes: Annotated[int, Field(ge=1_024)] = 16 << 20
    """Length of one request line. A longer one is an error at that line."""
    nesting: Annotated[int, Field(ge=1, le=900)] = 200
    """Levels of nesting in one request line. Deeper ones are an error at that line."""
    models_per_file: Annotated[int, Field(ge=1)] = 1
    """Different models in one input file."""
    embedding_inputs: Annotated[int, Field(ge=1)] = 50_000
    """Embedding inputs summed over the lines of a batch."""
    listed_errors: Annotated[int, Field(ge=1)] = 100
    """Bad lines listed in a failed batch; a last entry says how many more there are."""
    batches_per_hour: Annotated[int, Field(ge=0)] = 2_000
    """Batches one project may create in an hour; 0 sets no limit."""
    completion_windows: tuple[str, ...] = ("24h",)
    """Accepted completion windows: a number and `s`, `m`, `h` or `d`."""
    endpoints: tuple[str, ...] = ENDPOINTS
    """Accepted endpoints."""
    input_ttl_s: Annotated[int, Field(ge=3_600)] = 30 * DAY_S
    """A file with purpose `batch` expires so long after its upload unless it says otherwise."""
    output_ttl_s: Annotated[int, Field(ge=3_600)] = 30 * DAY_S
    """Output and error files expire so long after they are made unless the batch says otherwise."""


class UpstreamSettings(_Section):
    """The OpenAI-compatible server that answers the lines."""

    url: str | None = None
    """Base URL up to and with `/v1`, or `auto` to look for the usual local servers."""
    api_key: SecretStr | None = None
    """Sent as a bearer token."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Extra headers on every attempt."""
    models: tuple[str, ...] = ()
    """Models offered. When given, lines for any other model fail validation; else the upstream decides."""
    concurrency: Annotated[int, Field(ge=1)] = 64
    """Attempts in flight at once, over all workers of all machines that ask this upstream."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """Attempts started in a minute, over all workers; 0 sets no limit."""
    tokens_per_minute: Annotated[int, Field(ge=0)] = 0
    """Tokens used in a minute, over all workers; 0 sets no limit. What an attempt will use is guessed from
    those before it and put right by its answer."""
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """One attempt may take so long."""
    connect_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Opening a connection may take so long."""
    max_attempts: Annotated[int, Field(ge=1)] = 8
    """Attempts for one line that timed out, broke or met a 5xx. Waiting for an upstream that is down or asks
    for patience (429) uses none up."""
    transport: Literal["lean", "aiohttp"] = "lean"
    """`lean` is nightmill's own HTTP/1.1 client; `aiohttp` goes through proxies of the environment."""
    tls_verify: bool = True
    """Check the upstream's certificate."""
    max_answer_bytes: Annotated[int, Field(ge=1_024)] = 64 << 20
    """A longer answer counts as broken."""


class ModelSettings(_Section):
    """A model run by nightmill itself, as an upstream in a child process (extra `nightmill[llama]`)."""

    path: Path | None = None
    """A GGUF file."""
    context_tokens: Annotated[int, Field(ge=0)] = 0
    """Context per line; 0 takes the model's own."""
    slots: Annotated[int, Field(ge=1)] = 4
    """Lines answered at once."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads that compute; 0 takes one for each core. They wait for each other by spinning: on a machine
    that does other work too, fewer are quicker."""


class EmulatorSettings(_Section):
    """The built-in upstream for trying out and for tests. It answers only when asked to be there."""

    enabled: bool = False
    """Answer every line with made-up text that says so."""
    delay_s: Annotated[float, Field(ge=0)] = 0.0
    """Wait before each answer."""


class WorkerSettings(_Section):
    """How lines are leased, sent and settled."""

    processes: Annotated[int, Field(ge=0)] = 1
    """Worker processes on this machine; the upstream's concurrency is shared out among them. 0 makes a server
    that only answers its API: `nightmill work` holds the roles elsewhere, over a store in Postgres."""
    lease_ttl_s: Annotated[float, Field(gt=0)] = 30.0
    """A worker that has not been heard of for so long loses its segments."""
    beat_s: Annotated[float, Field(gt=0)] = 1.0
    """Time between two heartbeats; also how often `request_counts` move."""
    lines_per_segment: Annotated[int, Field(ge=1)] = 500
    """Lines leased together."""
    commit_interval_s: Annotated[float, Field(ge=0)] = 0.01
    """Answers are gathered for so long before one fsync makes them durable and they count. A power cut or a
    `kill -9` repeats at most the answers of one interval and those in flight."""
    buffer_bytes: Annotated[int, Field(ge=1 << 16)] = 32 << 20
    """Answers not yet on disk; sending waits above it."""
    cancel_grace_s: Annotated[float, Field(ge=0, le=600)] = 60.0
    """What is in flight when a batch is cancelled may finish for so long."""


class BlobSettings(_Section):
    """Where bytes are kept: in the data folder, or in an object store (extra `nightmill[objects]`).

    An object store bills every request. What a setting costs is told at S3's list price of 0.005 USD for a
    thousand puts.
    """

    url: str | None = None
    """`s3://bucket/prefix` (or whatever speaks S3), `gs://bucket/prefix`, `az://account/container/prefix`,
    `memory://` for tests in one process. Not given: the data folder. The prefix must be one nightmill's
    alone: what its database does not name is swept away. Have the bucket's lifecycle rules abort unfinished
    multipart uploads after a day: a killed process leaves them, and the store bills them."""
    endpoint: str | None = None
    """URL of a store other than the provider's own, `https://s3.example.com` for instance."""
    region: str = "us-east-1"
    """S3 region."""
    allow_http: bool = False
    """Talk to the endpoint without TLS. Whoever listens on the way reads all prompts and answers."""
    virtual_hosting: bool = False
    """Put the bucket into the host name; `endpoint` then holds it too."""
    access_key_id: SecretStr | None = None
    """S3 access key. Not given: the `AWS_...` variables, a web identity or the machine's own role."""
    secret_access_key: SecretStr | None = None
    """Belongs to `access_key_id`. Azure's account key and Google's service account key (JSON) go here too."""
    session_token: SecretStr | None = None
    """Belongs to a temporary `access_key_id`."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse", "sse-c"] | None = None
    """Encryption at rest asked of S3; not given: whatever the bucket does by default. KMS bills requests."""
    encryption_key: SecretStr | None = None
    """The id of a KMS key, or for `sse-c` 32 bytes in base64. Without that key nothing can be read again."""
    options: dict[str, str] = Field(default_factory=dict)
    """Further options by obstore's names, `checksum_algorithm` or `disable_bulk_delete` for instance."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """One request, or the wait for more bytes of one, may take so long."""
    retry_s: Annotated[float, Field(ge=0)] = 15.0
    """A refused or broken request (503 SlowDown for instance) is repeated for so long before the store counts
    as away. A client of the API waits that long for its 503."""
    upload_part_bytes: Annotated[int, Field(ge=5 << 20, le=1 << 30)] = 8 << 20
    """Part of a multipart upload. S3 takes 10,000 of them, so 8 MiB allow blobs of 78 GiB. Every upload being
    received, and every file being joined, holds up to six in memory."""
    piece_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    """An upload whose parts have so many bytes on average is completed at once: its parts stay where they are
    as the pieces of the file, in a data folder too. Smaller parts are copied into one blob, because each
    piece that is read costs a request. A file of pieces is never redirected to the store."""
    part_interval_s: Annotated[float, Field(ge=0)] = 1.0
    """Answers of a segment are gathered for so long before one put makes them durable and they count. A crash
    repeats at most the answers of one interval and those in flight. Each open segment puts once per interval:
    600 of them cost 260 USD a day at 1 s, 50 USD at 5 s."""
    part_bytes: Annotated[int, Field(ge=1 << 10)] = 1 << 20
    """A segment that has gathered so much does not wait for the interval."""
    puts_at_once: Annotated[int, Field(ge=1)] = 16
    """Puts of answers under way at once, per worker process."""
    presigned_downloads: bool = False
    """Answer `GET /v1/files/{id}/content` with a redirect to the store, so that the bytes don't pass through
    nightmill. OpenAI answers with the bytes: clients that don't follow redirects break."""
    presigned_ttl_s: Annotated[int, Field(ge=1, le=604_800)] = 3_600
    """Whoever has such a link can read the file for so long."""


class RayModelSettings(_Section):
    """A model that Ray Serve runs on the cluster while batches need it (docs/ray.md)."""

    name: str | None = None
    """What lines call it in `body.model`. Not given: no model is run, and `upstream.url` answers."""
    source: str | None = None
    """Its weights. For `vllm` a name at Hugging Face, a folder on every node, or an `s3://` or `gs://` URL;
    for `llama.cpp` a GGUF file on every node."""
    engine: str = "vllm"
    """`vllm` (extra `nightmill[ray-llm]` on the nodes), `llama.cpp` (extra `nightmill[llama]`), or
    `module:name` of a function on the nodes that takes these settings and returns a Serve application of your
    own."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model; Serve spreads the lines over them."""
    gpus: Annotated[int, Field(ge=0)] = 1
    """GPUs of each copy, over which vLLM splits the model. Not read for `llama.cpp`."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Cores of each copy for `llama.cpp`."""
    accelerator_type: str | None = None
    """Only nodes with this kind of GPU, by Ray's name for it: `H100` or `L4` for instance."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options of the engine: for `vllm` its engine arguments (`max_model_len` for instance), for
    `llama.cpp` `slots` and `context_tokens`."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8_000
    """Port of Ray Serve's proxies. Where Serve runs already it must be that one's."""
    host: str | None = None
    """Address Serve's proxies listen on if nightmill starts Serve. Not given: loopback on a cluster nightmill
    started itself, else every address of the node: workers of other nodes must reach it."""
    idle_s: Annotated[float, Field(ge=0)] = 300.0
    """The model is released when no batch has needed it for so long."""


class RaySettings(_Section):
    """Where and how workers run as Ray actors with `engine = "ray"` (extra `nightmill[ray]`, docs/ray.md)."""

    address: str | None = None
    """`ray://host:10001` from outside the cluster; `host:6379` or `auto` on one of its nodes. Not given: a
    cluster on this machine, on loopback, that lives as long as nightmill."""
    namespace: str = "nightmill"
    """Namespace of the actors. Those of other settings or versions in it are left alone."""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """Workers kept while there is nothing to do."""
    max_workers: Annotated[int, Field(ge=1)] = 4
    """Most workers at once."""
    segments_per_worker: Annotated[int, Field(ge=1)] = 10
    """One worker more for each so many unfinished segments (`worker.lines_per_segment` lines each)."""
    idle_s: Annotated[float, Field(ge=0)] = 60.0
    """Fewer workers have been enough for so long before any is sent away."""
    unattended_s: Annotated[float, Field(gt=0)] = 600.0
    """Workers and models that no nightmill has asked after for so long leave the cluster by themselves."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1.0
    """Cores of each worker, by which Ray places it."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further resources of each worker, such as one that only some nodes offer."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the actors. Nodes need this nightmill, from their image or from here:
    `{pip = ["nightmill[postgres,objects,ray]==0.1.0"]}`."""
    secrets: Literal["sent", "on_nodes"] = "sent"
    """`sent`: actors get store URL and keys through Ray, and whoever may use the cluster can read them.
    `on_nodes`: they are not sent; each node's environment has its own `NIGHTMILL_STORE_FILE` and the like."""
    tell_autoscaler: bool = True
    """Ask the autoscaler for all workers' resources at once. Ray keeps one such request for a whole cluster:
    say false where other programs make one. Workers that wait for a place are seen by the autoscaler
    anyway."""
    model: RayModelSettings = RayModelSettings()


class FinalizerSettings(_Section):
    """How the files of a batch that has ended are made."""

    slice_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    """A batch with answers for two of these or more is joined in slices of about so many bytes, by all the
    finalizers there are at once; a smaller one by one of them. A finalizer that dies loses at most a slice,
    some 15 s of work at 1 GiB. Each slice is a piece of the output file: smaller ones make a longer list. A
    file of pieces is never redirected to the object store."""


class RetentionSettings(_Section):
    """How often the warden looks, and how much room it leaves on disk."""

    sweep_s: Annotated[float, Field(gt=0)] = 5.0
    """Time between two looks for lapsed leases, overdue batches and expired files."""
    free_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    """Uploads are refused and batches pause when less room than this is left."""


class QuotaSettings(_Section):
    """How much one project may have; 0 sets no limit. `nightmill projects set` changes it for one project."""

    open_batches: Annotated[int, Field(ge=0)] = 0
    """Batches that have not ended. One more gets 429."""
    open_lines: Annotated[int, Field(ge=0)] = 0
    """Request lines in batches that have not ended. A batch that would bring more fails its check with
    `request_limit_exceeded`; with none left a create gets 429."""
    open_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of the input files of batches that have not ended. More get 429."""
    stored_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of all files that are not deleted. More get 400 `storage_limit_exceeded`. Output files count, and
    are never refused."""
    enqueued_tokens: Annotated[int, Field(ge=0)] = 0
    """Prompt tokens, for each model, in batches that have not ended; estimated as a quarter of the input
    file's bytes. A batch that would bring more fails its check with `token_limit_exceeded`, as at OpenAI."""

    @property
    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class AuditSettings(_Section):
    """The log of who did what (`nightmill audit`)."""

    ttl_s: Annotated[int, Field(ge=0)] = 365 * DAY_S
    """An entry is removed when it is so old; 0 keeps all. Those of a project under legal hold stay."""
    downloads: bool = False
    """Log each download of a file too. A download then needs a store that can be written to."""


class Settings(_Section):
    """Everything nightmill can be told."""

    folder: Path = Path("nightmill-data")
    """The data folder: database, blobs and lock."""
    store: str | None = None
    """Database URL. Not given: SQLite in the data folder."""
    engine: Literal["local", "ray"] = "local"
    """What keeps workers running: child processes of this machine, or Ray on a cluster."""
    keyless_on_loopback: bool = True
    """On loopback, answer without a key while no key exists."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    api: ApiSettings = ApiSettings()
    limits: LimitSettings = LimitSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    model: ModelSettings = ModelSettings()
    emulator: EmulatorSettings = EmulatorSettings()
    worker: WorkerSettings = WorkerSettings()
    blobs: BlobSettings = BlobSettings()
    finalizer: FinalizerSettings = FinalizerSettings()
    retention: RetentionSettings = RetentionSettings()
    ray: RaySettings = RaySettings()
    quota: QuotaSettings = QuotaSettings()
    audit: AuditSettings = AuditSettings()

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{self.folder.absolute() / 'nightmill.sqlite'}"

    @property
    def is_embedded(self) -> bool:
        """Whether the store is one server's own: its folder lock proves that nobody else uses it."""
        return self.store_url.startswith("sqlite")

    @property
    def store_timeout_s(self) -> float:
        """A call to the store that hangs must not keep the holder of a lease from trying again in time."""
        return 10.0 if self.is_embedded else max(1.0, min(10.0, self.worker.lease_ttl_s / 2))


Tree = dict[str, Any]


def load(
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Settings:
    """Merges the sources and types the result once.

    Args:
        flags: a nested mapping as in the TOML file; None values are left out.
        environment: defaults to the process's own.
        config: a TOML file; `NIGHTMILL_CONFIG` names one too.

    Raises:
        SetupError: a value or name is wrong; the message names the setting.
    """
    environment = os.environ if environment is None else environment
    config = config or (Path(environment["NIGHTMILL_CONFIG"]) if "NIGHTMILL_CONFIG" in environment else None)
    tree = _merge(
        _merge(_from_toml(config) if config else {}, _from_environment(environment)), _pruned(flags or {})
    )
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(str(step) for step in first["loc"])
        variable = PREFIX + name.replace(".", "__").upper()
        message = f"setting '{name}' ({variable}): {first['msg']}; see docs/settings.md"
        raise SetupError(message) from None


def as_message(settings: Settings) -> str:
    """The tree as one line of JSON, secrets included: for a child's standard input only."""
    return json.dumps(_revealed(settings.model_dump()))


def without_secrets(settings: Settings) -> str:
    """As `as_message`, but without the store's URL and whatever is secret: the reader's environment has
    them."""
    tree = {name: value for name, value in settings.model_dump().items() if name != "store"}
    return json.dumps(_revealed(_without_secrets(tree)))


def with_own_secrets(message: str) -> Settings:
    """What `without_secrets` wrote, completed from this process's environment.

    Raises:
        SetupError: a value or name in the environment is wrong.
    """
    return load(flags=json.loads(message))


def from_message(message: str) -> Settings:
    return Settings.model_validate_json(message)


def _without_secrets(tree: Tree) -> Tree:
    kept: Tree = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            kept[name] = _without_secrets(cast("Tree", value))
        elif not isinstance(value, SecretStr):
            kept[name] = value
    return kept


def _revealed(value: object) -> object:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value)
        case dict():
            return {name: _revealed(below) for name, below in cast("Tree", value).items()}
        case list() | tuple():
            return [_revealed(below) for below in cast("list[object]", value)]
        case _:
            return value


def _from_toml(path: Path) -> Tree:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise SetupError(f"there is no settings file at {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from None


_NOT_SETTINGS = {"CONFIG", "CRASH_AT", "CRASH_FOLDER"}  # the last two: see failpoints.py
_NOT_FILES = {("limits", "lines_per_file"), ("limits", "models_per_file")}
_LIST_SETTINGS = {("limits", "completion_windows"), ("limits", "endpoints"), ("upstream", "models")}


def _from_environment(environment: Mapping[str, str]) -> Tree:
    tree: Tree = {}
    for name, value in sorted(environment.items()):
        if not name.startswith(PREFIX) or name.removeprefix(PREFIX) in _NOT_SETTINGS:
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        setting: Any = value
        if path[-1].endswith("_file") and path not in _NOT_FILES:
            path = (*path[:-1], path[-1].removesuffix("_file"))
            try:
                setting = Path(value).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise SetupError(f"{name} names a file that can't be read: {error.strerror}") from None
        if path in _LIST_SETTINGS:
            setting = [part.strip() for part in value.split(",") if part.strip()]
        branch = tree
        for step in path[:-1]:
            below: object = branch.setdefault(step, {})
            if not isinstance(below, dict):
                raise SetupError(f"{name} is set both as a value and as a section")
            branch = cast("Tree", below)
        branch[path[-1]] = setting
    return tree


def _merge(under: Tree, over: Tree) -> Tree:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[name] = _merge(cast("Tree", below), cast("Tree", value)) if both else value
    return merged


def _pruned(tree: Mapping[str, Any]) -> Tree:
    pruned: Tree = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            below = _pruned(cast("Mapping[str, Any]", value))
            if below:
                pruned[name] = below
        elif value is not None:
            pruned[name] = value
    return pruned
