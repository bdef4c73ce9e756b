"""A model's settings become arguments that Ray accepts."""

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from nightmill.errors import SetupError
from nightmill.runtime.ray import model_apps
from nightmill.settings import RayModelSettings

if find_spec("ray") is None:
    pytest.skip("the extra 'ray' is not installed", allow_module_level=True)

MODEL = RayModelSettings(
    name="qwen", source="Qwen/Qwen2.5-7B", gpus=2, accelerator_type="L4", options={"max_model_len": 8192}
)


def fields(path: str, name: str) -> set[str]:
    """The fields of a class, read from the installed source: importing it needs vLLM."""
    found = find_spec("ray")
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).parent.joinpath(path).read_text(encoding="utf-8"))
    (written,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        line.target.id
        for line in written.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }


def test_vllm_gets_arguments_that_this_rays_config_knows() -> None:
    config = model_apps.llm_config(MODEL)
    configs = "llm/_internal/serve/core/configs/llm_config.py"
    assert config.keys() <= fields(configs, "LLMConfig")
    assert config["model_loading_config"].keys() <= fields(configs, "ModelLoadingConfig")
    assert config["engine_kwargs"] == {"tensor_parallel_size": 2, "max_model_len": 8192}
    assert config["accelerator_type"] == "L4"
    without_gpus = model_apps.llm_config(MODEL.model_copy(update={"gpus": 0, "accelerator_type": None}))
    assert without_gpus.keys() <= fields(configs, "LLMConfig")
    assert "accelerator_type" not in without_gpus


def test_the_application_is_built_by_rays_own_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_spec("ray")
    assert source is not None
    assert source.origin is not None
    text = Path(source.origin).parent.joinpath("serve/llm/__init__.py").read_text(encoding="utf-8")
    (builder,) = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name == "build_openai_app"
    ]
    assert [argument.arg for argument in builder.args.args] == ["llm_serving_args"]
    assert "llm_configs" in fields("llm/_internal/serve/core/ingress/builder.py", "LLMServingArgs")

    built = SimpleNamespace(LLMConfig=dict, build_openai_app=lambda arguments: arguments)
    monkeypatch.setattr(model_apps.importlib, "import_module", lambda _: built)
    assert model_apps.vllm_application(MODEL) == {"llm_configs": [model_apps.llm_config(MODEL)]}


def of_ones_own(settings: RayModelSettings) -> str:
    return f"serves {settings.name}"


def test_an_application_of_the_user_is_made_by_the_named_function() -> None:
    path = f"{of_ones_own.__module__}:of_ones_own"
    module = inspect.getmodule(of_ones_own)
    assert module is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, of_ones_own.__module__, module)
        made = model_apps.application_of(MODEL.model_copy(update={"engine": path}))
    assert made == "serves qwen"


@pytest.mark.parametrize("engine", ["sglang", "no_such_module:app", "json:no_such_name"])
def test_an_engine_that_can_not_be_imported_is_an_error(engine: str) -> None:
    with pytest.raises(SetupError, match="can't be imported on this node"):
        model_apps.application_of(MODEL.model_copy(update={"engine": engine}))
