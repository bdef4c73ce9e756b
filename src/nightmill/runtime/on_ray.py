"""What engine `ray` needs before anything is started."""

from importlib.util import find_spec

from nightmill.errors import SetupError
from nightmill.settings import Settings

_EMBEDDED = (
    "engine 'ray' needs a store and a place for bytes that every node reaches:"
    " NIGHTMILL_STORE=postgresql://user@host/database, and NIGHTMILL_BLOBS__URL=s3://bucket or a folder"
    " that all share"
)
_MISSING = "engine 'ray' needs Ray; run: pip install 'nightmill[ray]'"


def check_engine(settings: Settings) -> Settings:
    """The settings, with what follows from the engine filled in.

    Raises:
        SetupError: the store is this machine's own, the library is missing, or a bound makes no sense.
    """
    if settings.engine == "local":
        return settings
    if find_spec("ray") is None:
        raise SetupError(_MISSING)
    if settings.is_embedded:
        raise SetupError(_EMBEDDED)
    ray = settings.ray
    if ray.min_workers > ray.max_workers:
        raise SetupError(
            f"ray.min_workers ({ray.min_workers}) is more than ray.max_workers ({ray.max_workers})"
        )
    if ray.model.name is None or settings.upstream.models:
        return settings
    upstream = settings.upstream.model_copy(update={"models": (ray.model.name,)})
    return settings.model_copy(update={"upstream": upstream})
