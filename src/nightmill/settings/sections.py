"""The settings as typed sections: one class for each TOML section.

A value is parsed and checked once; each room takes the section it needs. The docstrings below are the
reference page `docs/settings.md`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, model_validator

from nightmill.core.batch import ENDPOINTS
from nightmill.core.limits import Limits
from nightmill.core.prices import Price
from nightmill.core.usage import DAY_S
from nightmill.settings.emulator import EmulatorSettings
from nightmill.settings.retention import AuditSettings, RetentionSettings
from nightmill.settings.upstreams import ANY_MODEL, Section, UpstreamSettings, check_upstreams
from nightmill.settings.webhooks import WebhookSettings


class ApiSettings(Section):
    """Where nightmill listens and how it answers."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs at least one API key."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port to listen on; 0 takes a free one."""
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    """How long SIGTERM waits for requests and attempts in flight, in seconds."""
    max_json_bytes: Annotated[int, Field(ge=1_024)] = 1 << 20
    """Largest JSON request body."""
    max_header_bytes: Annotated[int, Field(ge=1_024)] = 64 << 10
    """Largest request line and headers together."""
    upload_idle_s: Annotated[float, Field(gt=0)] = 60.0
    """An upload that sends no bytes for this many seconds is dropped; nothing of it is kept."""
    max_open_uploads: Annotated[int, Field(ge=1)] = 128
    """Uploads received at the same time; further ones get 429."""
    max_connections: Annotated[int, Field(ge=1)] = 2_000
    """Connections open at the same time. A further one closes the connection that has been idle for longest;
    when no connection is idle, it gets 503."""
    keep_alive_s: Annotated[int, Field(ge=1)] = 75
    """An idle connection is closed after this many seconds."""
    header_s: Annotated[float, Field(gt=0)] = 20.0
    """Seconds in which a request line and its headers must arrive; then 408."""
    download_idle_s: Annotated[float, Field(gt=0)] = 120.0
    """A response of which the client reads nothing for this many seconds is aborted."""
    max_followers: Annotated[int, Field(ge=1)] = 200
    """Clients that follow the results of a batch at the same time; further ones get 429. As many pages of the
    dashboard are updated at the same time."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """Requests one API key may make in a minute; 0 sets no limit."""


class LimitSettings(Section):
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
    line_bytes: Annotated[int, Field(ge=1_024)] = 100 << 20
    """Length of one request line. A longer one is an error at that line."""
    nesting: Annotated[int, Field(ge=1, le=900)] = 200
    """Levels of nesting in one request line. Deeper ones are an error at that line."""
    models_per_file: Annotated[int, Field(ge=1)] = 1
    """Different models in one input file."""
    embedding_inputs: Annotated[int, Field(ge=1)] = 50_000
    """Embedding inputs summed over the lines of a batch."""
    listed_errors: Annotated[int, Field(ge=1)] = 100
    """Bad lines listed in a failed batch; a last entry gives the number of the others."""
    batches_per_hour: Annotated[int, Field(ge=0)] = 2_000
    """Batches one project may create in an hour; 0 sets no limit."""
    completion_windows: tuple[str, ...] = ("24h",)
    """Accepted completion windows: a number and `s`, `m`, `h` or `d`."""
    endpoints: tuple[str, ...] = ENDPOINTS
    """Accepted endpoints."""
    input_ttl_s: Annotated[int, Field(ge=3_600)] = 30 * DAY_S
    """Seconds after its upload when a file with purpose `batch` expires, unless the request sets another
    time.
    """
    output_ttl_s: Annotated[int, Field(ge=3_600)] = 30 * DAY_S
    """Seconds after their creation when output and error files expire, unless the batch sets another time."""


class ModelSettings(Section):
    """A model run by nightmill itself, as an upstream in a child process (extra `nightmill[llama]`)."""

    path: Path | None = None
    """A GGUF file."""
    context_tokens: Annotated[int, Field(ge=0)] = 0
    """Context of each line, prompt and answer together, in tokens; 0 takes the model's own. It is less where
    memory is too short for one such line."""
    slots: Annotated[int, Field(ge=1)] = 4
    """Lines answered at once, at most: as many contexts as fit into the available memory. The start says how
    many."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Compute threads; 0 takes one for each core. On a machine that does other work, fewer may be faster."""


