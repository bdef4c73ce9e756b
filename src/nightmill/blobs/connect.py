"""Creates the client of an object store from the settings.

The scheme of the URL selects the kind of store. No request is made here (see `bucket`), and settings that
can't be used give an error of one line without secrets.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

from nightmill.blobs.bucket import Bucket
from nightmill.errors import SetupError
from nightmill.settings import BlobSettings

if TYPE_CHECKING:
    from obstore.store import AzureConfig, ClientConfig, GCSConfig, RetryConfig, S3Config


def connect(settings: BlobSettings) -> Bucket:
    """Makes no request.

    Raises:
        SetupError: the settings name an unknown kind of store, or an option that the store does not have.
    """
    assert settings.url is not None
    url = urlsplit(settings.url)
    name = f"{url.scheme}://{url.netloc}{url.path}".rstrip("/")
    prefix = url.path.strip("/") or None
    client: ClientConfig = {
        "allow_http": settings.allow_http,
        "connect_timeout": timedelta(seconds=min(settings.timeout_s, 10)),
        "read_timeout": timedelta(seconds=settings.timeout_s),
        # Limits a whole request, and so the duration of a download.
        "timeout": timedelta(days=1),
    }
    retry: RetryConfig = {
        "max_retries": 100 if settings.retry_s else 0,
        "retry_timeout": timedelta(seconds=settings.retry_s),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=5),
            "base": 2,
        },
    }
    try:
        match url.scheme:
            case "s3" if url.netloc:
                store = S3Store(
                    url.netloc,
                    prefix=prefix,
                    config=_s3_config(settings),
                    client_options=client,
                    retry_config=retry,
                )
            case "gs" if url.netloc:
                store = GCSStore(
                    url.netloc,
                    prefix=prefix,
                    config=_gcs_config(settings),
                    client_options=client,
                    retry_config=retry,
                )
            case "az" if url.netloc and prefix:
                container, _, below = prefix.partition("/")
                store = AzureStore(
                    container,
                    prefix=below or None,
                    config=_azure_config(settings, account=url.netloc),
                    client_options=client,
                    retry_config=retry,
                )
            case "memory":
                store = MemoryStore()
            case _:
                raise SetupError(
                    f"blobs.url '{name}' is none of s3://bucket/prefix, gs://bucket/prefix and"
                    " az://account/container/prefix"
                )
    except (BaseError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise SetupError(f"blobs.url '{name}' can't be used: {reason}; see docs/settings.md") from None
    return Bucket(store, name=name)


def _s3_config(settings: BlobSettings) -> "S3Config":
    config: dict[str, str | bool] = {
        "region": settings.region,
        "virtual_hosted_style_request": settings.virtual_hosting,
    }
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    for name, secret in (
        ("access_key_id", settings.access_key_id),
        ("secret_access_key", settings.secret_access_key),
        ("session_token", settings.session_token),
    ):
        if secret is not None:
            config[name] = secret.get_secret_value()
    if settings.encryption is not None:
        config["server_side_encryption"] = settings.encryption
    if settings.encryption_key is not None:
        is_ours = settings.encryption == "sse-c"
        config["sse_customer_key_base64" if is_ours else "sse_kms_key_id"] = (
            settings.encryption_key.get_secret_value()
        )
    return cast("S3Config", {**config, **settings.options})


def _gcs_config(settings: BlobSettings) -> "GCSConfig":
    config: dict[str, str] = {}
    if settings.endpoint is not None:
        config["base_url"] = settings.endpoint
    if settings.secret_access_key is not None:
        config["service_account_key"] = settings.secret_access_key.get_secret_value()
    return cast("GCSConfig", {**config, **settings.options})


def _azure_config(settings: BlobSettings, *, account: str) -> "AzureConfig":
    config: dict[str, str] = {"account_name": account}
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    if settings.secret_access_key is not None:
        config["account_key"] = settings.secret_access_key.get_secret_value()
    return cast("AzureConfig", {**config, **settings.options})
