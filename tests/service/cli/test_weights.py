"""``frcnn weights``."""

from typer.testing import CliRunner

from service.cli.main import app

run = CliRunner().invoke


def test_weights_are_listed():
    done = run(app, ["weights", "list"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "coco" in done.output


def test_weights_without_a_name_in_the_manifest_are_not_fetched():
    done = run(app, ["weights", "fetch", "no-such-weights"])
    assert done.exit_code == 1
    assert "No checkpoint 'no-such-weights' to fetch" in done.stderr


def test_weights_that_are_not_in_the_manifest_are_named():
    done = run(app, ["weights", "verify", "no-such-weights"])
    assert done.exit_code == 1
    assert "No checkpoint is named no-such-weights" in done.stderr