class WorkerSettings(Section):
    """How lines are leased, sent and settled."""

    processes: Annotated[int, Field(ge=0)] = 1
    """Worker processes on this machine; they share the upstream's concurrency. 0 makes a server that only
    answers its API: `nightmill work` runs the roles on other machines, over a store in Postgres."""
    lease_ttl_s: Annotated[float, Field(gt=0)] = 30.0
    """A worker that sends no heartbeat for this many seconds loses its segments."""
    beat_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between two heartbeats; `request_counts` are updated as often."""
    lines_per_segment: Annotated[int, Field(ge=1)] = 500
    """Most lines leased together. Long lines are fewer: an eighth of `text_bytes`, or a single line."""
    text_bytes: Annotated[int, Field(ge=1 << 16)] = 256 << 20
    """Bytes of leased request lines that one worker process keeps in memory; lines in flight have a copy.
    Above it, no further lines are leased: fewer long lines are in flight than `upstream.concurrency` allows.
    """
    project_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Shares of projects in the work of a worker while several projects have batches; 1 where a project is
    missing. A project of weight 2 has twice as much work done as one of weight 1: prompts and
    answers."""
    commit_interval_s: Annotated[float, Field(ge=0)] = 0.01
    """Seconds for which answers are gathered before one fsync makes them durable and they count. A power cut
    or a `kill -9` repeats at most the answers of one interval and those in flight.
    """
    buffer_bytes: Annotated[int, Field(ge=1 << 16)] = 32 << 20
    """Bytes of answers that are not yet on disk; above it, no further line is sent."""
    cancel_grace_s: Annotated[float, Field(ge=0, le=600)] = 60.0
    """Seconds that attempts in flight get to finish when a batch is cancelled."""

    @property
    def segment_bytes(self) -> int:
        """Most bytes of request lines leased together, unless a single line is longer."""
        return self.text_bytes // 8


