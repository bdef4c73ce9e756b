"""The Helm chart, rendered without a cluster and checked with the schemas of Kubernetes and our settings."""

import re
from pathlib import PurePath
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError

from nightmill.roles.registry import WORKER, ProcessGroup, roles_of
from tests.deploy.kubernetes import Object, check
from tests.deploy.parsing import ROOT, loaded, understood

CHART = ROOT / "deploy/helm/nightmill"
VALUES = sorted(CHART.glob("ci/*.yaml"))
COMPONENTS = ("api", "worker", "keeper")


@pytest.fixture(scope="module")
def chart() -> Chart:
    return Chart.load(CHART)


def values_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text())


def render(chart: Chart, values: dict[str, Any], **options: Any) -> list[Object]:
    chart.validate_schema(values)
    templates = chart.render(values, name="demo", namespace="batches", **options)
    return [
        found
        for path, text in sorted(templates.items())
        if path.endswith(".yaml")
        for found in yaml.safe_load_all(text)
        if found
    ]


@pytest.fixture(scope="module", params=[path.stem for path in VALUES])
def objects(chart: Chart, request: pytest.FixtureRequest) -> list[Object]:
    return render(chart, values_of(request.param))


@pytest.fixture(scope="module")
def everything(chart: Chart) -> list[Object]:
    return render(chart, values_of("everything"))


def of(objects: list[Object], kind: str, ending: str = "") -> list[Object]:
    return [it for it in objects if it["kind"] == kind and it["metadata"]["name"].endswith(ending)]


def deployments(objects: list[Object]) -> dict[str, Object]:
    return {name: of(objects, "Deployment", f"-{name}")[0] for name in COMPONENTS}


def pods(objects: list[Object]) -> list[Object]:
    return [it["spec"]["template"] for kind in ("Deployment", "Job") for it in of(objects, kind)]


def variables(pod: Object) -> dict[str, str]:
    [container] = pod["spec"]["containers"]
    return {it["name"]: it["value"] for it in container["env"]}


def mounted(pod: Object) -> set[str]:
    """The path of every file that is mounted into the pod from secrets and settings."""
    [container] = pod["spec"]["containers"]
    folders = {it["name"]: PurePath(it["mountPath"]) for it in container["volumeMounts"]}
    assert set(folders) == {it["name"] for it in pod["spec"]["volumes"]}
    found = set()
    for volume in pod["spec"]["volumes"]:
        for item in volume.get("secret", {}).get("items", []):
            found.add(str(folders[volume["name"]] / item["path"]))
        if "configMap" in volume:
            found.add(str(folders[volume["name"]] / "nightmill.toml"))
    return found


def settings_of(objects: list[Object], pod: Object) -> Any:
    toml = {"nightmill.toml": of(objects, "ConfigMap")[0]["data"]["nightmill.toml"]}
    return loaded(
        variables(pod), content=lambda path: toml.get(PurePath(path).name, "postgresql://db/nightmill")
    )


def test_helm_lint_finds_no_error():
    report = helm_python.lint(CHART, values_of("minimal"), strict=True)
    assert report["errors"] == []
    assert [it for it in report["messages"] if it["severity"] > 1] == []


def test_every_object_is_valid_for_kubernetes(objects: list[Object]):
    assert len(objects) > 5
    for found in objects:
        check(found)


def test_the_validation_finds_an_unknown_field(everything: list[Object]):
    for kind, wrong in [
        ("Deployment", kubernetes_validate.ValidationError),
        ("ScaledObject", jsonschema.ValidationError),
    ]:
        found = of(everything, kind)[0]
        with pytest.raises(wrong):
            check(found | {"spec": found["spec"] | {"replicaz": 1}})


