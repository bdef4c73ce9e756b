from pathlib import Path

import pytest

from nightmill.errors import SetupError
from nightmill.settings import as_message, from_message, load


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path):
    config = tmp_path / "nightmill.toml"
    config.write_text('[api]\nport = 1\nhost = "::1"\n[upstream]\nurl = "http://file/v1"\nconcurrency = 7\n')
    environment = {"NIGHTMILL_API__PORT": "2", "NIGHTMILL_UPSTREAM__URL": "http://environment/v1"}
    flags = {"api": {"port": 3}, "upstream": {"url": None}}
    settings = load(flags=flags, environment=environment, config=config)
    assert (settings.api.port, settings.api.host) == (3, "::1")
    assert (settings.upstream.url, settings.upstream.concurrency) == ("http://environment/v1", 7)


def test_the_clients_variables_are_never_taken_for_the_upstreams():
    environment = {"OPENAI_BASE_URL": "http://us/v1", "OPENAI_API_KEY": "sk-1"}
    settings = load(environment=environment)
    assert settings.upstream.url is None
    assert settings.upstream.api_key is None


def test_a_secret_may_come_from_a_file(tmp_path: Path):
    secret = tmp_path / "key"
    secret.write_text("sk-secret\n")
    settings = load(environment={"NIGHTMILL_UPSTREAM__API_KEY_FILE": str(secret)})
    assert settings.upstream.api_key is not None
    assert settings.upstream.api_key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(settings)


def test_a_setting_whose_own_name_ends_in_file_takes_its_value_from_the_variable():
    settings = load(
        environment={"NIGHTMILL_LIMITS__LINES_PER_FILE": "7", "NIGHTMILL_LIMITS__MODELS_PER_FILE": "2"}
    )
    assert (settings.limits.lines_per_file, settings.limits.models_per_file) == (7, 2)


def test_lists_are_split_at_commas():
    settings = load(environment={"NIGHTMILL_LIMITS__COMPLETION_WINDOWS": "24h, 7d"})
    assert settings.limits.completion_windows == ("24h", "7d")


def test_a_child_gets_the_same_tree_with_its_secrets():
    blobs = {"url": "s3://b/p", "access_key_id": "key", "secret_access_key": "sk-2", "options": {"a": "b"}}
    flags = {
        "upstream": {"api_key": "sk-1", "url": "http://x/v1"},
        "blobs": blobs,
        "model": {"path": "m.gguf"},
    }
    settings = load(flags=flags, environment={})
    again = from_message(as_message(settings))
    assert again == settings


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"NIGHTMILL_API__PORT": "ninety"}, "api.port"),
        ({"NIGHTMILL_API__PROT": "90"}, "api.prot"),
        ({"NIGHTMILL_WORKER__CANCEL_GRACE_S": "601"}, "worker.cancel_grace_s"),
        ({"NIGHTMILL_API": "x", "NIGHTMILL_API__PORT": "1"}, "NIGHTMILL_API"),
        ({"NIGHTMILL_UPSTREAM__API_KEY_FILE": "/nowhere/at/all"}, "NIGHTMILL_UPSTREAM__API_KEY_FILE"),
        ({"NIGHTMILL_CONFIG": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(environment: dict[str, str], named: str):
    with pytest.raises(SetupError, match=named) as caught:
        load(environment=environment)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old_name", "name"), [("upload_part_bytes", "multipart_part_bytes"), ("part_bytes", "answer_part_bytes")]
)
def test_the_old_name_of_a_part_size_is_accepted(old_name: str, name: str) -> None:
    settings = load(environment={f"NIGHTMILL_BLOBS__{old_name.upper()}": str(7 << 20)})
    assert getattr(settings.blobs, name) == 7 << 20
    assert from_message(as_message(settings)) == settings


def test_a_part_size_under_both_names_is_refused() -> None:
    both = {"part_bytes": 7 << 20, "answer_part_bytes": 8 << 20}
    with pytest.raises(SetupError, match=r"blobs\.part_bytes"):
        load(flags={"blobs": both}, environment={})