class BlobSettings(Section):
    """Where bytes are stored: in the data folder, or in an object store (extra `nightmill[objects]`).

    An object store bills every request. Costs are given at S3's list price of 0.005 USD for a thousand puts.
    """

    url: str | None = None
    """`s3://bucket/prefix` (for any store that speaks S3), `gs://bucket/prefix`,
    `az://account/container/prefix`, `memory://` for tests in one process. Not given: the data folder. Only
    one nightmill may use the prefix: blobs that its database does not reference are deleted. Let a lifecycle
    rule of the bucket abort unfinished multipart uploads after a day: a killed process leaves them, and the
    store bills them."""
    endpoint: str | None = None
    """URL of a store other than the provider's own, `https://s3.example.com` for instance."""
    region: str = "us-east-1"
    """S3 region."""
    allow_http: bool = False
    """Talk to the endpoint without TLS. Prompts and answers can then be read on the network."""
    virtual_hosting: bool = False
    """Put the bucket into the host name; `endpoint` then holds it too."""
    access_key_id: SecretStr | None = None
    """S3 access key. Not given: the `AWS_...` variables, a web identity or the machine's own role."""
    secret_access_key: SecretStr | None = None
    """Belongs to `access_key_id`. Azure's account key and Google's service account key (JSON) go here too."""
    session_token: SecretStr | None = None
    """Belongs to a temporary `access_key_id`."""
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse", "sse-c"] | None = None
    """Encryption at rest asked of S3; not given: the default of the bucket. KMS bills requests."""
    encryption_key: SecretStr | None = None
    """The id of a KMS key, or for `sse-c` 32 bytes in base64. Without that key no blob can be read again."""
    options: dict[str, str] = Field(default_factory=dict)
    """Further options by obstore's names, `checksum_algorithm` or `disable_bulk_delete` for instance."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest duration of one request, or of a wait for more bytes of its response, in seconds."""
    retry_s: Annotated[float, Field(ge=0)] = 15.0
    """Seconds for which a refused or broken request (503 SlowDown for instance) is repeated before the store
    counts as unavailable. A client of the API waits as long for its 503."""
    multipart_part_bytes: Annotated[
        int,
        Field(
            ge=5 << 20, le=1 << 30, validation_alias=AliasChoices("multipart_part_bytes", "upload_part_bytes")
        ),
    ] = 8 << 20
    """Size of one part of a multipart upload to the object store. S3 takes 10,000 parts, so 8 MiB allow blobs
    of 78 GiB. Every upload being received, and every file being joined, holds up to six parts in memory. The
    old name `upload_part_bytes` is accepted until 0.2."""
    piece_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    """An upload whose parts have at least this average size is completed without a copy: its parts become the
    pieces of the file, in a data folder too. Smaller parts are copied into one blob, because each piece that
    is read costs a request. A file of pieces is never redirected to the store."""
    part_interval_s: Annotated[float, Field(ge=0)] = 1.0
    """Seconds for which the answers of a segment are gathered before one put makes them durable and they
    count. A crash repeats at most the answers of one interval and those in flight. Each open segment puts
    once per
    interval: 600 open segments cost 260 USD a day at 1 s, 50 USD at 5 s."""
    answer_part_bytes: Annotated[
        int, Field(ge=1 << 10, validation_alias=AliasChoices("answer_part_bytes", "part_bytes"))
    ] = 1 << 20
    """A segment that has gathered this many bytes of answers does not wait for the interval. The old name
    `part_bytes` is accepted until 0.2."""
    puts_at_once: Annotated[int, Field(ge=1)] = 16
    """Puts of answers in progress at the same time, per worker process."""
    presigned_downloads: bool = False
    """Answer `GET /v1/files/{id}/content` with a redirect to the store, so that the bytes don't pass through
    nightmill. OpenAI answers with the bytes: clients that don't follow redirects break. No effect with the
    encryption `sse-c`, whose key a link can't contain."""
    presigned_ttl_s: Annotated[int, Field(ge=1, le=604_800)] = 3_600
    """Seconds for which such a link can be used. It needs no key."""


class RayModelSettings(Section):
    """A model that Ray Serve runs on the cluster while batches need it (docs/ray.md)."""

    name: str | None = None
    """The name of the model in `body.model`. Not given: no model is run, and `upstream.url` answers."""
    source: str | None = None
    """The weights. For `vllm` a name at Hugging Face, a folder on every node, or an `s3://` or `gs://` URL;
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
    """Address on which Serve's proxies listen if nightmill starts Serve. Not given: loopback on a cluster
    that nightmill started itself, otherwise every address of the node: workers of other nodes must reach it.
    """
    idle_s: Annotated[float, Field(ge=0)] = 300.0
    """The model is released when no batch has needed it for this many seconds."""


class RaySettings(Section):
    """Where and how workers run as Ray actors with `engine = "ray"` (extra `nightmill[ray]`, docs/ray.md)."""

    address: str | None = None
    """`ray://host:10001` from outside the cluster; `host:6379` or `auto` on one of its nodes. Not given: a
    cluster on this machine, on loopback, that runs as long as nightmill."""
    namespace: str = "nightmill"
    """Namespace of the actors. Actors of other settings or versions in it are not touched."""
    min_workers: Annotated[int, Field(ge=0)] = 0
    """Workers kept while no batch is unfinished."""
    max_workers: Annotated[int, Field(ge=1)] = 4
    """Largest number of workers."""
    segments_per_worker: Annotated[int, Field(ge=1)] = 10
    """Unfinished segments (`worker.lines_per_segment` lines each) for which one more worker is started."""
    idle_s: Annotated[float, Field(ge=0)] = 60.0
    """Seconds for which fewer workers must have been enough before any is stopped."""
    unattended_s: Annotated[float, Field(gt=0)] = 600.0
    """Workers and models that no nightmill has contacted for this many seconds stop by themselves."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1.0
    """Cores of each worker, which Ray reserves for it."""
    resources: dict[str, float] = Field(default_factory=dict)
    """Further resources of each worker, such as one that only some nodes offer."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray's runtime environment of the actors. Nodes need this nightmill, from their image or from here:
    `{pip = ["nightmill[postgres,objects,ray]==0.1.0"]}`."""
    secrets: Literal["sent", "on_nodes"] = "sent"
    """`sent`: actors get the store URL and keys through Ray, and every user of the cluster can read them.
    `on_nodes`: they are not sent; each node's environment has its own `NIGHTMILL_STORE_FILE` and the like."""
    tell_autoscaler: bool = True
    """Request the resources of all workers from the autoscaler at once. Ray keeps one such request for a
    whole
    cluster: set false where other programs make one. The autoscaler also sees workers that wait for a
    place."""
    model: RayModelSettings = RayModelSettings()