def test_names_of_objects_are_unique(objects: list[Object]):
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"blobs": {"url": ""}}, "url"),
        ({"blobs": {"url": "/a/folder"}}, "url"),
        ({"upstream": {"url": ""}}, "url"),
        ({"upstream": {"url": "vllm:8000"}}, "url"),
        ({"emulate": True}, "url"),
        ({"emulate": "true"}, "emulate"),
        ({"replicaCount": 3}, "replicaCount"),
        ({"api": {"replicas": 0}}, "replicas"),
        ({"api": {"replica": 2}}, "replica"),
        ({"worker": {"processes": 0}}, "processes"),
        ({"worker": {"autoscaling": {"kind": "vpa"}}}, "kind"),
        ({"worker": {"autoscaling": {"kind": "hpa", "minReplicas": 0}}}, "minReplicas"),
        ({"keeper": {"replicas": 0}}, "replicas"),
        ({"keeper": {"podDisruptionBudget": {"maxUnavailable": 0}}}, "maxUnavailable"),
        ({"store": {"existingSecret": ""}}, "existingSecret"),
        ({"store": {"url": "postgresql://nightmill:secret@db/nightmill"}}, "url"),
        ({"settings": {"store": "postgresql://nightmill:secret@db/nightmill"}}, "settings"),
        ({"settings": {"blobs": {"secret_access_key": "secret"}}}, "blobs"),
        ({"settings": {"upstream": {"api_key": "secret"}}}, "upstream"),
        ({"settings": {"api": {"drain_s": 600}}}, "api"),
        ({"ingress": {"enabled": True}}, "host"),
        ({"drainSeconds": -1}, "drainSeconds"),
        ({"service": {"port": 80_000}}, "port"),
        ({"extraEnv": [{"value": "x"}]}, "extraEnv"),
    ],
    ids=str,
)
def test_the_values_schema_refuses_invalid_values(chart: Chart, change: dict[str, Any], named: str):
    values = chart.merge_values(values_of("minimal"))
    for name, value in change.items():
        values[name] = values[name] | value if isinstance(value, dict) and name in values else value
    with pytest.raises(HelmError, match=named):
        chart.validate_schema(values)


def test_without_values_the_error_names_what_is_missing(chart: Chart):
    with pytest.raises(HelmError, match="blobs"):
        chart.validate_schema({})


def test_every_command_line_and_environment_is_valid(objects: list[Object]):
    for pod in pods(objects):
        [container] = pod["spec"]["containers"]
        understood(container["args"])
        assert settings_of(objects, pod).store == "postgresql://db/nightmill"


def test_settings_reach_nightmill_unchanged(everything: list[Object]):
    settings = settings_of(everything, deployments(everything)["worker"]["spec"]["template"])
    assert settings.limits.lines_per_file == 1_000_000
    assert settings.limits.completion_windows == ("24h", "7d")
    assert settings.blobs.part_interval_s == 2.5
    assert settings.upstream.headers == {"X-Team": "night"}
    assert settings.upstream.concurrency == 512
    assert settings.log_level == "debug"


def test_every_file_that_the_environment_names_is_mounted(objects: list[Object]):
    for pod in pods(objects):
        named = {
            value
            for name, value in variables(pod).items()
            if re.fullmatch("NIGHTMILL_(.*_FILE|CONFIG)", name)
        }
        assert named == mounted(pod)


def test_no_object_contains_a_secret(everything: list[Object]):
    for pod in pods(everything):
        for name in variables(pod):
            assert not re.fullmatch("NIGHTMILL_(.*_(KEY|KEY_ID|TOKEN)|STORE)", name)
    assert of(everything, "Secret") == []


def test_every_role_is_assigned(objects: list[Object]):
    words = {
        name: it["spec"]["template"]["spec"]["containers"][0]["args"]
        for name, it in deployments(objects).items()
    }
    assert understood(words["api"])["workers"] == 0
    roles = [understood(words[name])["roles"] for name in ("worker", "keeper")]
    assert roles == [WORKER, ",".join(roles_of(ProcessGroup.KEEPER))]


@pytest.mark.parametrize(("values", "making_up"), [("trying-out", ["worker"]), ("minimal", [])])
def test_only_workers_emulate_answers_and_only_when_configured(
    chart: Chart, values: str, making_up: list[str]
):
    objects = render(chart, values_of(values))
    pods = {name: it["spec"]["template"] for name, it in deployments(objects).items()}
    assert [name for name, pod in pods.items() if settings_of(objects, pod).emulator.enabled] == making_up


