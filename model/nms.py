"""Non-maximum suppression (NMS): of boxes of one group that overlap too much, the one with the highest score stays.

A group is a pyramid level of an image, or a class of an image. A box is dropped where its IoU with a kept box of its
group is above the threshold; one at the threshold stays, as in torchvision. Equal scores are ordered by index, on every
device.

On a CPU torchvision's operator does the work, group by group. On a GPU that operator makes the host wait at every call,
since the number of kept boxes decides the size of its output. There ``PairwiseNMS`` computes all groups of a batch
together, in shapes that the host knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import ops as tv_ops

from model.transfer import download, upload

# Comparisons of two boxes that take as long as one call of torchvision's operator with its sorting.
_PAIRS_PER_CALL = 40_000

# Iterations before convergence is read for the first time, and between later readings. On photographs the bundled
# weights' RPN needs 10 to 21, classes 1 to 9 (`python -m benchmarks.engine.nms_rounds`); a chain of n boxes, each
# of which overlaps its neighbours alone, needs n.
LEVEL_ITERATIONS = 20
CLASS_ITERATIONS = 8
# Pairs whose overlaps are computed at one time, in temporaries of at most 20 bytes a pair: 320 MiB.
_PAIRS_AT_ONCE = 2**24
# Pairs of the masks that lie in memory together, of 2 bytes each: 256 MiB. An image whose levels have more, or a class
# that has (over 11,585 boxes), is left to torchvision's operator.
MASK_PAIRS = 2**27


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return the kept indices, int64 [K], by falling score, with torchvision's operator.

    boxes: float32 [M, 4]. scores: float32 [M]. threshold: in [0, 1].
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[sorted_nms(boxes[order], threshold)]


def sorted_nms(boxes: Tensor, threshold: float) -> Tensor:
    """Return the kept indices, int64 [K], rising, of boxes float32 [M, 4] that are sorted by falling score."""
    ranks = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    keep: Tensor = tv_ops.nms(boxes, ranks, threshold)
    return keep


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return the kept indices, int64 [K], by falling score over all groups, with torchvision's operator on the CPU.

    boxes: float32 [M, 4]. scores: float32 [M]. groups: int64 [M]. threshold: in [0, 1], the same for all groups.
    """
    names = torch.unique(groups)
    # NMS compares all pairs of a call, and each call has a cost of its own: take the cheaper of one call and many.
    if len(boxes) ** 2 <= _PAIRS_PER_CALL * len(names):
        # The groups are shifted apart, so that they cannot overlap. In float32 the shift would round coordinates by
        # enough to move an IoU across the threshold. float64 has 29 more bits, which the shift does not use up.
        high = boxes.double()
        shift = high.amax() - high.amin() + 1 if len(boxes) else 1
        return nms(high + (groups * shift)[:, None], scores, threshold)
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for group in names:
        members = torch.nonzero(groups == group).squeeze(1)
        keep[members[nms(boxes[members], scores[members], threshold)]] = True
    kept = torch.nonzero(keep).squeeze(1)
    return kept[torch.sort(scores[kept], descending=True, stable=True).indices]


