"""Makes a Serve application of a model's settings: vLLM by `ray.serve.llm`, llama.cpp, or a function of the
user.

`model_actor` deploys all of them in the same way.
"""

import importlib
from typing import Any, cast

from nightmill.errors import SetupError
from nightmill.settings import RayModelSettings

_BUILT_IN = {
    "vllm": "nightmill.runtime.ray.model_apps:vllm_application",
    "llama.cpp": "nightmill.runtime.ray.llama_app:llama_application",
}


def application_of(settings: RayModelSettings) -> Any:
    """The application of the engine that the settings name.

    Raises:
        SetupError: the engine's function can't be imported on this node.
    """
    path = _BUILT_IN.get(settings.engine, settings.engine)
    module, _, name = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SetupError(
            f"ray.model.engine '{settings.engine}' can't be imported on this node: {error}"
        ) from None
    return make(settings)


def vllm_application(settings: RayModelSettings) -> Any:
    """vLLM behind Ray's own OpenAI-compatible server."""
    llm = importlib.import_module("ray.serve.llm")
    return llm.build_openai_app({"llm_configs": [llm.LLMConfig(**llm_config(settings))]})


def llm_config(settings: RayModelSettings) -> dict[str, Any]:
    """The arguments of `ray.serve.llm.LLMConfig`. Pure."""
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": settings.name, "model_source": settings.source or settings.name},
        "deployment_config": {"num_replicas": settings.replicas},
        "engine_kwargs": {"tensor_parallel_size": max(1, settings.gpus), **settings.options},
    }
    if settings.accelerator_type is not None:
        config["accelerator_type"] = settings.accelerator_type
    if settings.gpus == 0:
        config["placement_group_config"] = cast(
            "dict[str, Any]", {"bundle_per_worker": {"CPU": settings.cpus}}
        )
    return config
