"""The files for Prometheus and Grafana, by their own tools. `tests/system/test_submit.py` has them at a real run."""

import json
import re
import subprocess
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from pipeline.on_ray.metrics import COUNTERS, GAUGES
from tests.support.commands import ROOT

MONITORING = ROOT / "infra" / "monitoring"


@pytest.fixture
def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "dashboard.json").read_text())


def read_back(document: dict[str, Any]) -> dict[str, Any]:
    """The document as Grafana's types keep it: what they do not know is lost."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(document)))


def test_grafana_knows_every_field_of_the_dashboard(dashboard: dict[str, Any]) -> None:
    assert kept(dashboard, read_back(dashboard))
    dashboard["panels"][0]["gridPoss"] = {}
    assert not kept(dashboard, read_back(dashboard))


def kept(document: Any, back: Any) -> bool:
    """Whether everything in a document is there again, defaults apart."""
    if isinstance(document, dict):
        return all(name in back and kept(value, back[name]) for name, value in document.items())
    if isinstance(document, list):
        return len(document) == len(back) and all(map(kept, document, back))
    return bool(document == back)


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24, "Grafana's grid"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_metric_is_drawn_and_every_query_is_of_a_metric(dashboard: dict[str, Any]) -> None:
    drawn = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    rules = (MONITORING / "alerts.yml").read_text()
    ours = {f"ray_tokenmill_{name}_total" for name in COUNTERS} | {f"ray_tokenmill_{name}" for name in GAUGES}
    assert set(re.findall(r"ray_tokenmill_\w+", drawn)) == ours
    assert set(re.findall(r"ray_tokenmill_\w+", rules)) <= ours


@pytest.mark.system
@pytest.mark.parametrize(
    "command", ["check config prometheus.yml", "check rules alerts.yml", "test rules alerts_test.yml"]
)
def test_promtool_agrees(command: str) -> None:
    result = subprocess.run(["promtool", *command.split()], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout


def test_every_alert_is_tested() -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    silent, loud = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    for tested in (silent, loud):
        assert {case["alertname"] for case in tested["alert_rule_test"]} == {rule["alert"] for rule in rules}
