"""Which upstreams are in effect: those of the settings, as they were changed at run time."""

import json

from nightmill.core.upstream_setting import UpstreamSetting, UpstreamState
from nightmill.settings import UpstreamSettings, load
from nightmill.settings.effective import (
    EffectiveUpstream,
    InvalidSetting,
    Origin,
    document_of,
    effective_of,
    effective_upstreams,
    invalid_settings,
    managed_upstreams,
)

GPU = UpstreamSettings.model_validate(
    {"name": "gpu", "url": "http://gpu:8000/v1", "api_key": "secret", "tls_ca": "/ca.pem"}
)
BOX = UpstreamSettings(name="box", url="http://box:11434/v1")


def stored(
    name: str,
    document: str | None = None,
    state: UpstreamState = UpstreamState.ACTIVE,
    *,
    revision: int = 3,
) -> UpstreamSetting:
    return UpstreamSetting(name, document, state, revision, 1.0)


def newer(name: str) -> str:
    return json.dumps({"name": name, "url": "http://new/v1", "of_a_newer_version": 1})


def test_without_stored_settings_the_file_holds():
    assert effective_upstreams([GPU, BOX], []) == [EffectiveUpstream(GPU), EffectiveUpstream(BOX)]


def test_a_document_survives_with_its_key_and_leaves_out_defaults():
    document = document_of(GPU)
    assert json.loads(document) == {
        "name": "gpu",
        "url": "http://gpu:8000/v1",
        "api_key": "secret",
        "tls_ca": "/ca.pem",
    }
    assert UpstreamSettings.model_validate_json(document) == GPU


def test_a_stored_state_changes_the_state_only():
    (found,) = effective_upstreams([GPU], [stored("gpu", state=UpstreamState.PAUSED)])
    assert found == EffectiveUpstream(GPU, UpstreamState.PAUSED, 3, Origin.FILE)


def test_a_stored_document_replaces_the_settings_of_the_file():
    changed = GPU.model_copy(update={"weight": 0.0})
    (found,) = effective_upstreams([GPU], [stored("gpu", document_of(changed), UpstreamState.DRAINING)])
    assert found == EffectiveUpstream(changed, UpstreamState.DRAINING, 3, Origin.BOTH)


def test_added_upstreams_follow_those_of_the_file_in_the_order_of_their_names():
    others = [UpstreamSettings(name=name, url="http://x/v1") for name in ("zeta", "alpha")]
    found = effective_upstreams([GPU], [stored(other.name, document_of(other)) for other in others])
    assert [(upstream.name, upstream.origin) for upstream in found] == [
        ("gpu", Origin.FILE),
        ("alpha", Origin.RUN_TIME),
        ("zeta", Origin.RUN_TIME),
    ]


def test_removed_upstreams_are_left_out():
    removed = [
        stored("gpu", state=UpstreamState.REMOVED),
        stored("box", document_of(BOX), UpstreamState.REMOVED),
        stored("extra", newer("extra"), UpstreamState.REMOVED),
    ]
    assert effective_upstreams([GPU], removed) == []
    assert invalid_settings(removed) == []


def test_a_state_without_an_upstream_in_the_file_is_ignored():
    assert effective_upstreams([], [stored("gone", state=UpstreamState.PAUSED)]) == []


def test_a_document_that_cannot_be_read_is_reported_and_pauses_the_upstream_of_the_file():
    settings = [stored("gpu", newer("gpu")), stored("extra", newer("extra"))]
    (found,) = effective_upstreams([GPU], settings)
    assert found == EffectiveUpstream(GPU, UpstreamState.PAUSED, 3, Origin.BOTH)
    assert invalid_settings(settings) == [
        InvalidSetting("gpu", "of_a_newer_version: Extra inputs are not permitted"),
        InvalidSetting("extra", "of_a_newer_version: Extra inputs are not permitted"),
    ]


def test_a_document_without_a_url_or_with_another_name_is_invalid():
    documents = ['{"name": "gpu"}', '{"name": "other", "url": "http://x/v1"}', "no JSON"]
    for document in documents:
        assert effective_upstreams([], [stored("gpu", document)]) == []
        assert len(invalid_settings([stored("gpu", document)])) == 1


def test_the_reason_never_holds_a_value():
    document = json.dumps({"name": "gpu", "url": "http://x/v1", "timeout_s": "sk-secret"})
    (invalid,) = invalid_settings([stored("gpu", document)])
    assert "sk-secret" not in invalid.reason


def test_of_an_upstream_that_nightmill_runs_only_the_state_counts():
    emulating = load(flags={"emulator": {"enabled": True}}, environment={})
    emulating = emulating.model_copy(
        update={"upstream": emulating.upstream.model_copy(update={"url": "http://127.0.0.1:5/v1"})}
    )
    other = UpstreamSettings(url="http://other/v1")
    paused = stored("default", document_of(other), UpstreamState.PAUSED)
    (found,) = effective_of(emulating, [paused])
    assert found == EffectiveUpstream(emulating.upstream, UpstreamState.PAUSED, 3, Origin.FILE)
    (found,) = effective_of(emulating, [stored("default", state=UpstreamState.REMOVED)])
    assert found.state is UpstreamState.ACTIVE
    assert managed_upstreams(load(flags={"upstream": {"url": "http://x/v1"}}, environment={})) == frozenset()
