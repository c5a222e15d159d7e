"""The Compose files: they follow the specification, and reserve and mount what the service needs."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml


class ComposeLoader(yaml.SafeLoader):
    """Load YAML with Compose's own tags: `!reset` as None, `!override` as the list that it marks."""


def _reset(loader: ComposeLoader, node: yaml.Node) -> Any:
    return None


def _override(loader: ComposeLoader, node: yaml.Node) -> Any:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


ComposeLoader.add_constructor("!reset", _reset)
ComposeLoader.add_constructor("!override", _override)


@pytest.fixture(scope="module")
def compose_schema() -> Any:
    """Return the schema of the Compose Specification, from check-jsonschema."""
    return json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker/compose.cpu.yml", "docker/compose.devices.yml"])
def test_compose_files_follow_the_compose_specification(repo: Path, compose_schema: Any, name: str) -> None:
    document = yaml.load((repo / name).read_text(), Loader=ComposeLoader)
    jsonschema.validate(without_resets(document), compose_schema)


def without_resets(node: Any) -> Any:
    """Return ``node`` without the keys that `!reset` removes."""
    if isinstance(node, dict):
        return {key: without_resets(value) for key, value in node.items() if value is not None}
    return node


def test_a_compose_file_with_a_mistake_does_not_pass(repo: Path, compose_schema: Any) -> None:
    document = yaml.safe_load((repo / "docker-compose.yml").read_text())
    document["services"]["frcnn"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate(document, compose_schema)


def test_monitoring_is_optional_and_listens_on_this_host_alone(repo: Path) -> None:
    services = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
    assert "profiles" not in services["frcnn"]


def test_compose_reserves_a_gpu_and_keeps_the_root_read_only(repo: Path) -> None:
    service = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]["frcnn"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert device["count"] == "${GPUS:-1}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_the_cpu_override_removes_the_gpu(repo: Path) -> None:
    text = (repo / "docker" / "compose.cpu.yml").read_text()
    service = yaml.load(text, Loader=ComposeLoader)["services"]["frcnn"]
    assert service["deploy"]["resources"]["reservations"]["devices"] is None
    assert service["environment"]["FRCNN_DEVICE"] == "cpu"


def test_the_override_for_chosen_devices_replaces_the_count(repo: Path) -> None:
    """Compose refuses a reservation with a count and ids, and adds lists together unless told otherwise."""
    text = (repo / "docker" / "compose.devices.yml").read_text()
    assert "devices: !override" in text
    service = yaml.load(text, Loader=ComposeLoader)["services"]["frcnn"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert "count" not in device
    assert device["device_ids"][0].startswith("${DEVICE_ID:?")  # Compose reports an unset variable


def test_the_service_has_time_to_start_on_a_gpu_and_a_volume_for_its_cache(repo: Path) -> None:
    service = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]["frcnn"]
    assert service["healthcheck"]["start_period"] == "300s"
    assert "cache:/var/cache/frcnn" in service["volumes"]