class FinalizerSettings(Section):
    """How the files of a batch that has ended are made."""

    slice_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    """Size of a slice. A batch with answers for at least two slices is joined in slices by all finalizers in
    parallel; a smaller batch by one finalizer. A finalizer that dies loses at most a slice, some 15 s of work
    at 1 GiB. Each slice is a piece of the output file, so smaller slices make a longer list of pieces. A file
    of pieces is never redirected to the object store."""


class QuotaSettings(Section):
    """How much one project may have open or stored; 0 sets no limit. `nightmill projects set` changes it for
    one project.
    """

    open_batches: Annotated[int, Field(ge=0)] = 0
    """Batches that have not ended. One more gets 429."""
    open_lines: Annotated[int, Field(ge=0)] = 0
    """Request lines in batches that have not ended. A batch that would exceed it fails validation with
    `request_limit_exceeded`; when the limit is used up, a create gets 429."""
    open_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of the input files of batches that have not ended. More get 429."""
    stored_bytes: Annotated[int, Field(ge=0)] = 0
    """Bytes of all files that are not deleted. An upload that would exceed it gets 400
    `storage_limit_exceeded`. Output files count, and are never refused."""
    enqueued_tokens: Annotated[int, Field(ge=0)] = 0
    """Prompt tokens, for each model, in batches that have not ended; estimated as a quarter of the input
    file's bytes. A batch that would exceed it fails validation with `token_limit_exceeded`, as at OpenAI."""

    @property
    def limits(self) -> Limits:
        return Limits(**self.model_dump())


class DashboardSettings(Section):
    """The web pages at `/` (docs/dashboard.md)."""

    enabled: bool = True
    """Serve the dashboard. `false` leaves the API alone."""
    content: bool = True
    """Show prompts and answers. `false` hides them on every page of the dashboard, from every key."""
    session_s: Annotated[int, Field(ge=60)] = 7 * DAY_S
    """Seconds after which a person who signed in with a key must do so again."""


class PriceSettings(Section):
    """What a million tokens of a model cost."""

    input: Annotated[float, Field(ge=0)] = 0.0
    """A million input tokens."""
    output: Annotated[float, Field(ge=0)] = 0.0
    """A million output tokens."""
    cached_input: Annotated[float | None, Field(ge=0)] = None
    """A million input tokens that the upstream had in its cache. Not given: as `input`."""


