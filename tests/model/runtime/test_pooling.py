"""Which form of pooling serves: the faster where there is a choice, and it is said."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model.config import LITE, PAPER_VGG16, RoIHeadConfig
from model.detector import Detector
from model.roi_head import RoIHead
from model.runtime.pooling import choose, random_regions


def _heads(config: RoIHeadConfig = LITE.roi_head) -> RoIHead:
    return RoIHead(4, 3, replace(config, fc_channels=(8,))).eval()


def _maps() -> list[torch.Tensor]:
    return [torch.randn(1, 4, 64 // s, 96 // s) for s in (1, 2, 4, 8)]


def _seconds(heads: RoIHead, table: float, levels: float) -> Callable[[Callable[[], object]], float]:
    """A device on which the heads take so long in either form, and the first call of each much longer."""
    seen: set[bool] = set()

    def seconds(call: Callable[[], object]) -> float:
        call()
        first = heads.by_level not in seen
        seen.add(heads.by_level)
        return (levels if heads.by_level else table) + 10 * first * (not heads.by_level)

    return seconds


@pytest.mark.parametrize(("table", "levels", "named"), [(0.002, 0.001, "roi_align"), (0.001, 0.002, "the embedding")])
def test_the_faster_form_serves_and_the_note_says_which(table: float, levels: float, named: str) -> None:
    heads, regions = _heads(), random_regions((256, 384), 20, torch.device("cpu"))
    note = choose(heads, _maps(), regions, _seconds(heads, table, levels))
    assert heads.by_level == (levels < table)
    assert note.startswith(f"Regions are pooled by {named}")
    assert f"roi_align {levels * 1e3:.2f} ms" in note
    assert f"bag {table * 1e3:.2f} ms" in note


def test_the_heads_answer_the_same_in_either_form() -> None:
    heads, maps, regions = _heads(), _maps(), random_regions((256, 384), 20, torch.device("cpu"))
    with torch.inference_mode():
        expected = heads(maps, regions)
        heads.by_level = True
        for a, b in zip(heads(maps, regions), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_papers_maximum_has_one_form() -> None:
    heads = _heads(PAPER_VGG16.roi_head)
    assert choose(heads, _maps(), torch.zeros(0, 5), lambda _: pytest.fail("nothing to time")) == ""


def test_a_cpu_always_pools_from_the_table() -> None:
    detector = Detector.random("LITE", device="cpu")
    detector.warm_up()
    assert not detector.model.roi_heads.by_level
    assert detector.info.engine_note == "Eager."


@pytest.mark.gpu
def test_a_gpu_has_its_choice_made_at_the_warm_up() -> None:
    detector = Detector.random("LITE", device="cuda")
    detector.warm_up()
    named = "roi_align" if detector.model.roi_heads.by_level else "the embedding bag"
    assert f"pooled by {named} (" in detector.info.engine_note
