"""The KubeRay example: valid Kubernetes objects, one image, and settings that agree on both sides."""

import re
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import pytest
import yaml

from nightmill.settings import PREFIX
from tests.deploy.container import USER_ID
from tests.deploy.kubernetes import Object, check
from tests.deploy.parsing import ROOT, loaded, understood


def read(name: str) -> list[Object]:
    return list(yaml.safe_load_all((ROOT / "deploy/kuberay" / name).read_text()))


@pytest.fixture(scope="module")
def cluster() -> Object:
    [found] = read("raycluster.yaml")
    return found["spec"]


@pytest.fixture(scope="module")
def deployment() -> Object:
    return read("nightmill.yaml")[0]["spec"]


def nodes(cluster: Object) -> list[Object]:
    return [it["template"] for it in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def container(pod: Object) -> Object:
    [found] = pod["spec"]["containers"]
    return found


def variables(pod: Object) -> dict[str, str]:
    return {it["name"]: it["value"] for it in container(pod)["env"] if "value" in it}


def settings_of(pod: Object) -> Any:
    return loaded(variables(pod), content=lambda _: "postgresql://db/nightmill")


@pytest.mark.parametrize("name", ["raycluster.yaml", "nightmill.yaml"])
def test_every_object_is_valid_for_kubernetes(name: str):
    for found in read(name):
        check(found)
        if found["kind"] == "RayCluster":
            for pod in nodes(found["spec"]):
                check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": pod["spec"]})


def test_the_versions_of_ray_python_and_nightmill_are_the_same_everywhere(
    cluster: Object, deployment: Object
):
    images = {container(pod)["image"] for pod in (*nodes(cluster), deployment["template"])}
    assert len(images) == 1
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    assert cluster["rayVersion"] == ray.__version__
    assert f":{version('nightmill')}-ray" in images.pop()


def test_command_lines_and_settings_are_valid(deployment: Object):
    assert understood(container(deployment["template"])["args"])["engine"] == "ray"
    settings = settings_of(deployment["template"])
    assert settings.store == "postgresql://db/nightmill"
    assert settings.blobs.url is not None
    assert settings.upstream.url is not None


def test_nightmill_connects_to_the_cluster_with_its_token(cluster: Object, deployment: Object):
    [named] = read("raycluster.yaml")
    client = next(it for it in container(nodes(cluster)[0])["ports"] if it["name"] == "client")
    address = settings_of(deployment["template"]).ray.address
    assert address == f"ray://{named['metadata']['name']}-head-svc:{client['containerPort']}"
    assert cluster["authOptions"]["mode"] == variables(deployment["template"])["RAY_AUTH_MODE"] == "token"
    [token] = [
        it["valueFrom"] for it in container(deployment["template"])["env"] if it["name"] == "RAY_AUTH_TOKEN"
    ]
    assert token["secretKeyRef"] == {"name": cluster["authOptions"]["secretName"], "key": "auth_token"}


def test_nodes_have_the_settings_that_are_not_sent_to_workers(cluster: Object, deployment: Object):
    assert settings_of(deployment["template"]).ray.secrets == "on_nodes"
    [group] = cluster["workerGroupSpecs"]

    def secret(pod: Object) -> dict[str, str]:
        return {key: value for key, value in variables(pod).items() if re.fullmatch(f"{PREFIX}.*_FILE", key)}

    assert secret(group["template"]) == secret(deployment["template"])
    for pod in (group["template"], deployment["template"]):
        folders = {it["mountPath"] for it in container(pod)["volumeMounts"]}
        assert {str(PurePath(path).parent) for path in secret(pod).values()} <= folders
        assert {it["name"] for it in container(pod)["volumeMounts"]} == {
            it["name"] for it in pod["spec"]["volumes"]
        }


def test_the_nodes_have_capacity_for_all_workers(cluster: Object, deployment: Object):
    settings = settings_of(deployment["template"]).ray
    [group] = cluster["workerGroupSpecs"]
    cores = float(container(group["template"])["resources"]["limits"]["cpu"])
    assert cluster["enableInTreeAutoscaling"] is True
    assert group["minReplicas"] == settings.min_workers == 0
    assert settings.max_workers <= group["maxReplicas"] * int(cores / settings.cpus_per_worker)


def test_no_container_runs_as_root_and_a_stop_leaves_time_to_drain(cluster: Object, deployment: Object):
    for pod in (*nodes(cluster), deployment["template"]):
        assert pod["spec"]["securityContext"]["runAsUser"] == USER_ID
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container(pod)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container(pod)["securityContext"]["allowPrivilegeEscalation"] is False
    drain_s = settings_of(deployment["template"]).api.drain_s
    for pod in (cluster["workerGroupSpecs"][0]["template"], deployment["template"]):
        assert pod["spec"]["terminationGracePeriodSeconds"] >= drain_s + 10