class TraceSettings(Section):
    """Traces by OpenTelemetry; needs `pip install 'nightmill[otel]'` (docs/observability.md)."""

    enabled: bool = False
    """Send spans of batches, their phases and segments over OTLP/HTTP."""
    endpoint: str | None = None
    """The receiver's URL for traces, such as `http://127.0.0.1:4318/v1/traces`. Not given: the standard
    variables `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` and `OTEL_EXPORTER_OTLP_ENDPOINT`."""
    attempt_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of attempts that get a span of their own, and whose context the upstream is sent as
    `traceparent`; 0 for none, 1 for all."""
    content: bool = False
    """Put prompts and answers into the spans of attempts. They are then stored wherever the spans are."""


class Settings(Section):
    """All settings."""

    folder: Path = Path("nightmill-data")
    """The data folder: database, blobs and lock. A relative path begins at the current directory."""
    store: str | None = None
    """Database URL. Not given: SQLite in the data folder."""
    engine: Literal["local", "ray"] = "local"
    """Where workers run: in child processes of this machine, or as Ray actors on a cluster."""
    keyless_on_loopback: bool = True
    """On loopback, answer requests without a key while no key exists."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged. `nightmill log-level` changes it while the server runs."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """`json` for JSON objects, one a line, `text` for people; `auto` is text on a terminal, else JSON."""
    api: ApiSettings = ApiSettings()
    limits: LimitSettings = LimitSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    upstreams: tuple[UpstreamSettings, ...] = ()
    """Several upstreams, each a `[[upstreams]]` of its own (docs/upstreams.md). The settings of `[upstream]`,
    such as `upstream.timeout_s`, are then the defaults of each."""
    model: ModelSettings = ModelSettings()
    emulator: EmulatorSettings = EmulatorSettings()
    worker: WorkerSettings = WorkerSettings()
    blobs: BlobSettings = BlobSettings()
    finalizer: FinalizerSettings = FinalizerSettings()
    retention: RetentionSettings = RetentionSettings()
    ray: RaySettings = RaySettings()
    quota: QuotaSettings = QuotaSettings()
    audit: AuditSettings = AuditSettings()
    webhooks: WebhookSettings = WebhookSettings()
    dashboard: DashboardSettings = DashboardSettings()
    prices: dict[str, PriceSettings] = Field(default_factory=dict)
    """What a million tokens of each model cost, in any currency: `{m = {input = 0.1, output = 0.4}}` for the
    model `m`. `*` stands for all models without a price of their own, and for batches of several models.
    For a machine that costs 2.40 an hour and answers 2 million output tokens in it, `output` is 1.2. Not
    given: no costs are computed."""
    traces: TraceSettings = TraceSettings()

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        check_upstreams(self.upstream, self.upstreams)
        return self

    @property
    def all_upstreams(self) -> tuple[UpstreamSettings, ...]:
        """The upstreams with a URL: several, one, or none."""
        return self.upstreams or ((self.upstream,) if self.upstream.url is not None else ())

    @property
    def token_prices(self) -> dict[str, Price]:
        """The prices as `core` takes them, by model."""
        return {model: Price(**price.model_dump()) for model, price in self.prices.items()}

    @property
    def models(self) -> tuple[str, ...]:
        """The models and aliases that all upstreams offer; empty when an upstream decides."""
        named: dict[str, None] = {}
        for upstream in self.upstreams or (self.upstream,):
            if not upstream.models or ANY_MODEL in upstream.models:
                return ()
            named |= dict.fromkeys((*upstream.models, *upstream.aliases))
        return tuple(named)

    @property
    def store_url(self) -> str:
        return self.store or f"sqlite:///{self.folder.absolute() / 'nightmill.sqlite'}"

    @property
    def is_embedded(self) -> bool:
        """Whether the store belongs to one server: the folder lock proves that no other process uses it."""
        return self.store_url.startswith("sqlite")

    @property
    def store_timeout_s(self) -> float:
        """Timeout of a call to the store; a lease holder can retry before its lease lapses."""
        return 10.0 if self.is_embedded else max(1.0, min(10.0, self.worker.lease_ttl_s / 2))
