"""The dashboard and the alert rules name metrics that exist, and a real Prometheus understands all of it."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nightmill.api.metric_list import METRICS
from tests.deploy.promql import grouping_labels, selectors
from tests.faults.served import request_lines, serving

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy/grafana/nightmill.json"
ALERTS = ROOT / "deploy/prometheus/nightmill-alerts.yaml"
ALERTS_TEST = Path(__file__).parent / "prometheus/alerts_test.yaml"
LABELS = {series: set(metric.labels) for metric in METRICS for series in metric.series}
OTHER_SERIES = {"process_resident_memory_bytes": set[str]()}
ADDED_LABELS = {"instance", "job", "le"}
without_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


QUERIES = [*dashboard_queries(), *(rule["expr"] for rule in alerts())]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_only_metrics_and_labels_that_exist(query: str):
    known = LABELS | OTHER_SERIES
    found = list(selectors(query))
    assert found, "a query without a metric"
    labels = set[str]()
    for name, matched in found:
        assert name in known, f"there is no metric {name}"
        assert matched <= known[name] | ADDED_LABELS, f"{name} has no label {matched - known[name]}"
        labels |= known[name]
    assert grouping_labels(query) <= labels | ADDED_LABELS


def test_a_name_that_does_not_exist_is_found():
    query = (
        'sum by (upstream) (rate(nightmill_gone_total{kind="a{b", x!~"c"}[5m] offset 1h)) > 2e3 and on () up'
    )
    assert list(selectors(query)) == [("nightmill_gone_total", {"kind", "x"}), ("up", set())]
    assert grouping_labels(query) == {"upstream"}


def test_every_metric_but_the_version_is_on_the_dashboard():
    shown = {name for query in dashboard_queries() for name, _ in selectors(query)}
    missing = {metric.name for metric in METRICS if not shown & set(metric.series)}
    assert missing == {
        "nightmill_retry_wait_seconds_total",
        "nightmill_upstream_answers_per_second",  # for a look without Prometheus
        "nightmill_upstream_tokens_per_second",
        "nightmill_upstream_workers",  # in an alert
    }


def test_each_alert_has_a_severity_and_a_summary():
    for rule in alerts():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")


@without_prometheus
def test_promtool_accepts_the_rules_and_they_fire_when_they_should(tmp_path: Path):
    for path in (ALERTS, ALERTS_TEST):
        shutil.copy(path, tmp_path)
    for words in (["check", "rules", ALERTS.name], ["test", "rules", ALERTS_TEST.name]):
        done = subprocess.run(
            ["promtool", *words], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@without_prometheus
def test_a_real_prometheus_scrapes_a_real_server_and_answers_every_query(tmp_path: Path):
    with serving(tmp_path / "data") as served, prometheus(tmp_path, target=served.port) as ask:
        served.until_ended(served.batch(request_lines(20)))
        deadline = time.monotonic() + 60
        while not has_value(ask('nightmill_attempts_total{outcome="answered"}'), 20):
            assert time.monotonic() < deadline, "the attempts are not counted"
            time.sleep(0.2)
        scraped = {metric["metric"]["__name__"] for metric in ask('{__name__=~"nightmill_.+"}')}
        without_value = {"nightmill_upstream_held"}
        assert scraped == set(LABELS) - without_value
        assert has_value(ask("up"), 1)
        for query in QUERIES:
            ask(query.replace("$__rate_interval", "1m").replace("$upstream", ".*"))
        text = served.send("GET", "/metrics")[2]
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, check=False, capture_output=True, timeout=60
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def has_value(result: list[dict[str, Any]], value: float) -> bool:
    return any(float(sample["value"][1]) == value for sample in result)


@contextlib.contextmanager
def prometheus(folder: Path, *, target: int) -> Iterator[Any]:
    """A Prometheus with our alert rules that scrapes a port; yields a function that queries it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = folder / "prometheus.yml"
    scrape = {"job_name": "nightmill", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
    settings.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "rule_files": [str(ALERTS)],
                "scrape_configs": [scrape],
            }
        )
    )
    url = f"http://127.0.0.1:{port}"
    words = [f"--config.file={settings}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    log = (folder / "prometheus.log").open("w")
    process = subprocess.Popen(
        ["prometheus", *words, f"--web.listen-address=127.0.0.1:{port}"], stderr=log, stdout=log
    )

    def ask(query: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(
            f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        ) as answer:
            document = json.load(answer)
        assert document["status"] == "success", query
        return document["data"]["result"]

    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/-/ready"):
                break
            time.sleep(0.1)
        yield ask
    finally:
        process.terminate()
        process.wait(30)
        log.close()
