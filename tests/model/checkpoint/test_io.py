"""Checkpoints are resolved by name or path, read without running code, and written whole."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch

from model import checkpoint
from model.checkpoint import CheckpointError
from tests.model.checkpoint.states import CLASSES, PRESET, small_state


class TestResolve:
    def test_a_name_of_the_manifest(self, weights_folder: Path) -> None:
        resolved = checkpoint.resolve("bundled", manifest=weights_folder / "manifest.toml")
        assert (resolved.name, resolved.preset, resolved.classes) == ("bundled", PRESET, CLASSES)
        assert (resolved.score_threshold, dict(resolved.metrics)) == (0.3, {"ap": 0.5})
        assert set(checkpoint.read_state(resolved)) == {"conv.weight", "norm.running_var"}

    def test_a_path_with_metadata(self, weights_folder: Path) -> None:
        resolved = checkpoint.resolve(weights_folder / "bundled.safetensors", manifest=weights_folder / "manifest.toml")
        assert resolved.name == "bundled"
        other = weights_folder / "other.safetensors"
        checkpoint.save(other, small_state(), preset=PRESET, classes=("cat",), metrics={})
        resolved = checkpoint.resolve(other)
        assert (resolved.name, resolved.preset, resolved.sha256) == ("other", PRESET, None)
        assert resolved.classes == ("__background__", "cat")

    @pytest.mark.parametrize("beside", ["w.pth.classes.txt", "w.classes.txt", "w.pth.classes.json", "w.classes.json"])
    def test_a_path_with_a_class_file_beside_it(self, tmp_path: Path, beside: str) -> None:
        torch.save(small_state(), tmp_path / "w.pth")
        text = "cat\n\n dog \n" if beside.endswith("txt") else json.dumps(["__background__", "cat", "dog"])
        (tmp_path / beside).write_text(text)
        resolved = checkpoint.resolve(str(tmp_path / "w.pth"))
        assert (resolved.classes, resolved.preset) == (CLASSES, None)

    def test_a_file_without_classes_is_refused_with_the_file_to_write(self, tmp_path: Path) -> None:
        torch.save(small_state(), tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"list their names.*w\.pth\.classes\.txt"):
            checkpoint.resolve(tmp_path / "w.pth")

    @pytest.mark.parametrize("text", ["{", "{}", "[]", "[1, 2]"])
    def test_a_class_file_that_is_no_list_of_names_is_refused(self, tmp_path: Path, text: str) -> None:
        torch.save(small_state(), tmp_path / "w.pth")
        (tmp_path / "w.classes.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"w\.classes\.json"):
            checkpoint.resolve(tmp_path / "w.pth")

    def test_an_unknown_name_is_refused_with_the_names_that_exist(self, weights_folder: Path) -> None:
        with pytest.raises(CheckpointError, match="neither a file nor one of bundled, remote"):
            checkpoint.resolve("nowhere", manifest=weights_folder / "manifest.toml")

    def test_a_name_that_is_not_fetched_is_refused_with_the_command(self, weights_folder: Path) -> None:
        with pytest.raises(CheckpointError, match="frcnn weights fetch remote"):
            checkpoint.resolve("remote", manifest=weights_folder / "manifest.toml", cache=weights_folder / "cache")


class TestSave:
    def test_saved_weights_are_read_back(self, tmp_path: Path) -> None:
        state, path = small_state(), tmp_path / "deep" / "w.safetensors"
        digest = checkpoint.save(path, state, preset=PRESET, classes=CLASSES, metrics={"ap": 0.25})
        assert digest == checkpoint.sha256(path)
        resolved = checkpoint.resolve(path)
        assert (resolved.preset, resolved.classes, resolved.metrics) == (PRESET, CLASSES, {"ap": 0.25})
        loaded = checkpoint.read_state(resolved)
        assert {value.dtype for value in loaded.values()} == {torch.float32}
        torch.testing.assert_close(loaded["conv.weight"], state["conv.weight"], rtol=1e-3, atol=1e-6)
        assert torch.equal(loaded["norm.running_var"], state["norm.running_var"]), "a vector keeps all its digits"
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.get_tensor("conv.weight").dtype == torch.float16

    def test_values_beyond_float16_are_saved_as_float32(self, tmp_path: Path) -> None:
        state = {"w": torch.tensor([[1e5, 1.0]])}
        checkpoint.save(tmp_path / "w.safetensors", state, preset=PRESET, classes=CLASSES, metrics={})
        assert torch.equal(checkpoint.read_state(tmp_path / "w.safetensors")["w"], state["w"])

    def test_equal_tensors_give_equal_bytes(self, tmp_path: Path) -> None:
        state = small_state()
        metrics = {"ap": 0.1, "ap50": 0.2}
        digests = set()
        for order in (list(state), list(reversed(state))):
            ordered = {key: state[key] for key in order}
            for name in ("a", "b"):
                path = tmp_path / f"{name}.safetensors"
                digests.add(checkpoint.save(path, ordered, preset=PRESET, classes=CLASSES, metrics=metrics))
        assert len(digests) == 1

    def test_tensors_that_share_storage_are_saved(self, tmp_path: Path) -> None:
        weight = torch.randn(2, 2)
        path = tmp_path / "w.safetensors"
        checkpoint.save(path, {"a": weight, "b": weight.T}, preset=PRESET, classes=CLASSES, metrics={})
        loaded = checkpoint.read_state(path)
        assert torch.equal(loaded["a"].T, loaded["b"])

    def test_diverged_weights_are_not_written(self, tmp_path: Path) -> None:
        state = {"good.weight": torch.ones(2), "bad.weight": torch.tensor([1.0, float("nan")])}
        with pytest.raises(CheckpointError, match=r"bad\.weight is not finite"):
            checkpoint.save(tmp_path / "w.safetensors", state, preset=PRESET, classes=CLASSES, metrics={})
        assert list(tmp_path.iterdir()) == []

    def test_a_save_that_fails_keeps_the_old_file_and_leaves_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "w.safetensors"
        old = checkpoint.save(path, small_state(), preset=PRESET, classes=CLASSES, metrics={})

        def full(_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(path, {"x": torch.ones(3)}, preset=PRESET, classes=CLASSES, metrics={})
        assert checkpoint.sha256(path) == old
        assert list(tmp_path.iterdir()) == [path]


class RunsCode:
    """An object whose pickle calls a function as it is read."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch called",)


