"""The package: the lock covers what pyproject.toml requires, and the examples match the settings."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.settings import Settings


@pytest.fixture(scope="module")
def pins(repo: Path) -> dict[str, str]:
    lines = (repo / "requirements.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.fixture(scope="module")
def requirements(repo: Path) -> list[Requirement]:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in project["dependencies"] + extras if not text.startswith(project["name"])]


def test_the_lock_pins_every_requirement_within_its_range(
    pins: dict[str, str], requirements: list[Requirement]
) -> None:
    for requirement in requirements:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in requirements.lock: run make lock"
        assert requirement.specifier.contains(pin), f"{requirement} against {pin}: run make lock"


def test_what_is_installed_is_what_is_locked(pins: dict[str, str], requirements: list[Requirement]) -> None:
    installed = {canonicalize_name(distribution.name) for distribution in metadata.distributions()}
    common = {canonicalize_name(requirement.name) for requirement in requirements} & installed
    assert len(common) > 20  # an extra that no test needs may be absent
    for name in common:
        public = metadata.version(name).split("+")[0]  # torch's CPU build calls itself 2.14.1+cpu
        assert public == pins[name]


def test_the_detector_runs_on_the_pair_it_was_compared_with(pins: dict[str, str]) -> None:
    assert (pins["torch"], pins["torchvision"]) == ("2.14.1", "0.29.1")


def test_the_package_has_its_command() -> None:
    (script,) = [entry for entry in metadata.entry_points(group="console_scripts") if entry.name == "frcnn"]
    assert script.value == "service.cli.main:app"


def test_no_registry_is_named(repo: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "Dockerfile", "docker-compose.yml", ".ci/run"):
        assert not re.search(r"index-url[ =]+\S*://|--find-links", (repo / name).read_text()), name


def test_the_example_environment_shows_the_defaults(repo: Path) -> None:
    examples = re.findall(r"^# FRCNN_(\w+)=(.*)$", (repo / ".env.example").read_text(), re.MULTILINE)
    assert examples
    for name, value in examples:
        default = Settings.model_fields[name.lower()].default
        assert value == ("" if default is None else str(default)), name
