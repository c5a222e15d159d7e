"""``frcnn detect --url``: folders through a running service, to lines of JSON."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from service.cli.remote import find_images, finished_files

run = CliRunner().invoke


@pytest.fixture
def folder(tmp_path: Path, encoded: Callable[..., bytes]) -> Path:
    path = tmp_path / "images"
    (path / "deeper").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.PNG", "deeper/c.png"]):
        (path / name).write_bytes(encoded((30 + i, 20)))
    (path / "notes.txt").write_text("not an image")
    return path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_second_run_continues_where_the_first_was_interrupted(
    serve_faulty, faulty, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "detections.jsonl"
    with serve_faulty() as live:
        command = ["detect", str(folder), "--url", live.url, "--out", str(out)]
        done = run(app, command)
        assert done.exit_code == 0, done.output
        assert len(lines(out)) == 3
        assert finished_files(out) == {str(path) for path in find_images([folder])}
        content = out.read_bytes()
        out.write_bytes(content[: -len(content) // 3 - 5])  # as if a run was interrupted in the middle of a line
        image_count = sum(map(len, faulty.batches))  # images, in any number of batches
        assert run(app, command).exit_code == 0
        assert sorted(lines(out)) == sorted(content.decode().splitlines())
        assert sum(map(len, faulty.batches)) - image_count == 3 - content[: -len(content) // 3 - 5].count(b"\n")


def test_a_failed_image_is_named_and_tried_again(serve_faulty, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "detections.jsonl"
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:40])
    with serve_faulty() as live:
        command = ["detect", str(folder), "--url", live.url, "--out", str(out)]
        for _ in range(2):
            done = run(app, command)
            assert done.exit_code == 1
            assert "broken.png: " in done.stderr
        assert len(lines(out)) == 3


def test_a_wrong_key_stops_the_folder_at_its_first_image(serve_faulty, folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right-key-of-this-service\n")
    with serve_faulty(api_keys_file=keys) as live:
        done = run(app, ["detect", str(folder), "--url", live.url, "--api-key", "wrong", "--at-once", "1"])
        assert done.exit_code == 1
        assert live.metric("frcnn_rejected_total", reason="unauthorized") <= 2
        done = run(app, ["detect", str(folder), "--url", live.url, "--api-key", "right-key-of-this-service"])
        assert done.exit_code == 0, done.stderr


def test_a_file_that_holds_something_else_is_not_written_to(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "important.txt"
    out.write_text("important\n")
    done = run(app, ["detect", str(folder), "--url", "http://127.0.0.1:9", "--out", str(out)])
    assert done.exit_code == 1
    assert "something else" in done.stderr
    assert out.read_text() == "important\n"