def test_selectors_match_exactly_their_own_pods(everything: list[Object]):
    labels = {
        name: it["spec"]["template"]["metadata"]["labels"] for name, it in deployments(everything).items()
    }
    migrating = of(everything, "Job")[0]["spec"]["template"]["metadata"]["labels"]

    def found(selector: dict[str, str]) -> list[str]:
        assert not selector.items() <= migrating.items()
        return [name for name, those in labels.items() if selector.items() <= those.items()]

    for name, it in deployments(everything).items():
        assert found(it["spec"]["selector"]["matchLabels"]) == [name]
        for spread in it["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert found(spread["labelSelector"]["matchLabels"]) == [name]
        assert found(
            of(everything, "PodDisruptionBudget", f"-{name}")[0]["spec"]["selector"]["matchLabels"]
        ) == [name]
        assert found(
            of(everything, "NetworkPolicy", f"-{name}")[0]["spec"]["podSelector"]["matchLabels"]
        ) == [name]
    [service] = of(everything, "Service")
    assert found(service["spec"]["selector"]) == ["api"]
    [monitor] = of(everything, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_ports_and_paths_match_the_api(everything: list[Object]):
    [container] = deployments(everything)["api"]["spec"]["template"]["spec"]["containers"]
    [port] = container["ports"]
    assert port == {
        "name": "http",
        "containerPort": int(variables({"spec": {"containers": [container]}})["NIGHTMILL_API__PORT"]),
    }
    assert (
        container["livenessProbe"]["httpGet"]
        == container["startupProbe"]["httpGet"]
        == {"path": "/health", "port": "http"}
    )
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    [service] = of(everything, "Service")
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    [monitor] = of(everything, "ServiceMonitor")
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s"}]
    [ingress] = of(everything, "Ingress")
    [path] = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["path"] == "/v1"
    assert path["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": "http"}}


def test_autoscalers_name_a_deployment_that_sets_no_replica_count(chart: Chart, everything: list[Object]):
    by_metric = render(chart, values_of("by-metric"))
    for objects, kind, name in [
        (everything, "ScaledObject", "worker"),
        (everything, "HorizontalPodAutoscaler", "api"),
        (by_metric, "HorizontalPodAutoscaler", "worker"),
    ]:
        [scaler] = of(objects, kind)
        scaled = deployments(objects)[name]
        assert scaler["spec"]["scaleTargetRef"]["name"] == scaled["metadata"]["name"]
        assert "replicas" not in scaled["spec"]
    assert deployments(everything)["keeper"]["spec"]["replicas"] == 2
    [trigger] = of(everything, "ScaledObject")[0]["spec"]["triggers"]
    [authentication] = of(everything, "TriggerAuthentication")
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    assert authentication["spec"]["secretTargetRef"] == [
        {"parameter": "connection", "name": "postgres-app", "key": "uri"}
    ]


def test_migrations_run_before_and_after_an_upgrade_and_need_no_other_object(everything: list[Object]):
    before, after = of(everything, "Job", "-before")[0], of(everything, "Job", "-after")[0]
    assert before["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert after["metadata"]["annotations"]["helm.sh/hook"] == "post-upgrade"
    for job, stage in [(before, "--before"), (after, "--after")]:
        assert (
            job["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
            == "before-hook-creation,hook-succeeded"
        )
        pod = job["spec"]["template"]["spec"]
        assert pod["containers"][0]["args"] == ["migrate", stage]
        assert "serviceAccountName" not in pod
        assert not any("configMap" in volume for volume in pod["volumes"])


def test_the_migration_after_the_upgrade_can_be_disabled(chart: Chart):
    assert of(render(chart, values_of("trying-out")), "Job", "-after") == []


def test_pods_follow_the_restricted_pod_security_standard(objects: list[Object]):
    for pod in pods(objects):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        writable = [it["name"] for it in container["volumeMounts"] if not it.get("readOnly")]
        assert writable == ["tmp"]


def test_kubernetes_waits_longer_than_a_drain(objects: list[Object]):
    for it in deployments(objects).values():
        pod = it["spec"]["template"]
        pause_s = (
            pod["spec"]["containers"][0]
            .get("lifecycle", {})
            .get("preStop", {})
            .get("sleep", {})
            .get("seconds", 0)
        )
        drain_s = settings_of(objects, pod).api.drain_s
        assert pod["spec"]["terminationGracePeriodSeconds"] >= drain_s + pause_s + 5


def test_changed_settings_restart_the_pods(chart: Chart):
    def sums(settings: dict[str, Any]) -> set[str]:
        objects = render(chart, values_of("minimal") | {"settings": settings})
        return {
            it["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
            for it in deployments(objects).values()
        }

    assert sums({"log_level": "debug"}).isdisjoint(sums({"log_level": "info"}))


def test_workers_and_keepers_accept_no_connections(everything: list[Object]):
    for name in ("worker", "keeper"):
        assert of(everything, "NetworkPolicy", f"-{name}")[0]["spec"]["ingress"] == []


def test_the_notes_say_how_to_create_the_first_key(chart: Chart):
    [notes] = [
        text
        for path, text in chart.render(values_of("minimal"), name="demo", namespace="batches").items()
        if path.endswith("NOTES.txt")
    ]
    [command] = re.findall(r"kubectl --namespace batches exec deploy/(\S+) -- nightmill (.+)", notes)
    assert command[0] == deployments(render(chart, values_of("minimal")))["keeper"]["metadata"]["name"]
    understood(command[1].split())


def test_the_chart_has_the_version_of_the_package():
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert metadata["appVersion"] == metadata["version"] == version[1]
