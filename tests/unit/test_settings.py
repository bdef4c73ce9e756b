from pathlib import Path

import pytest

from nightmill.errors import SetupError
from nightmill.settings import Settings, as_message, from_message, load


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


_TWO = """
[upstream]
timeout_s = 5
[[upstreams]]
name = "gpu-a"
url = "http://a/v1"
[[upstreams]]
name = "b"
url = "http://b/v1"
timeout_s = 7
"""


def from_toml(tmp_path: Path, text: str, **environment: str) -> Settings:
    config = tmp_path / "nightmill.toml"
    config.write_text(text)
    return load(environment=environment, config=config)


def test_a_single_upstream_with_a_url_is_the_only_one_in_effect():
    settings = load(environment={"NIGHTMILL_UPSTREAM__URL": "http://a/v1"})
    assert [(each.name, each.url) for each in settings.all_upstreams] == [("default", "http://a/v1")]
    assert load(environment={}).all_upstreams == ()


def test_several_upstreams_take_the_section_upstream_as_their_defaults(tmp_path: Path):
    settings = from_toml(tmp_path, _TWO)
    assert [(each.name, each.timeout_s) for each in settings.all_upstreams] == [("gpu-a", 5), ("b", 7)]
    assert from_message(as_message(settings)) == settings


def test_the_environment_completes_an_upstream_of_the_file_and_adds_another(tmp_path: Path):
    settings = from_toml(
        tmp_path,
        _TWO,
        NIGHTMILL_UPSTREAMS__GPU_A__API_KEY="sk-1",
        NIGHTMILL_UPSTREAMS__GPU_A__MODELS="m, n",
        NIGHTMILL_UPSTREAMS__C__URL="http://c/v1",
    )
    first, _, third = settings.all_upstreams
    assert first.name == "gpu-a"
    assert first.models == ("m", "n")
    assert first.api_key is not None
    assert (third.name, third.url) == ("c", "http://c/v1")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[[upstreams]]\nurl = "http://a"', "needs a name"),
        ('[[upstreams]]\nnam = "a"', "did you mean 'name' where it says 'nam'"),
        ('[[upstreams]]\nname = "a"\n[[upstreams]]\nname = "a"', "two .* named 'a'"),
        ('[upstream]\nurl = "http://q"' + _TWO.replace("[upstream]", ""), r"upstream.url .* move it"),
        ('[upstream]\napi_key = "sk"' + _TWO.replace("[upstream]", ""), r"upstream.api_key .* move it"),
        (_TWO + 'url = ""', "not valid TOML"),
        (_TWO + "colour = 3", "upstreams.b.colour.*no such setting"),
        (_TWO + "requests_per_minut = 3", "did you mean 'requests_per_minute'"),
        (_TWO + 'concurrency = "many"', "upstreams.b.concurrency.*NIGHTMILL_UPSTREAMS__B__.*'many'"),
        (_TWO + "concurrency = 0", "upstreams.b.concurrency.*0 is not allowed"),
        (_TWO + 'endpoints = ["/v1/chat"]', "upstreams.b.*'/v1/chat' is not one of"),
        (_TWO + 'models = ["x"]\naliases = {y = "z"}', "'y' stands for 'z', which is not in models"),
        (_TWO + 'tls_key = "x"', "tls_key has no effect without tls_certificate"),
        ('[[upstreams]]\nname = "a b"\nurl = "http://a"', "the name 'a b' may hold"),
        ('[[upstreams]]\nname = "a"', "upstreams.a.url must be a URL"),
        ('[[upstreams]]\nname = "a"\nurl = "auto"', "upstreams.a.url must be a URL"),
        ('[[upstreams]]\nname="a"\nurl="http://a"\n[[upstreams]]\nname="A"\nurl="http://b"', "two .*'A'"),
    ],
)
def test_contradictory_upstreams_are_refused_in_one_line(tmp_path: Path, text: str, named: str):
    with pytest.raises(SetupError, match=named) as caught:
        from_toml(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_typing_error_is_named_before_the_setting_that_is_missing_for_it(tmp_path: Path):
    with pytest.raises(SetupError) as caught:
        from_toml(tmp_path, '[[emulator.faults]]\nfalt = "slow"')
    assert "faults.0.falt" in str(caught.value)
    assert "no such setting; did you mean 'fault'?" in str(caught.value)
    with pytest.raises(SetupError, match=r"faults\.0\.fault.*it is missing"):
        from_toml(tmp_path, "[[emulator.faults]]\ntimes = 2")


def test_a_value_that_may_be_a_key_is_not_shown():
    with pytest.raises(SetupError) as caught:
        load(environment={"NIGHTMILL_API__PORT": "sk-0123456789abcdef0123456789"})
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NIGHTMILL_PORT", "'api.port' (NIGHTMILL_API__PORT) or 'ray.model.port'"),
        ("NIGHTMILL_API_PORT", "did you mean 'api.port' (NIGHTMILL_API__PORT)? See docs/settings.md"),
        ("NIGHTMILL_API__PROT", "did you mean 'port'?"),
        ("NIGHTMILL_WROKER__PROCESSES", "did you mean 'worker'?"),
        ("NIGHTMILL_ZZZ", "there is no such setting; see docs/settings.md"),
    ],
)
def test_an_unknown_name_leads_to_the_setting_that_was_probably_meant(name: str, meant: str):
    with pytest.raises(SetupError) as caught:
        load(environment={name: "1"})
    assert meant in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NIGHTMILL_API__PORT", "99999", "it must be at most 65535"),
        ("NIGHTMILL_API__DRAIN_S", "x", "'x' is not allowed: it must be a number"),
        (
            "NIGHTMILL_UPSTREAM__CONCURRENCY",
            "many",
            "it must be a whole number or 'auto'",
        ),
        ("NIGHTMILL_KEYLESS_ON_LOOPBACK", "maybe", "'maybe' is not allowed: it must be true or false"),
        ("NIGHTMILL_LOG_LEVEL", "all", "it must be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_wrong_value_is_explained_in_plain_words(name: str, value: str, said: str):
    with pytest.raises(SetupError) as caught:
        load(environment={name: value})
    assert said in str(caught.value)


def test_rows_are_kept_for_a_day_at_least():
    assert load(environment={"NIGHTMILL_RETENTION__ROWS_KEPT_S": "86400"}).retention.rows_kept_s == 86_400
    with pytest.raises(SetupError, match="rows_kept_s must be 0 or at least 86400, which is a day"):
        load(environment={"NIGHTMILL_RETENTION__ROWS_KEPT_S": "3600"})
