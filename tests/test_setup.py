"""The set-up keeps its promises: the lock covers what pyproject.toml asks for, and the image is built as it says."""

import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings


@pytest.fixture(scope="module")
def pins(repo: Path) -> dict[str, str]:
    lines = (repo / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def asked(repo: Path) -> list[Requirement]:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in project["dependencies"] + extras if not text.startswith(project["name"])]


def test_the_lock_pins_all_that_is_asked_for_within_its_range(pins: dict[str, str], asked: list[Requirement]) -> None:
    for requirement in asked:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in requirements.lock: run make lock"
        assert requirement.specifier.contains(pin), f"{requirement} against {pin}: run make lock"


def test_what_is_installed_is_what_is_locked(pins: dict[str, str], asked: list[Requirement]) -> None:
    installed = {canonicalize_name(found.name) for found in metadata.distributions()}
    there = {canonicalize_name(requirement.name) for requirement in asked} & installed
    assert len(there) > 20  # an extra that no test needs may be absent
    for name in there:
        public = metadata.version(name).split("+")[0]  # torch's CPU build calls itself 2.14.1+cpu
        assert public == pins[name]


def test_the_detector_runs_on_the_pair_it_was_compared_with(pins: dict[str, str]) -> None:
    assert (pins["torch"], pins["torchvision"]) == ("2.14.1", "0.29.1")


def test_the_package_knows_its_command() -> None:
    (script,) = [s for s in metadata.entry_points(group="console_scripts") if s.name == "frcnn"]
    assert script.value == "service.cli.main:app"


def test_no_registry_is_named(repo: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "Dockerfile", "docker-compose.yml", ".ci/run"):
        assert not re.search(r"index-url[ =]+\S*://|--find-links", (repo / name).read_text()), name


def test_the_example_environment_tells_the_truth(repo: Path) -> None:
    shown = re.findall(r"^# FRCNN_(\w+)=(.*)$", (repo / ".env.example").read_text(), re.MULTILINE)
    assert shown
    for name, value in shown:
        default = Settings.model_fields[name.lower()].default
        assert value == ("" if default is None else str(default)), name


def instructions(dockerfile: str) -> list[str]:
    """The instructions of a Dockerfile, comments dropped and continued lines joined."""
    code = "\n".join(line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    return [line.strip() for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_runs_as_nobody_in_particular_and_stops_when_asked(repo: Path) -> None:
    steps = instructions((repo / "Dockerfile").read_text())
    last_stage = steps[max(i for i, step in enumerate(steps) if step.startswith("FROM")) :]
    assert [s for s in last_stage if s.startswith("USER")][-1] == "USER 10001:10001"
    assert "STOPSIGNAL SIGTERM" in last_stage
    assert any(s.startswith("HEALTHCHECK") and "curl" not in s for s in last_stage)
    assert any("--mount=type=cache" in s for s in steps)


class ComposeLoader(yaml.SafeLoader):
    """YAML with compose's own `!reset` and `!override` tags, read as what they carry."""


def _reset(loader: ComposeLoader, node: yaml.Node) -> Any:
    return None


def _override(loader: ComposeLoader, node: yaml.Node) -> Any:
    assert isinstance(node, yaml.SequenceNode)
    return loader.construct_sequence(node, deep=True)


ComposeLoader.add_constructor("!reset", _reset)
ComposeLoader.add_constructor("!override", _override)


def test_compose_reserves_a_gpu_and_keeps_the_root_read_only(repo: Path) -> None:
    service = yaml.safe_load((repo / "docker-compose.yml").read_text())["services"]["frcnn"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert device["count"] == "${GPUS:-1}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_the_cpu_override_takes_the_gpu_back(repo: Path) -> None:
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
    assert device["device_ids"][0].startswith("${DEVICE_ID:?")  # unset, compose says so


def test_a_compiler_is_in_the_image_for_gpus_alone(repo: Path) -> None:
    steps = instructions((repo / "Dockerfile").read_text())
    last_stage = steps[max(i for i, step in enumerate(steps) if step.startswith("FROM")) :]
    assert "ARG DEVICE=gpu" in last_stage  # a stage does not see the arguments of another
    [install] = [step for step in last_stage if "apt-get install" in step]
    assert re.search(r'if \[ "\$DEVICE" != cpu \]; then .*gcc libc6-dev; +fi', install)
