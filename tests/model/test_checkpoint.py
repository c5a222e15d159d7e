"""Checkpoints: found by name or path, read without running anything, fitted or refused with the reason."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch
from torch import Tensor, nn

from model import checkpoint
from model.checkpoint import CheckpointError
from model.config import LITE, PRESETS
from model.detector import Detector
from model.faster_rcnn import FasterRCNN

CLASSES = ("__background__", "cat", "dog")
PRESET = "LITE"


def small_state() -> dict[str, Tensor]:
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "norm.running_var": torch.full((4,), 1.2345678e-6),
        "norm.num_batches_tracked": torch.tensor(7),
    }


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with a manifest of two: one checkpoint that is here, and one that would have to be fetched."""
    digest = checkpoint.save(
        tmp_path / "here.safetensors", small_state(), preset=PRESET, classes=CLASSES, metrics={"ap": 0.5}
    )
    (tmp_path / "manifest.toml").write_text(
        f"""
        [classes]
        pets = ["__background__", "cat", "dog"]
        [[checkpoint]]
        name = "here"
        preset = "LITE"
        file = "here.safetensors"
        sha256 = "{digest}"
        classes = "pets"
        metrics = {{ ap = 0.5 }}
        licence = "Apache-2.0"
        score_threshold = 0.3
        description = "A test's."
        [[checkpoint]]
        name = "afar"
        preset = "RESNET50_FPN"
        file = "afar-0123abcd.pth"
        sha256 = "0123abcd"
        classes = ["cat", "dog"]
        licence = "BSD-3-Clause"
        source = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"
        description = "Somewhere else."
        """,
        encoding="utf-8",
    )
    return tmp_path


class TestManifest:
    def test_the_repositorys_own_is_whole(self) -> None:
        presets = {preset.name for preset in PRESETS}
        for entry in checkpoint.load_manifest():
            assert entry.preset in presets
            assert entry.classes[0] == "__background__"
            assert entry.licence
            assert entry.description
            assert len(entry.sha256) in (8, 64)
            assert all(0 <= value <= 1 for value in entry.metrics.values())
            if entry.source is None:
                assert checkpoint.verify(entry).is_file(), "bundled, so here and undamaged"
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

    def test_entries(self, shelf: Path) -> None:
        here, afar = checkpoint.load_manifest(shelf / "manifest.toml", shelf / "cache")
        assert (here.path, here.score_threshold, here.classes) == (shelf / "here.safetensors", 0.3, CLASSES)
        assert (afar.path, afar.score_threshold, afar.classes) == (None, None, CLASSES)

    def test_a_fetched_file_is_found_in_the_cache(self, shelf: Path) -> None:
        (shelf / "cache").mkdir()
        (shelf / "cache" / "afar-0123abcd.pth").write_bytes(b"")
        _, afar = checkpoint.load_manifest(shelf / "manifest.toml", shelf / "cache")
        assert afar.path == shelf / "cache" / "afar-0123abcd.pth"

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
            (('preset = "LITE"', ""), "'here' needs 'preset', a str"),
            (('sha256 = "0123abcd"', "sha256 = 12"), "'afar' needs 'sha256', a str"),
            (('classes = "pets"', 'classes = "pests"'), "names a class list 'pests' that is not there"),
            (('file = "here.safetensors"', 'file = "../here.safetensors"'), "must be a bare file name"),
            (('name = "afar"', 'name = "here"'), "two checkpoints of the name 'here'"),
            (("[[checkpoint]]", "[[checkpoint"), "is not TOML"),
        ],
    )
    def test_a_wrong_manifest_names_what_is_wrong(self, shelf: Path, change: tuple[str, str], sentence: str) -> None:
        path = shelf / "manifest.toml"
        path.write_text(path.read_text().replace(*change))
        with pytest.raises(CheckpointError, match=sentence):
            checkpoint.load_manifest(path)

    def test_no_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="No manifest of weights"):
            checkpoint.load_manifest(tmp_path / "manifest.toml")


