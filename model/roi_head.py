"""The Fast R-CNN detector on the proposals (P 3.2): what is it, and where exactly?

1. pool each region to 7x7 from the pyramid level that fits its size                     -> ``RoIHead.pool``
2. convolutions or fully connected layers, then class logits and an offset per class     -> ``RoIHead.classify``
3. softmax; keep what scores above the threshold, and only then decode its box
4. clip, drop slivers, NMS within each class, keep the best                              -> ``RoIHead.find``
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from model import boxes as box_ops
from model.config import RoIHeadConfig
from model.nms import grouped_nms, nms_per_class
from model.roi_align import flatten_maps, map_shapes, roi_align_embedding_bag, roi_pool, table_layout
from model.transfer import download, upload


class BoxHead(nn.Sequential):
    """Two fully connected layers, fc6 and fc7 (P; TV's TwoMLPHead): pooled [R, C, r, r] to features [R, F].

    fc6, by far the larger, may be two linear layers of a lower rank (Fast R-CNN, arXiv 1504.08083, 3.1).
    """

    def __init__(self, inputs: int, config: RoIHeadConfig) -> None:
        width = inputs * config.resolution**2
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, channels in enumerate(config.fc_channels, start=6):
            rank = config.fc6_rank if number == 6 else None
            layers[f"fc{number}"] = nn.Linear(width, channels) if rank is None else _low_rank(width, rank, channels)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            if config.dropout:
                layers[f"drop{number}"] = nn.Dropout(config.dropout)
            width = channels
        super().__init__(layers)


def _low_rank(inputs: int, rank: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


class ConvBoxHead(nn.Sequential):
    """3x3 convolutions with batch norm, then fully connected layers (TV v2): pooled [R, C, r, r] to [R, F]."""

    def __init__(self, inputs: int, config: RoIHeadConfig) -> None:
        layers: list[nn.Module] = []
        for channels in config.conv_channels:
            conv = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
            layers.append(nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)))
            inputs = channels
        layers.append(nn.Flatten())
        width = inputs * config.resolution**2
        for channels in config.fc_channels:
            layers += [nn.Linear(width, channels), nn.ReLU(inplace=True)]
            width = channels
        super().__init__(*layers)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class BoxPredictor(nn.Module):
    """The two siblings: logits [R, classes] and offsets [R, 4 * classes], class-major."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, num_classes)
        self.bbox_pred = nn.Linear(features, num_classes * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)  # PFR prototxt
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features [R, F] to class logits [R, classes] and offsets [R, 4 * classes]."""
        return self.cls_score(features), self.bbox_pred(features)


class RoIHead(nn.Module):
    """Pooling, box head and predictor, and the way from their outputs to detections."""

    def __init__(self, channels: int, num_classes: int, config: RoIHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.box_head = ConvBoxHead(channels, config) if config.conv_channels else BoxHead(channels, config)
        self.box_predictor = BoxPredictor(config.fc_channels[-1], num_classes)

    def levels(self, boxes: Tensor) -> Tensor:
        """Which pooled level (int64 [R], 0 the finest) each region [R, 4] in canvas pixels belongs to.

        floor(k0 + log2(side / canonical) + 1e-6), clamped to what there is (FPN eq. 1, TV poolers.py; trap 16).
        """
        config = self.config
        finest, coarsest = (round(-math.log2(config.scales[i])) for i in (0, -1))
        side = box_ops.area(boxes).sqrt()
        level = torch.floor(config.canonical_level + torch.log2(side / config.canonical_size) + 1e-6)
        return level.clamp(finest, coarsest).long() - finest

    def pool(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Step 1: [R, C, r, r] from the backbone's maps, for regions float32 [R, 5] of (picture, box on the canvas)."""
        config = self.config
        pooled_maps = [maps[level] for level in config.levels]
        if config.pool == "max":
            return roi_pool(pooled_maps[0], regions, config.scales[0], config.resolution)
        layout = table_layout(map_shapes(pooled_maps), len(pooled_maps[0]), regions.device)
        return self.pool_table(flatten_maps(pooled_maps), layout, regions).permute(0, 3, 1, 2)

    def pool_table(self, table: Tensor, layout: Tensor, regions: Tensor) -> Tensor:
        """Step 1 from the flattened pyramid (``ops.flatten_maps``, ``ops.table_layout``): [R, r, r, C]."""
        config = self.config
        levels = self.levels(regions[:, 1:])
        return roi_align_embedding_bag(
            table, layout, config.scales, regions, levels, config.resolution, config.sampling
        )

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Step 2: class logits [R, classes] and offsets [R, classes, 4] of pooled regions [R, C, r, r]."""
        logits, offsets = self.box_predictor(self.box_head(pooled))
        return logits, offsets.reshape(-1, self.num_classes, 4)  # not (R, -1, 4): R may be 0 (trap 19)

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Steps 1 and 2: logits [R, classes] and offsets [R, classes, 4] for regions [R, 5] of (picture, box)."""
        return self.classify(self.pool(maps, regions))

    def detections(
        self,
        logits: Tensor,
        offsets: Tensor,
        proposals: Tensor,
        size: tuple[int, int],
        *,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int | None,
        class_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps 3 and 4 for one picture.

        logits [R, classes], offsets [R, classes, 4] and proposals float32 [R, 4] of this picture; size: its height and
        width on the canvas; max_detections: None for all that NMS leaves; class_mask: bool [classes], the classes
        wanted. Returns boxes float32 [D, 4] on the canvas, scores float32 [D] falling, class ids int64 [D], and for
        each the proposal's row int64 [D].
        """
        found = self.find(
            logits,
            offsets,
            stack_regions([proposals]),
            torch.tensor([size], device=logits.device),
            torch.tensor([score_threshold], device=logits.device),
            [nms_threshold],
            None if class_mask is None else class_mask[None],
        )
        first = slice(max_detections)
        return found.boxes[first], found.scores[first], found.class_ids[first], found.rows[first]

    def find(
        self,
        logits: Tensor,
        offsets: Tensor,
        regions: Tensor,
        sizes: Tensor,
        score_thresholds: Tensor,
        nms_thresholds: Sequence[float],
        class_masks: Tensor | None = None,
    ) -> Found:
        """Steps 3 and 4 for a batch at once.

        logits [R, classes], offsets [R, classes, 4] of the batch's regions float32 [R, 5], canvas pixels. For each
        picture: sizes [B, 2], height and width on the canvas; score_thresholds float32 [B]; nms_thresholds;
        class_masks: bool [B, classes], the classes wanted, or None for all.
        """
        scores = logits.float().softmax(dim=1)
        picture = regions[:, 0].long()
        wanted = scores > score_thresholds[picture, None]  # strictly (trap 10)
        wanted[:, 0] = False  # background is index 0 (trap 20)
        if class_masks is not None:
            wanted &= class_masks[picture]
        counts: list[int] = []
        if wanted.is_cuda:
            # How many candidates each class of each picture has: one wait, and every size after it is known.
            table = wanted.new_zeros((sizes.shape[0], self.num_classes), dtype=torch.int32)
            (table,) = download(table.index_add_(0, picture, wanted.int()))
            counts = table.flatten().tolist()
            rows, classes = torch.nonzero_static(wanted, size=sum(counts)).unbind(dim=1)
        else:
            rows, classes = torch.nonzero(wanted, as_tuple=True)
        picture = picture[rows]
        boxes = box_ops.decode(offsets[rows, classes].float(), regions[rows, 1:], self.config.box_weights)
        heights, widths = sizes.to(boxes.dtype)[picture].unbind(dim=1)
        boxes = box_ops.clip(boxes, heights, widths)
        large = ((boxes[:, 2:] - boxes[:, :2]) >= self.config.min_size).all(dim=1)
        candidates = Found(boxes, scores[rows, classes], classes, rows, picture)
        if wanted.is_cuda:
            return self._suppress_on_device(candidates, large, counts, nms_thresholds)
        return self._suppress(candidates.at(large.nonzero().squeeze(1)), nms_thresholds)

    def _suppress(self, candidates: Found, thresholds: Sequence[float]) -> Found:
        """Run NMS within each class of each image, at the image's threshold, on a CPU."""
        boxes, scores, classes, _, picture = candidates
        groups = picture * self.num_classes + classes
        if len(set(thresholds)) == 1:
            return candidates.at(grouped_nms(boxes, scores, groups, thresholds[0]))
        kept = []
        for i, threshold in enumerate(thresholds):
            members = torch.nonzero(picture == i).squeeze(1)
            kept.append(members[grouped_nms(boxes[members], scores[members], groups[members], threshold)])
        together = torch.cat(kept).sort().values
        return candidates.at(together[scores[together].sort(descending=True, stable=True).indices])

    def _suppress_on_device(
        self, candidates: Found, large: Tensor, counts: Sequence[int], thresholds: Sequence[float]
    ) -> Found:
        """Do the same on a GPU: the host waits once, for the answer, unless NMS needs more than its usual rounds.

        large: bool [N], the candidates that may be kept. counts: candidates of each class of each image, image-major.
        """
        boxes, scores, classes, _, picture = candidates
        groups = picture * self.num_classes + classes
        limits = [threshold for threshold in thresholds for _ in range(self.num_classes)]
        settled, settle = False, False
        while not settled:
            keep, done = nms_per_class(boxes, scores, groups, large, counts, limits, settle=settle)
            *parts, keep, done = download(*candidates, keep, done)
            settled, settle = bool(done), True
        kept = keep.nonzero().squeeze(1)
        return Found(*parts).at(kept[parts[1][kept].sort(descending=True, stable=True).indices])


class Found(NamedTuple):
    """What a batch's pictures show, by falling score over all of them; on the host, but for candidates within ``find``.

    boxes: float32 [D, 4] on the canvas. scores: float32 [D]. class_ids: int64 [D]. rows: int64 [D], the region that
    each comes from, counted over the batch. pictures: int64 [D].
    """

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    rows: Tensor
    pictures: Tensor

    def at(self, index: Tensor) -> Found:
        """Take the rows ``index``, int64 [K]."""
        return Found(*(part[index] for part in self))


def stack_regions(boxes: Sequence[Tensor]) -> Tensor:
    """Each picture's boxes [Ri, 4] as regions float32 [R, 5] of (picture, x1, y1, x2, y2), in the pictures' order."""
    together = torch.cat(list(boxes))
    counts = [len(rows) for rows in boxes]
    pictures = upload(np.repeat(np.arange(len(boxes), dtype=np.float32), counts), torch.float32, together.device)
    return torch.cat((pictures[:, None], together), dim=1)
