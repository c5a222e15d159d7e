"""The region proposal network (P 3.1): where might an object be?

    1. slide a 3x3 convolution over each map; two sibling 1x1 convolutions give, for each of the k anchors of a cell,
       an objectness logit and 4 offsets                                                      -> ``RPNHead``
    2. keep the best ``pre_nms`` anchors of each level by objectness, and only then decode them
    3. clip to the picture; drop the too small and the too unlikely                            -> ``RPN.candidates``
    4. NMS within each level, then the best ``post_nms`` over all levels                       -> ``RPN.propose``

Top-k before decoding is the order of the paper's idea, not of its code: 268,569 anchors at 800x1344 become 4,819
candidates before a box is computed.
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
    """The anchors of a batch that survived top-k, decoded; M of each picture, level-major, falling within a level.

    boxes: float32 [B, M, 4], canvas pixels, clipped to each picture. logits: float32 [B, M].
    deltas: float32 [B, M, 4]. anchor_indices: int64 [B, M]. levels, ranks: int64 [M], the same for every picture.
    valid: bool [B, M], large and likely enough to enter NMS. anchors: float32 [N, 4], the whole grid.
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

    def of_picture(self, picture: int, index: Tensor) -> Proposals:
        """The candidates ``index`` (int64 [K]) of one picture as proposals, in the order given."""
        anchor_indices = self.anchor_indices[picture, index]
        return Proposals(
            boxes=self.boxes[picture, index],
            objectness=self.logits[picture, index].sigmoid(),
            levels=self.levels[index],
            anchor_indices=anchor_indices,
            anchors=self.anchors[anchor_indices],
            deltas=self.deltas[picture, index],
            ranks=self.ranks[index],
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
                nn.init.normal_(layer.weight, std=0.01)  # P 3.1.3
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps [B, C, Hl, Wl] to objectness logits [B, N] and offsets [B, N, 4]: level, row, column, anchor."""
        logits, deltas = [], []
        for level in maps:
            hidden = self.conv(level)
            scores = self.cls_logits(hidden)
            if self.softmax:
                # Channels are [k background | k object] (trap 14); softmax over a pair is a sigmoid of the difference.
                background, foreground = scores.chunk(2, dim=1)
                scores = foreground - background
            logits.append(scores.permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(level.shape[0], -1, 4))
        return torch.cat(logits, dim=1), torch.cat(deltas, dim=1)


class RPN(nn.Module):
    """Head and proposal layer. Its weights lie in ``head``; the rest is arithmetic, always in float32 (trap 13)."""

    def __init__(self, inputs: int, anchors: AnchorConfig, config: RPNConfig) -> None:
        super().__init__()
        self.head = RPNHead(inputs, anchors.per_cell, config)
        self.anchors = anchors
        self.config = config

    def grid(
        self, canvas: tuple[int, int], maps: tuple[tuple[int, int], ...], device: torch.device
    ) -> tuple[Tensor, tuple[int, ...]]:
        """All anchors float32 [N, 4] in canvas pixels, and how many each level has."""
        counts = tuple(rows * columns * self.anchors.per_cell for rows, columns in maps)
        return anchor_grid.grid_anchors(self.anchors, canvas, maps, device), counts

    @torch.no_grad()
    def candidates(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        counts: Sequence[int],
        sizes: Tensor,
        scales: Tensor | None = None,
    ) -> Candidates:
        """Steps 2 and 3, for the whole batch at once and without a value read back from the device.

        logits [B, N] and deltas [B, N, 4] as the head gives them, any float type; anchors float32 [N, 4]; counts:
        anchors by level; sizes [B, 2]: height and width of each picture on the canvas; scales float32 [B]: canvas
        pixels per original pixel, needed only where the smallest side is meant in original pixels (PFR).
        """
        limit = self.config.pre_nms_train if self.training else self.config.pre_nms
        kept = tuple(min(limit, count) for count in counts)
        levels, ranks, starts = _levels_ranks_and_starts(kept, tuple(counts), logits.device)
        parts = zip(logits.split(tuple(counts), dim=1), kept, strict=True)
        top = [part.topk(keep, dim=1).indices for part, keep in parts]
        # topk leaves ties in any order: so first by index, then stably by score, then stably by level (trap 11).
        index = (torch.cat(top, dim=1) + starts).sort(dim=1).values
        order = logits.gather(1, index).sort(dim=1, descending=True, stable=True).indices
        order = order.gather(1, levels[order].sort(dim=1, stable=True).indices)
        index = index.gather(1, order)
        chosen = logits.gather(1, index).float()
        offsets = deltas.gather(1, index[..., None].expand(-1, -1, 4)).float()
        height, width = sizes[:, :1].float(), sizes[:, 1:].float()
        boxes = box_ops.clip(box_ops.decode(offsets, anchors[index]), height, width)
        sides = boxes[..., 2:] - boxes[..., :2]
        smallest: Tensor | float = self.config.min_size
        if self.config.scale_min_size and scales is not None:
            smallest = (self.config.min_size * scales)[:, None, None]
        valid = (sides >= smallest).all(dim=-1) & (chosen.sigmoid() >= self.config.score_threshold)
        return Candidates(boxes, chosen, offsets, index, levels, ranks, valid, anchors, kept)

    @torch.no_grad()
    def survivors(self, candidates: Candidates) -> list[Tensor]:
        """Run NMS, step 4 up to the cut: for each image the candidates int64 [K] that it leaves, by falling objectness.

        Equal objectness is ordered by index (trap 11).
        """
        objectness = candidates.logits.sigmoid()
        threshold = self.config.nms_threshold
        return nms_per_level(candidates.boxes, candidates.valid, objectness, candidates.counts, threshold)

    def cut(self, survivors: Sequence[Tensor]) -> list[Tensor]:
        """Cut to the limit, the end of step 4: the best survivors of each image, int64 [R], are its proposals."""
        limit = self.config.post_nms_train if self.training else self.config.post_nms
        return [index[:limit] for index in survivors]

    def propose(self, candidates: Candidates) -> list[Proposals]:
        """The final proposals of each picture, canvas pixels."""
        kept = self.cut(self.survivors(candidates))
        return [candidates.of_picture(picture, index) for picture, index in enumerate(kept)]


@lru_cache(maxsize=64)
def _levels_ranks_and_starts(
    kept: tuple[int, ...], counts: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return level, rank and the level's first anchor, int64 [M] each, of candidates that lie level by level.

    kept: candidates of each level; they sum to M. counts: its anchors. Cached: callers must not write to them.
    """
    sizes = np.array(kept)
    levels = np.repeat(np.arange(len(kept)), sizes)
    ranks = np.concatenate([np.arange(count) for count in kept])
    starts = np.repeat(np.cumsum([0, *counts[:-1]]), sizes)
    with torch.inference_mode(False):  # training may meet them in the cache
        return tuple(upload(part, torch.int64, device) for part in (levels, ranks, starts))  # type: ignore[return-value]