class TestBadFiles:
    """Each is refused with a ``CheckpointError`` that names the file and says what it is."""

    @pytest.mark.parametrize("wrapped", [True, False], ids=["torch.save", "bare pickle"])
    def test_a_pickle_that_would_run_code_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "code.pth"
        if wrapped:
            torch.save({"conv.weight": RunsCode()}, path)
        else:
            path.write_bytes(pickle.dumps({"conv.weight": RunsCode()}, protocol=2))
        with pytest.raises(CheckpointError, match=r"code\.pth is a pickle that would call \w+\.system"):
            checkpoint.read_state(path)
        assert not (tmp_path / "called").exists()

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
    @pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
    def test_a_truncated_file_is_refused(self, tmp_path: Path, kind: str, share: float) -> None:
        path = tmp_path / f"w.{kind}"
        if kind == "safetensors":
            checkpoint.save(path, small_state(), preset=PRESET, classes=CLASSES, metrics={})
        else:
            torch.save(small_state(), path, _use_new_zipfile_serialization=kind == "pth")
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match=r"w\.\w+ (is|holds)"):
            checkpoint.read_state(path)

    @pytest.mark.parametrize(
        "data",
        [b"", b"\x00" * 64, b"\xff" * 64, b"<html>Not found</html>", b"PK\x03\x04 and nothing", b"12345678{not json"],
        ids=["empty", "zeros", "ones", "html", "zip", "safetensors"],
    )
    def test_a_file_that_is_no_checkpoint_is_refused(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "w.pth"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"w\.pth is"):
            checkpoint.read_state(path)

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            ([torch.ones(1)], "holds a list and not a state dict"),
            ({}, "holds a dict and not a state dict"),
            ({"epoch": 3}, "'epoch' is a int and not a tensor"),
            ({1: torch.ones(1)}, "1 is a Tensor"),
        ],
    )
    def test_a_saved_object_that_is_no_state_dict_is_refused(
        self, tmp_path: Path, value: object, sentence: str
    ) -> None:
        torch.save(value, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=sentence):
            checkpoint.read_state(tmp_path / "w.pth")

    @pytest.mark.parametrize("key", ["model", "state_dict"])
    def test_a_training_checkpoints_model_is_taken(self, tmp_path: Path, key: str) -> None:
        torch.save({key: {"w": torch.ones(2, dtype=torch.bfloat16)}, "epoch": 3}, tmp_path / "w.pth")
        assert torch.equal(checkpoint.read_state(tmp_path / "w.pth")["w"], torch.ones(2))

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="There is no file"):
            checkpoint.read_state(tmp_path / "w.pth")

    def test_a_file_with_another_hash_is_refused(self, weights_folder: Path) -> None:
        path = weights_folder / "bundled.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        entry = checkpoint.load_manifest(weights_folder / "manifest.toml")[0]
        with pytest.raises(CheckpointError, match="is not 'bundled': its SHA-256 is"):
            checkpoint.verify(entry)
        with pytest.raises(CheckpointError, match="damaged or was changed"):
            checkpoint.read_state(checkpoint.resolve("bundled", manifest=weights_folder / "manifest.toml"))