class PairwiseNMS:
    """NMS of many groups at once, as an iteration to its fixed point, without reading a value from the device.

    A box is kept where it is valid and no kept box before it in its group overlaps it by more than the threshold. This
    condition has one solution, and applying it again and again from "all are kept" reaches it: after n iterations the
    first n boxes of each group are final. Most are final much sooner. The overlaps are computed with the operations of
    torchvision's CPU operator, in float32 and in its order, so that the same boxes are kept.

    Memory: 2 bytes a pair for the mask, and at most 320 MiB more while it is made.
    """

    def __init__(self, boxes: Tensor, valid: Tensor, thresholds: Tensor) -> None:
        """Compare all pairs of each group.

        boxes: float32 [G, K, 4], by falling score within each group. valid: bool [G, K], False for padding and for what
        may not suppress others. thresholds: float32 [G], from ``exact_threshold``.
        """
        groups, count = valid.shape
        # Counts of overlaps need no more than "none" or "some": float16 holds both without error.
        dtype = torch.float16 if boxes.is_cuda else torch.float32
        self._valid = valid.to(dtype)[:, None]
        self._overlaps = torch.empty((groups, count, count), dtype=dtype, device=boxes.device)
        areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
        rows = max(1, min(count, _PAIRS_AT_ONCE // max(1, count)))
        step = max(1, _PAIRS_AT_ONCE // max(1, rows * count))
        for start in range(0, groups, step):
            part = slice(start, start + step)
            for first in range(0, count, rows):
                block = slice(first, first + rows)
                iou = _iou(boxes[part, block], boxes[part], areas[part, block], areas[part])
                # Row i, column j: only an i before j may suppress it.
                self._overlaps[part, block] = (iou > thresholds[part, None, None]).triu_(first + 1)
        self._keep = self._valid

    def advance(self, iterations: int) -> tuple[Tensor, Tensor]:
        """Run ``iterations``; return keep, bool [G, K], and whether the last iteration changed nothing, bool []."""
        before = self._keep
        # In training, autocast would copy the mask to another type at each iteration.
        with torch.autocast(before.device.type, enabled=False):
            for _ in range(iterations):
                before = self._keep
                # 1 where a valid box is overlapped by no kept one, else 0 or less.
                self._keep = torch.baddbmm(self._valid, before, self._overlaps, alpha=-1).relu_()
        return self._keep[:, 0] > 0, (self._keep == before).all()


def _iou(a: Tensor, b: Tensor, areas_a: Tensor, areas_b: Tensor) -> Tensor:
    """Compute the IoU, float32 [G, M, K], of each box of ``a`` [G, M, 4] with each of ``b`` [G, K, 4] of its group.

    areas_a, areas_b: of the boxes, float32 [G, M] and [G, K].
    """
    sides = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:])
    sides = sides.sub_(torch.maximum(a[:, :, None, :2], b[:, None, :, :2])).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    del sides
    union = (areas_a[:, :, None] + areas_b[:, None]).sub_(shared)
    return shared.div_(union)


def exact_threshold(threshold: float) -> float:
    """Return the largest float32 that is not above ``threshold``.

    torchvision's CPU operator compares a float32 IoU with a threshold in double precision. A float32 is above the one
    exactly where it is above the other. Rounding to the nearest would not ensure that: 0.3 would become 0.30000001.
    """
    single = np.float32(threshold)
    # As doubles: numpy would compare a float32 with a Python number in float32.
    return float(single if float(single) <= threshold else np.nextafter(single, np.float32(-np.inf)))


# ---- levels of an image: groups of the same sizes in each image


def nms_per_level(
    boxes: Tensor, valid: Tensor, scores: Tensor, counts: Sequence[int], threshold: float
) -> list[Tensor]:
    """Run NMS within each level of each image; return for each image the kept indices, int64 [K], by falling score.

    boxes: float32 [B, M, 4], level by level, by falling score within each. valid: bool [B, M]. scores: float32 [B, M].
    counts: boxes of each level; they sum to M.
    """
    if boxes.is_cuda and len(counts) * max(counts) ** 2 <= MASK_PAIRS:
        return _nms_per_level_together(boxes, valid, scores, tuple(counts), threshold)
    kept = []
    for image in range(len(boxes)):
        alive = valid[image].nonzero().squeeze(1)
        sizes = [int(level.sum()) for level in valid[image].split(list(counts))]
        # The boxes of a level lie together, sorted by score: neither sorting nor a search for members is needed.
        levels = boxes[image, alive].split(sizes)
        starts = np.cumsum([0, *sizes])
        parts = [sorted_nms(level, threshold) + int(start) for level, start in zip(levels, starts[:-1], strict=True)]
        rows = alive[torch.cat(parts)]
        kept.append(rows[scores[image, rows].sort(descending=True, stable=True).indices])
    return kept


def _nms_per_level_together(
    boxes: Tensor, valid: Tensor, scores: Tensor, counts: tuple[int, ...], threshold: float
) -> list[Tensor]:
    """Run ``nms_per_level`` for all images and levels at once, on a GPU, with the same result.

    The host waits once for most boxes, and again where ``LEVEL_ITERATIONS`` are not enough.
    """
    step = max(1, MASK_PAIRS // (len(counts) * max(counts) ** 2))
    parts = [(boxes[i : i + step], valid[i : i + step], scores[i : i + step]) for i in range(0, len(boxes), step)]
    results = [_order_kept(*part, counts, threshold, until_converged=False) for part in parts]
    # One copy to the host for all parts: the lengths and the flag of each.
    on_host = iter(download(*(tensor for result in results for tensor in (result.lengths, result.converged))))
    kept: list[Tensor] = []
    for part, result in zip(parts, results, strict=True):
        lengths, converged = next(on_host), next(on_host)
        if not converged:
            result = _order_kept(*part, counts, threshold, until_converged=True)
            (lengths,) = download(result.lengths)
        kept += [row[:length] for row, length in zip(result.order, lengths.tolist(), strict=True)]
    return kept


class _OrderedKept(NamedTuple):
    """Which boxes NMS keeps in B images of M boxes each, on the device.

    order: int64 [B, M], the indices of each image, the kept ones first and by falling score. lengths: int64 [B], how
    many each image keeps. converged: bool [], False where NMS needs more iterations.
    """

    order: Tensor
    lengths: Tensor
    converged: Tensor


def _order_kept(
    boxes: Tensor, valid: Tensor, scores: Tensor, counts: tuple[int, ...], threshold: float, *, until_converged: bool
) -> _OrderedKept:
    """Run NMS on the device; arguments as of ``nms_per_level``.

    until_converged: iterate until it has converged, for which the host waits; otherwise ``LEVEL_ITERATIONS`` times.
    """
    images, levels, longest = len(boxes), len(counts), max(counts)
    index, inside, padded_index = _level_layout(counts, boxes.device)
    padded = boxes[:, index].view(images * levels, longest, 4)
    alive = (valid[:, index] & inside).view(images * levels, longest)
    limits = boxes.new_full((images * levels,), exact_threshold(threshold))
    keep, converged = _converge(PairwiseNMS(padded, alive, limits), LEVEL_ITERATIONS, until_converged)
    keep = keep.view(images, levels * longest)[:, padded_index]
    order = torch.where(keep, scores, -1.0).sort(dim=1, descending=True, stable=True).indices
    return _OrderedKept(order, keep.sum(dim=1), converged)


def _converge(pairs: PairwiseNMS, iterations: int, until_converged: bool) -> tuple[Tensor, Tensor]:
    """Advance by ``iterations``; with ``until_converged``, for which the host waits, until nothing changes any more."""
    keep, converged = pairs.advance(iterations)
    while until_converged and not bool(download(converged)[0]):
        keep, converged = pairs.advance(iterations)
    return keep, converged


@lru_cache(maxsize=64)
def _level_layout(counts: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lay levels of unequal sizes out as rows of the longest one's length K.

    Returns the index of each padded position, int64 [L * K], which of the positions are not padding, bool [L * K], and
    the padded position of each index, int64 [M]. Cached: a caller must not write to them.
    """
    longest, starts = max(counts), np.cumsum([0, *counts])
    position = np.arange(longest)
    inside = np.concatenate([position < count for count in counts])
    index = np.concatenate(
        [start + np.minimum(position, count - 1) for start, count in zip(starts[:-1], counts, strict=True)]
    )
    with torch.inference_mode(False):  # training may get them from the cache
        return (
            upload(np.maximum(index, 0), torch.int64, device),
            upload(inside, torch.bool, device),
            upload(inside.nonzero()[0], torch.int64, device),
        )


# ---- classes of an image: groups whose sizes are read from the device


def nms_per_class(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    counts: Sequence[int],
    thresholds: Sequence[float],
    *,
    until_converged: bool,
) -> tuple[Tensor, Tensor]:
    """Run NMS within groups of any sizes; return keep, bool [N], and whether it has converged, bool [].

    boxes: float32 [N, 4]. scores: float32 [N]; equal ones are ordered by index. groups: int64 [N]. valid: bool [N],
    False for what is neither kept nor suppresses others. counts: members of each group 0, 1, ...; they sum to N.
    thresholds: one a group. until_converged: iterate until it has converged, for which the host waits; otherwise
    ``CLASS_ITERATIONS`` times, without a wait.
    """
    keep = torch.zeros(len(boxes) + 1, dtype=torch.bool, device=boxes.device)  # the last entry is for padding
    done = torch.ones((), dtype=torch.bool, device=boxes.device)
    order = scores.sort(descending=True, stable=True).indices
    order = order[groups[order].sort(stable=True).indices]
    starts = np.cumsum([0, *counts])
    for members in _chunks(counts):
        longest = counts[members[0]]
        sizes = upload([counts[group] for group in members], torch.int64, boxes.device)[:, None]
        first = upload([starts[group] for group in members], torch.int64, boxes.device)[:, None]
        limits = upload([exact_threshold(thresholds[group]) for group in members], torch.float32, boxes.device)
        position = torch.arange(longest, device=boxes.device)[None]
        inside = position < sizes
        rows = order[first + torch.minimum(position, sizes - 1)]
        alive = valid[rows] & inside
        if longest**2 > MASK_PAIRS:
            members_alive = rows[0][alive[0]]
            keep[members_alive[sorted_nms(boxes[members_alive], thresholds[members[0]])]] = True
            continue
        kept, converged = _converge(PairwiseNMS(boxes[rows], alive, limits), CLASS_ITERATIONS, until_converged)
        keep.scatter_(0, torch.where(inside, rows, len(boxes)).flatten(), kept.flatten())
        done &= converged
    return keep[:-1], done


def _chunks(counts: Sequence[int]) -> list[list[int]]:
    """Divide the groups that have members into chunks whose pair masks fit into MASK_PAIRS, the largest groups first.

    A group that is far smaller than the largest of its chunk would be mostly padding: it begins a new chunk.
    """
    chunks: list[list[int]] = []
    for group in sorted((g for g, count in enumerate(counts) if count), key=lambda g: -counts[g]):
        longest = counts[chunks[-1][0]] if chunks else 0
        if (
            not chunks
            or (len(chunks[-1]) + 1) * longest**2 > MASK_PAIRS
            or (longest > 64 and counts[group] * 4 < longest)
        ):
            chunks.append([])
        chunks[-1].append(group)
    return chunks
