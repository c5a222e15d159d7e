"""The files that people deploy with are what their readers accept: checked against published schemas, and hadolint."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import PREFIX, Settings
from tests.test_setup import ComposeLoader

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def compose_schema() -> Any:
    """The Compose Specification's own schema, as check-jsonschema carries it."""
    return json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())


def test_the_dockerfile_is_hadolint_clean(repo: Path) -> None:
    done = subprocess.run([BIN / "hadolint", repo / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker/compose.cpu.yml"])
def test_compose_files_follow_the_compose_specification(repo: Path, compose_schema: Any, name: str) -> None:
    document = yaml.load((repo / name).read_text(), Loader=ComposeLoader)
    jsonschema.validate(without_resets(document), compose_schema)


def without_resets(node: Any) -> Any:
    """What is left when compose has taken a `!reset` key away: the key is gone."""
    if isinstance(node, dict):
        return {key: without_resets(value) for key, value in node.items() if value is not None}
    return node


def test_a_compose_file_with_a_mistake_does_not_pass(repo: Path, compose_schema: Any) -> None:
    document = yaml.safe_load((repo / "docker-compose.yml").read_text())
    document["services"]["frcnn"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate(document, compose_schema)


def test_monitoring_comes_only_when_it_is_asked_for_and_listens_on_this_host_alone(repo: Path) -> None:
    services = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    assert "profiles" not in services["frcnn"]


def test_every_setting_and_alert_is_in_the_operators_guide_with_its_default(repo: Path) -> None:
    guide = (repo / "docs/operations.md").read_text()
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else str(field.default)
        assert f"| `{PREFIX}{name.upper()}` | {default} |" in guide, f"{name}: run make operations"
    for alert in re.findall(r"alert: (\w+)", (repo / "docker/prometheus/rules.yml").read_text()):
        assert f"| `{alert}` |" in guide, alert


def test_the_operators_guide_is_what_its_command_writes(repo: Path) -> None:
    command = [sys.executable, "docs/operations.py", "--check"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["frcnn.yml"])
def test_kubernetes_manifests_follow_their_schemas(repo: Path, name: str) -> None:
    documents = list(yaml.safe_load_all((repo / "docker/kubernetes" / name).read_text()))
    assert {d["kind"] for d in documents} == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_manifest_with_a_mistake_does_not_pass(repo: Path) -> None:
    document = next(yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text()))
    document["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_pod_outlives_its_drain_and_scales_on_the_queue(repo: Path) -> None:
    documents = {d["kind"]: d for d in yaml.safe_load_all((repo / "docker/kubernetes/frcnn.yml").read_text())}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > Settings.model_fields["drain_seconds"].default
    [metric] = documents["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "frcnn_queue_depth"
