"""The region proposal network (arXiv 1506.01497, section 3.1): boxes that may hold an object.

    1. slide a 3x3 convolution over each map; two sibling 1x1 convolutions give, for each of the k anchors of a cell,
       an objectness logit and 4 offsets                                               -> ``RPNHead``
    2. select the best ``pre_nms`` anchors of each level by objectness, then decode those,
    3. clip them to the image; mark those large and likely enough                       -> ``RPN.select_candidates``
    4. suppress overlapping boxes within each level                                     -> ``RPN.nms_per_level``
    5. keep the best ``post_nms`` over all levels                                       -> ``RPN.limit_proposals``

Inference runs the steps one by one (``model.runtime.forward``), training through ``RPN.select_proposals``.

Selection comes before decoding: of 268,569 anchors at 800x1344, 4,819 are decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from model import anchors as anchor_grid
from model import boxes as box_ops
from model.config import AnchorConfig, RPNConfig
from model.nms import nms_per_level
from model.structures import Proposals
from model.transfer import upload


@dataclass(frozen=True)
class Candidates:
    """The best anchors of each level, decoded: M an image, level-major, by falling objectness within a level.

    boxes: float32 [B, M, 4], canvas pixels, clipped to each image. logits: float32 [B, M].
    deltas: float32 [B, M, 4]. anchor_indices: int64 [B, M]. levels, ranks: int64 [M], the same for every image.
    valid: bool [B, M], large and likely enough to enter NMS. anchors: float32 [N, 4], all anchors of the canvas.
    counts: how many of the M each level has.
    """

    boxes: Tensor
    logits: Tensor
    deltas: Tensor
    anchor_indices: Tensor
    levels: Tensor
    ranks: Tensor
    valid: Tensor
    anchors: Tensor
    counts: tuple[int, ...]

    def proposals(self, image: int, rows: Tensor) -> Proposals:
        """Return the candidates ``rows`` (int64 [K]) of image number ``image`` as proposals, in that order."""
        anchor_indices = self.anchor_indices[image, rows]
        return Proposals(
            boxes=self.boxes[image, rows],
            objectness=self.logits[image, rows].sigmoid(),
            levels=self.levels[rows],
            anchor_indices=anchor_indices,
            anchors=self.anchors[anchor_indices],
            deltas=self.deltas[image, rows],
            ranks=self.ranks[rows],
        )


class RPNHead(nn.Module):
    """The 3x3 convolution and its siblings, shared by all levels."""

    def __init__(self, inputs: int, per_cell: int, config: RPNConfig) -> None:
        super().__init__()
        self.softmax = config.softmax
        channels = config.channels or inputs
        self.conv = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(inputs if i == 0 else channels, channels, 3, padding=1), nn.ReLU(inplace=True))
                for i in range(config.convs)
            )
        )
        self.cls_logits = nn.Conv2d(channels, per_cell * (2 if config.softmax else 1), 1)
        self.bbox_pred = nn.Conv2d(channels, per_cell * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)  # arXiv 1506.01497, section 3.1.3
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map features, L of [B, C, Hl, Wl], to objectness logits [B, N] and offsets [B, N, 4].

        Anchors are level-major, then row, column, anchor of the cell.
        """
        logits, deltas = [], []
        for level in maps:
            hidden = self.conv(level)
            scores = self.cls_logits(hidden)
            if self.softmax:
                # py-faster-rcnn's channels are [k background | k object], not pairs; the softmax over a pair is the
                # sigmoid of its difference.
                background, foreground = scores.chunk(2, dim=1)
                scores = foreground - background
            logits.append(scores.permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(level.shape[0], -1, 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class RPN(nn.Module):
    """Head and proposal layer. All weights are in ``head``.

    Everything after the head is computed in float32: in bf16 a box on a 1344-wide canvas would be up to 3 pixels off.
    """

    def __init__(self, inputs: int, anchors: AnchorConfig, config: RPNConfig) -> None:
        super().__init__()
        self.head = RPNHead(inputs, anchors.per_cell, config)
        self.anchors = anchors
        self.config = config

    def grid_anchors(
        self, canvas: tuple[int, int], maps: tuple[tuple[int, int], ...], device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Return all anchors, float32 [N, 4] in canvas pixels, and how many each level has.

        canvas: (height, width). maps: (Hl, Wl) by level.
        """
        counts = tuple(rows * columns * self.anchors.per_cell for rows, columns in maps)
        return anchor_grid.grid_anchors(self.anchors, canvas, maps, device), counts

    @torch.no_grad()
    def select_candidates(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        counts: Sequence[int],
        sizes: Tensor,
        scales: Tensor | None = None,
    ) -> Candidates:
        """Run steps 2 and 3 for the whole batch; the host reads no value back from the device.

        logits [B, N] and deltas [B, N, 4] as the head gives them, any float dtype; anchors float32 [N, 4]; counts:
        anchors by level; sizes [B, 2]: height and width of each image on the canvas; scales float32 [B]: canvas
        pixels per original pixel, needed where the smallest side is meant in original pixels (py-faster-rcnn).
        """
        limit = self.config.pre_nms_train if self.training else self.config.pre_nms
        kept_counts = tuple(min(limit, count) for count in counts)
        levels, ranks, starts = _levels_ranks_and_starts(kept_counts, tuple(counts), logits.device)
        per_level = zip(logits.split(tuple(counts), dim=1), kept_counts, strict=True)
        top = [level_logits.topk(kept, dim=1).indices for level_logits, kept in per_level]
        # topk returns equal logits in any order, and differs between CPU and GPU. Sorting by index, then stably by
        # score, then stably by level orders them by index everywhere.
        index = (torch.cat(top, dim=1) + starts).sort(dim=1).values
        order = logits.gather(1, index).sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, levels[order].sort(dim=1, stable=True).indices)
        index = index.gather(1, order)
        top_logits = logits.gather(1, index).float()
        top_deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4)).float()
        height, width = sizes[:, :1].float(), sizes[:, 1:].float()
        boxes = box_ops.clip(box_ops.decode(top_deltas, anchors[index]), height, width)
        sides = boxes[..., 2:] - boxes[..., :2]
        smallest: Tensor | float = self.config.min_size
        if self.config.scale_min_size and scales is not None:
            smallest = (self.config.min_size * scales)[:, None, None]
        # At or above the threshold, as torchvision does here; for class scores it takes only what is above.
        valid = (sides >= smallest).all(dim=-1) & (top_logits.sigmoid() >= self.config.score_threshold)
        return Candidates(boxes, top_logits, top_deltas, index, levels, ranks, valid, anchors, kept_counts)

    @torch.no_grad()
    def nms_per_level(self, candidates: Candidates) -> list[Tensor]:
        """Run step 4: for each image the candidates, int64 [K], that NMS leaves, by falling objectness.

        Equal objectness is ordered by index, so that a CPU and a GPU give the same order.
        """
        objectness = candidates.logits.sigmoid()
        threshold = self.config.nms_threshold
        return nms_per_level(candidates.boxes, candidates.valid, objectness, candidates.counts, threshold)

    def limit_proposals(self, after_nms: Sequence[Tensor]) -> list[Tensor]:
        """Run step 5: for each image the candidates, int64 [R], that are its proposals, from what NMS left."""
        limit = self.config.post_nms_train if self.training else self.config.post_nms
        return [rows[:limit] for rows in after_nms]

    def select_proposals(self, candidates: Candidates) -> list[Proposals]:
        """Run steps 4 and 5: the proposals of each image, canvas pixels."""
        final_rows = self.limit_proposals(self.nms_per_level(candidates))
        return [candidates.proposals(image, rows) for image, rows in enumerate(final_rows)]


@lru_cache(maxsize=64)
def _levels_ranks_and_starts(
    kept: tuple[int, ...], counts: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return level, rank and the level's first anchor, int64 [M] each, of level-major candidates.

    kept: candidates of each level; they sum to M. counts: anchors of each level. Cached: callers must not write to the
    tensors.
    """
    sizes = np.array(kept)
    levels = np.repeat(np.arange(len(kept)), sizes)
    ranks = np.concatenate([np.arange(count) for count in kept])
    starts = np.repeat(np.cumsum([0, *counts[:-1]]), sizes)
    with torch.inference_mode(False):  # training may read them from the cache
        return tuple(upload(part, torch.int64, device) for part in (levels, ranks, starts))  # type: ignore[return-value]
