"""Commands of the guides that cannot run in a test still name existing flags, files and services."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from helm_python import Chart

from tests.deploy.parsing import ROOT, understood

GUIDES = sorted(ROOT.glob("docs/deploy/*.md"))
BLOCK = re.compile(r"^```bash[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"(?:^|[\s/`])nightmill(?::[\w.]+)? ((?:serve|work|keys|migrate|move|backup|check|submit)\b[^\n`]*)"
)
OURS = re.compile(r"(?:deploy/(?:compose|helm|kuberay|systemd)/[\w./@-]+\w|compose\.yaml|Dockerfile)")


def commands(text: str) -> list[str]:
    return [line.partition(" #")[0] for line in COMMAND.findall(re.sub(r"\\\n\s*", "", text))]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_nightmill_command_of_a_guide_is_valid(guide: Path):
    found = commands(guide.read_text())
    assert found
    for command in found:
        words = shlex.split(re.split(r"[;|&>)]", command)[0].rstrip(",.") or "")
        understood(words)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_repository_file_that_a_guide_names_exists(guide: Path):
    made = {"deploy/compose/secrets"}
    for name in set(OURS.findall(guide.read_text())) - made:
        assert (ROOT / name).exists(), name


def test_compose_commands_name_services_that_exist():
    services = set(yaml.safe_load((ROOT / "compose.yaml").read_text())["services"])
    text = (ROOT / "docs/deploy/many-workers.md").read_text()
    named = set(re.findall(r"docker compose (?:run --rm|exec -T) (\w+)", text)) | set(
        re.findall(r"--scale (\w+)=", text)
    )
    assert named
    assert named <= services
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == services


def test_chart_values_in_the_guide_are_accepted_by_the_chart():
    chart = Chart.load(ROOT / "deploy/helm/nightmill")
    text = (ROOT / "docs/deploy/kubernetes.md").read_text()
    first, *others = [
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    for values in (first, *(first | other for other in others)):
        chart.validate_schema(values)
    for name in set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)):
        below = chart.values
        for step in name.split("."):
            below = below[step]


def test_each_way_to_deploy_has_its_guide():
    assert [guide.stem for guide in GUIDES] == ["kubernetes", "many-workers", "one-machine", "ray"]
    linked = (ROOT / "docs/fleet.md").read_text() + (ROOT / "README.md").read_text()
    for guide in GUIDES:
        assert f"deploy/{guide.name}" in linked
        for block in BLOCK.findall(guide.read_text()):
            assert "<" not in re.sub(r"<<<", "", block), "bash would read the placeholder as a redirection"
