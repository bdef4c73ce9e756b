from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from nightmill import client
from nightmill.core.batch import TRANSITIONS
from nightmill.core.failure import STATUSES
from nightmill.settings import Settings, load

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_generated_pages_are_current(generate: ModuleType):
    for page, text in generate.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is not current; run: make docs"


def test_a_setting_without_a_docstring_is_an_error(generate: ModuleType):
    class Section(BaseModel):
        model_config = ConfigDict(use_attribute_docstrings=True)
        documented: int = 1
        """The purpose of the setting."""
        mute: int = 2

    with pytest.raises(ValueError, match=r"'corner\.mute' \(NIGHTMILL_CORNER__MUTE\) has no docstring"):
        list(generate._section(Section, path="corner"))


def test_every_setting_is_on_the_page_once():
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    for name in setting_names(Settings):
        assert page.count(f"\n| `{name}` |") == 1


def test_every_exported_name_of_the_client_is_on_the_python_page():
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    for name in client.__all__:
        assert f"#### {name}\n" in page or f"| `{name}` |" in page or name == "Row", name


def test_ten_settings_come_first_each_with_a_flag_that_exists(generate: ModuleType):
    assert len(generate.TEN) == 10
    page, serve = generate.settings_page(), generate.cli_page().partition("## `nightmill serve")[2]
    flags = serve.partition("\n## ")[0]
    for setting, (_, flag) in generate.TEN.items():
        assert page.index(f"| `{setting}` |") < page.index("## Top level")
        assert flag is None or f"| `{flag} " in flags


def test_every_flag_and_argument_has_a_help_text(generate: ModuleType):
    cells = [line.split(" | ") for line in generate.cli_page().splitlines() if line.startswith("| `")]
    assert len(cells) > 40
    assert [row for row in cells if len(row[1].strip(" |")) < 8] == []


def test_bounds_choices_and_secrets_are_described(generate: ModuleType):
    page = generate.settings_page()
    assert "At least 0 and at most 65_535." in page
    assert "One of `lean`, `aiohttp`." in page
    assert "A secret: never shown." in page


def test_a_secret_setting_is_never_printed():
    assert "mellon" not in repr(load(flags={"upstream": {"api_key": "mellon"}}, environment={}))
    assert Settings().upstream.api_key is None or isinstance(Settings().upstream.api_key, SecretStr)


def test_the_state_graph_has_an_arrow_for_each_transition(generate: ModuleType):
    arrows = [line.strip() for line in generate.state_graph().splitlines() if "-->" in line]
    for (status, event), target in TRANSITIONS.items():
        [arrow] = [line for line in arrows if line.startswith(f"{status} --> {target}:")]
        assert event.value in arrow.partition(": ")[2].split(", ")


def test_the_state_graph_is_in_how_it_works(generate: ModuleType):
    assert generate.state_graph() in (DOCS / "how-it-works.md").read_text(encoding="utf-8")


def test_every_status_of_the_table_is_on_the_faults_page(generate: ModuleType):
    rows = generate.statuses()
    assert rows in (DOCS / "faults.md").read_text(encoding="utf-8")
    for status, kind in STATUSES.items():
        [row] = [row for row in rows.splitlines() if row.endswith(f"| {kind.value} |")]
        assert f"{status}" in row


def test_every_module_is_in_the_layer_diagram(generate: ModuleType):
    modules = {path.stem for path in DOCS.parent.glob("src/nightmill/[a-z]*") if path.suffix != ".typed"}
    assert set(generate.layers().strip("`\n").split()) == modules | {"text"}
    assert generate.layers() in (DOCS / "how-it-works.md").read_text(encoding="utf-8")


def setting_names(model: type[BaseModel], path: str = "") -> list[str]:
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{path}{name}.")
        else:
            names.append(path + name)
    return names
