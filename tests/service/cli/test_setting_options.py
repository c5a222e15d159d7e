"""Options made from the fields of ``Settings``."""

import typing

import pytest
import typer
from typer.testing import CliRunner

from service.cli.setting_options import setting_options
from service.settings import Settings


@pytest.fixture
def command():
    """Return an app with a command that has an option for every setting and one of its own, and prints their values."""
    app = typer.Typer()

    @app.command()
    @setting_options(Settings.model_fields)
    def show(own: int = 1, **overrides: typing.Any) -> None:
        print(own, {name: value for name, value in overrides.items() if value is not None})

    return app


def test_values_have_the_types_of_their_settings(command):
    options = "--own 2 --port 9000 --drain-seconds 1 --cache-dir somewhere --precision bf16 --deepstack"
    done = CliRunner().invoke(command, options.split())
    assert done.exit_code == 0, done.output
    assert done.output.startswith("2 {'port': 9000, 'precision': 'bf16', ")
    assert "'cache_dir': PosixPath('somewhere')" in done.output
    assert "'drain_seconds': 1.0" in done.output
    assert "'deepstack': True" in done.output


def test_options_that_are_left_out_override_nothing(command):
    assert CliRunner().invoke(command, []).output == "1 {}\n"


def test_a_value_of_another_type_is_refused(command):
    done = CliRunner().invoke(command, ["--port", "http"])
    assert done.exit_code == 2
    assert "--port" in done.output


def test_the_help_has_description_variable_and_default(command):
    text = " ".join(
        CliRunner().invoke(command, ["--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).output.split()
    )
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else field.default
        assert f"{field.description} (FRCNN_{name.upper()}, default {default})" in text