class TestResolve:
    def test_by_name(self, shelf: Path) -> None:
        found = checkpoint.resolve("here", manifest=shelf / "manifest.toml")
        assert (found.name, found.preset, found.classes) == ("here", PRESET, CLASSES)
        assert (found.score_threshold, dict(found.metrics)) == (0.3, {"ap": 0.5})
        assert set(checkpoint.read_state(found)) == {"conv.weight", "norm.running_var"}

    def test_by_path_with_metadata(self, shelf: Path) -> None:
        found = checkpoint.resolve(shelf / "here.safetensors", manifest=shelf / "manifest.toml")
        assert found.name == "here"
        other = shelf / "other.safetensors"
        checkpoint.save(other, small_state(), preset=PRESET, classes=("cat",), metrics={})
        found = checkpoint.resolve(other)
        assert (found.name, found.preset, found.sha256) == ("other", PRESET, None)
        assert found.classes == ("__background__", "cat")

    @pytest.mark.parametrize("beside", ["w.pth.classes.txt", "w.classes.txt", "w.pth.classes.json", "w.classes.json"])
    def test_by_path_with_classes_beside(self, tmp_path: Path, beside: str) -> None:
        torch.save(small_state(), tmp_path / "w.pth")
        text = "cat\n\n dog \n" if beside.endswith("txt") else json.dumps(["__background__", "cat", "dog"])
        (tmp_path / beside).write_text(text)
        found = checkpoint.resolve(str(tmp_path / "w.pth"))
        assert (found.classes, found.preset) == (CLASSES, None)

    def test_no_classes_says_where_to_put_them(self, tmp_path: Path) -> None:
        torch.save(small_state(), tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=r"list their names.*w\.pth\.classes\.txt"):
            checkpoint.resolve(tmp_path / "w.pth")

    @pytest.mark.parametrize("text", ["{", "{}", "[]", "[1, 2]"])
    def test_classes_that_are_no_list_of_names(self, tmp_path: Path, text: str) -> None:
        torch.save(small_state(), tmp_path / "w.pth")
        (tmp_path / "w.classes.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"w\.classes\.json"):
            checkpoint.resolve(tmp_path / "w.pth")

    def test_unknown_name_lists_the_known(self, shelf: Path) -> None:
        with pytest.raises(CheckpointError, match="neither a file nor one of here, afar"):
            checkpoint.resolve("nowhere", manifest=shelf / "manifest.toml")

    def test_a_name_not_fetched_yet_says_how(self, shelf: Path) -> None:
        with pytest.raises(CheckpointError, match="frcnn weights fetch afar"):
            checkpoint.resolve("afar", manifest=shelf / "manifest.toml", cache=shelf / "cache")


class TestSave:
    def test_round_trip(self, tmp_path: Path) -> None:
        state, path = small_state(), tmp_path / "deep" / "w.safetensors"
        digest = checkpoint.save(path, state, preset=PRESET, classes=CLASSES, metrics={"ap": 0.25})
        assert digest == checkpoint.sha256(path)
        found = checkpoint.resolve(path)
        assert (found.preset, found.classes, found.metrics) == (PRESET, CLASSES, {"ap": 0.25})
        back = checkpoint.read_state(found)
        assert {value.dtype for value in back.values()} == {torch.float32}
        torch.testing.assert_close(back["conv.weight"], state["conv.weight"], rtol=1e-3, atol=1e-6)
        assert torch.equal(back["norm.running_var"], state["norm.running_var"]), "a vector keeps all its digits"
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.get_tensor("conv.weight").dtype == torch.float16

    def test_values_beyond_float16_stay_whole(self, tmp_path: Path) -> None:
        state = {"w": torch.tensor([[1e5, 1.0]])}
        checkpoint.save(tmp_path / "w.safetensors", state, preset=PRESET, classes=CLASSES, metrics={})
        assert torch.equal(checkpoint.read_state(tmp_path / "w.safetensors")["w"], state["w"])

    def test_same_tensors_same_bytes(self, tmp_path: Path) -> None:
        state = small_state()
        metrics = {"ap": 0.1, "ap50": 0.2}
        digests = set()
        for order in (list(state), list(reversed(state))):
            ordered = {key: state[key] for key in order}
            for name in ("a", "b"):
                path = tmp_path / f"{name}.safetensors"
                digests.add(checkpoint.save(path, ordered, preset=PRESET, classes=CLASSES, metrics=metrics))
        assert len(digests) == 1

    def test_shared_storage(self, tmp_path: Path) -> None:
        weight = torch.randn(2, 2)
        path = tmp_path / "w.safetensors"
        checkpoint.save(path, {"a": weight, "b": weight.T}, preset=PRESET, classes=CLASSES, metrics={})
        back = checkpoint.read_state(path)
        assert torch.equal(back["a"].T, back["b"])

    def test_diverged_weights_are_not_written(self, tmp_path: Path) -> None:
        state = {"good.weight": torch.ones(2), "bad.weight": torch.tensor([1.0, float("nan")])}
        with pytest.raises(CheckpointError, match=r"bad\.weight is not finite"):
            checkpoint.save(tmp_path / "w.safetensors", state, preset=PRESET, classes=CLASSES, metrics={})
        assert list(tmp_path.iterdir()) == []

    def test_a_save_that_fails_leaves_the_old_file_and_no_scrap(
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


class Bomb:
    """What a malicious pickle does: calls something as it is read."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch pwned",)


class TestBadFiles:
    """Each of them: a ``CheckpointError`` that names the file and says what it is."""

    @pytest.mark.parametrize("wrapped", [True, False], ids=["torch.save", "bare pickle"])
    def test_pickle_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "bomb.pth"
        if wrapped:
            torch.save({"conv.weight": Bomb()}, path)
        else:
            path.write_bytes(pickle.dumps({"conv.weight": Bomb()}, protocol=2))
        with pytest.raises(CheckpointError, match=r"bomb\.pth is a pickle that wants to call \w+\.system"):
            checkpoint.read_state(path)
        assert not (tmp_path / "pwned").exists()

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
    @pytest.mark.parametrize("kind", ["pth", "legacy", "safetensors"])
    def test_truncated(self, tmp_path: Path, kind: str, share: float) -> None:
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
    def test_no_checkpoint_at_all(self, tmp_path: Path, data: bytes) -> None:
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
    def test_something_else_of_torch_save(self, tmp_path: Path, value: object, sentence: str) -> None:
        torch.save(value, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=sentence):
            checkpoint.read_state(tmp_path / "w.pth")

    @pytest.mark.parametrize("key", ["model", "state_dict"])
    def test_a_training_checkpoints_model_is_taken(self, tmp_path: Path, key: str) -> None:
        torch.save({key: {"w": torch.ones(2, dtype=torch.bfloat16)}, "epoch": 3}, tmp_path / "w.pth")
        assert torch.equal(checkpoint.read_state(tmp_path / "w.pth")["w"], torch.ones(2))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="There is no file"):
            checkpoint.read_state(tmp_path / "w.pth")

    def test_another_hash(self, shelf: Path) -> None:
        path = shelf / "here.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        entry = checkpoint.load_manifest(shelf / "manifest.toml")[0]
        with pytest.raises(CheckpointError, match="is not 'here': its SHA-256 is"):
            checkpoint.verify(entry)
        with pytest.raises(CheckpointError, match="damaged or was changed"):
            checkpoint.read_state(checkpoint.resolve("here", manifest=shelf / "manifest.toml"))


class Toy(nn.Module):
    """The outermost names of a detector, a few numbers wide."""

    def __init__(self, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.rpn = nn.ModuleDict({"head": nn.ModuleDict({"conv": nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 3)))})})
        fpn = nn.ModuleDict({"inner_blocks": nn.ModuleList([nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))])})
        self.backbone = nn.ModuleDict({"fpn": fpn})
        predictor = nn.ModuleDict({"cls_score": nn.Linear(width, classes), "bbox_pred": nn.Linear(width, 4 * classes)})
        self.roi_heads = nn.ModuleDict({"box_predictor": predictor})


class TestLoadInto:
    def test_loads(self) -> None:
        theirs, ours = Toy(), Toy()
        assert checkpoint.load_into(ours, theirs.state_dict()) == ()
        for key, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key])

    def test_old_keys_and_data_parallel(self) -> None:
        theirs, ours = Toy(), Toy()
        old = {
            "module."
            + key.replace("conv.0.0.", "conv.").replace("backbone.fpn.inner_blocks.0.0.", "fpn.inner_blocks.0."): value
            for key, value in theirs.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        assert "module.rpn.head.conv.weight" in old
        assert "module.fpn.inner_blocks.0.weight" in old
        checkpoint.load_into(ours, old)
        assert torch.equal(ours.state_dict()["rpn.head.conv.0.0.weight"], old["module.rpn.head.conv.weight"])
        assert torch.equal(
            ours.state_dict()["backbone.fpn.inner_blocks.0.0.weight"], old["module.fpn.inner_blocks.0.weight"]
        )

    def test_partial(self) -> None:
        theirs, ours = Toy().state_dict(), Toy()
        part = {key: value for key, value in theirs.items() if key.startswith("rpn.")}
        missing = checkpoint.load_into(ours, part, partial=True)
        assert "roi_heads.box_predictor.cls_score.weight" in missing
        assert not any(key.startswith("rpn.") or key.endswith("num_batches_tracked") for key in missing)
        with pytest.raises(CheckpointError, match="it has head, which the model has not"):
            checkpoint.load_into(ours, {"head": torch.ones(1)}, partial=True)

    @pytest.mark.parametrize(
        ("spoil", "sentences"),
        [
            (lambda s: s.pop("rpn.head.conv.0.0.bias"), [r"it lacks rpn\.head\.conv\.0\.0\.bias", "cut off"]),
            (lambda s: s.update(extra=torch.ones(1)), ["it has extra, which the model has not"]),
            (
                lambda s: s.update({"rpn.head.conv.0.0.weight": torch.ones(3, 2, 3, 3)}),
                [r"rpn\.head\.conv\.0\.0\.weight \(3, 2, 3, 3\) where the model's is \(2, 2, 3, 3\)", "another width"],
            ),
            (
                lambda s: s["rpn.head.conv.0.0.bias"].fill_(float("nan")),
                [r"NaN or infinity in rpn\.head\.conv\.0\.0\.bias", "diverged"],
            ),
            (lambda s: s.update({"fc.weight": torch.ones(1)}), ["ImageNet classifier's and not a detector's"]),
        ],
    )
    def test_refusals_name_keys_and_cause(
        self, spoil: Callable[[dict[str, Tensor]], object], sentences: list[str]
    ) -> None:
        ours = Toy()
        before = {key: value.clone() for key, value in ours.state_dict().items()}
        state = Toy().state_dict()
        spoil(state)
        for sentence in sentences:
            with pytest.raises(CheckpointError, match=sentence):
                checkpoint.load_into(ours, state)
        assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items()), "nothing changed"

    def test_wrong_class_count(self) -> None:
        with pytest.raises(CheckpointError, match=r"trained for 21 classes, background counted, .* made for 3"):
            checkpoint.load_into(Toy(classes=3), Toy(classes=21).state_dict())

    def test_entry_is_frozen(self, shelf: Path) -> None:
        entry = checkpoint.load_manifest(shelf / "manifest.toml")[0]
        with pytest.raises(TypeError):
            entry.metrics["ap"] = 1.0  # type: ignore[index]
        assert replace(entry, name="x").name == "x"


def _of_rank(rank: int | None) -> FasterRCNN:
    config = LITE.with_classes(len(CLASSES))
    return FasterRCNN(replace(config, roi_head=replace(config.roi_head, fc6_rank=rank))).eval()


@pytest.mark.parametrize("rank", [None, 5], ids=["one layer", "rank 5"])
def test_a_file_says_in_which_form_its_fc6_is(rank: int | None, tmp_path: Path) -> None:
    checkpoint.save(
        tmp_path / "mine.safetensors", _of_rank(rank).state_dict(), preset=PRESET, classes=CLASSES, metrics={}
    )
    detector = Detector.from_checkpoint(tmp_path / "mine.safetensors", precision="fp32")
    assert detector.config.roi_head.fc6_rank == rank
    checkpoint.import_file(tmp_path / "mine.safetensors", tmp_path / "again.safetensors")
    assert Detector.from_checkpoint(tmp_path / "again.safetensors").config.roi_head.fc6_rank == rank


def test_fc6_in_two_layers_answers_as_near_as_one_of_its_rank_can() -> None:
    whole = _of_rank(None)
    inputs = torch.randn(600, 30) @ torch.randn(30, LITE.fpn_channels * 49) / 30  # of 30 kinds, and noise
    inputs += 0.01 * torch.randn_like(inputs)
    with torch.inference_mode():
        answers = whole.roi_heads.box_head.fc6(inputs).double()
    mean, covariance = answers.mean(dim=0), torch.cov(answers.T, correction=0)

    def error(rank: int) -> float:
        two = _of_rank(rank)
        state = checkpoint.factored(whole.state_dict(), rank, mean, covariance, torch.ones(512).double())
        two.load_state_dict(state)
        with torch.inference_mode():
            found = two.roi_heads.box_head.fc6(inputs).double()
        return float((found - answers).square().sum() / len(answers))

    spread = torch.linalg.eigvalsh(covariance).flip(0)
    for rank in (10, 20):
        assert error(rank) == pytest.approx(float(spread[rank:].sum()), rel=1e-3)
    assert error(30) < 0.1 * error(20)


def test_multiplied_out_again_they_answer_the_same() -> None:
    two, pooled = _of_rank(20), torch.randn(3, LITE.fpn_channels, 7, 7)
    one = _of_rank(None)
    one.load_state_dict(checkpoint.merged(two.state_dict()))
    with torch.inference_mode():
        expected, found = two.roi_heads.box_head(pooled), one.roi_heads.box_head(pooled)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
