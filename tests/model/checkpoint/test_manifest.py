"""The manifest is read whole, and a wrong one is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model import checkpoint
from model.checkpoint import CheckpointError
from model.presets import PRESETS
from tests.model.checkpoint.states import CLASSES


class TestManifest:
    def test_the_bundled_manifest_is_complete(self) -> None:
        presets = {preset.name for preset in PRESETS}
        for entry in checkpoint.load_manifest():
            assert entry.preset in presets
            assert entry.classes[0] == "__background__"
            assert entry.licence
            assert entry.description
            assert len(entry.sha256) in (8, 64)
            assert all(0 <= value <= 1 for value in entry.metrics.values())
            if entry.source is None:
                assert checkpoint.verify(entry).is_file(), "a bundled file is present and undamaged"
                assert checkpoint.resolve(entry.name).classes == entry.classes

    def test_published_entries_say_what_torchvision_says(self) -> None:
        import torchvision.models.detection as published

        entries = [entry for entry in checkpoint.load_manifest() if entry.source is not None]
        assert {entry.name for entry in entries} == {"coco", "coco-v2", "coco-mobilenet", "coco-mobilenet-320"}
        for entry in entries:
            enum, member = str(entry.source).split(".")
            weights = getattr(published, enum)[member]
            assert weights.url.endswith(f"/{entry.file}")
            assert entry.file.endswith(f"-{entry.sha256}.pth")
            assert entry.classes == tuple(weights.meta["categories"])
            reached = weights.meta["_metrics"]["COCO-val2017"]["box_map"]
            assert entry.metrics["coco_val2017_ap"] == pytest.approx(reached / 100)

    def test_entries_are_read(self, weights_folder: Path) -> None:
        bundled, remote = checkpoint.load_manifest(weights_folder / "manifest.toml", weights_folder / "cache")
        assert (bundled.path, bundled.score_threshold, bundled.classes) == (
            weights_folder / "bundled.safetensors",
            0.3,
            CLASSES,
        )
        assert (remote.path, remote.score_threshold, remote.classes) == (None, None, CLASSES)

    def test_a_fetched_file_is_found_in_the_cache(self, weights_folder: Path) -> None:
        (weights_folder / "cache").mkdir()
        (weights_folder / "cache" / "remote-0123abcd.pth").write_bytes(b"")
        _, remote = checkpoint.load_manifest(weights_folder / "manifest.toml", weights_folder / "cache")
        assert remote.path == weights_folder / "cache" / "remote-0123abcd.pth"

    def test_folders_follow_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FRCNN_WEIGHTS_DIR", str(tmp_path))
        assert checkpoint.weights_dir() == tmp_path
        monkeypatch.delenv("FRCNN_CACHE_DIR", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert checkpoint.cache_dir() == tmp_path / "frcnn" / "weights"
        monkeypatch.setenv("FRCNN_CACHE_DIR", str(tmp_path / "c"))
        assert checkpoint.cache_dir() == tmp_path / "c" / "weights"

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (('preset = "LITE"', ""), "'bundled' needs 'preset', a str"),
            (('sha256 = "0123abcd"', "sha256 = 12"), "'remote' needs 'sha256', a str"),
            (('classes = "pets"', 'classes = "pests"'), "names a class list 'pests' that does not exist"),
            (('file = "bundled.safetensors"', 'file = "../bundled.safetensors"'), "must be a bare file name"),
            (('name = "remote"', 'name = "bundled"'), "two checkpoints of the name 'bundled'"),
            (("[[checkpoint]]", "[[checkpoint"), "is not TOML"),
        ],
    )
    def test_a_wrong_manifest_names_what_is_wrong(
        self, weights_folder: Path, change: tuple[str, str], sentence: str
    ) -> None:
        path = weights_folder / "manifest.toml"
        path.write_text(path.read_text().replace(*change))
        with pytest.raises(CheckpointError, match=sentence):
            checkpoint.load_manifest(path)

    def test_a_missing_manifest_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="No manifest of weights"):
            checkpoint.load_manifest(tmp_path / "manifest.toml")

    def test_an_entry_is_frozen(self, weights_folder: Path) -> None:
        entry = checkpoint.load_manifest(weights_folder / "manifest.toml")[0]
        with pytest.raises(TypeError):
            entry.metrics["ap"] = 1.0  # type: ignore[index]
        assert replace(entry, name="x").name == "x"
