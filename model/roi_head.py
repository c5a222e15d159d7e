"""The Fast R-CNN detector (arXiv 1506.01497, section 3.2): a class and a refined box for each proposal.

1. pool each region to ``resolution`` x ``resolution`` bins, from the pyramid level that fits its size,
                                                                                    -> ``RoIHead.pool``
2. convolutions, if any, and fully connected layers; class logits, four offsets per class
                                                                                    -> ``RoIHead.classify``
3. softmax; keep what scores above the threshold, then decode its box
4. clip; drop boxes with a side below ``min_size``; suppress overlapping boxes within each class
                                                                                    -> ``RoIHead.postprocess``
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
    """Two fully connected layers, fc6 and fc7 (torchvision's TwoMLPHead): pooled [R, C, r, r] to features [R, F].

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
    """Return a linear layer [R, inputs] -> [R, outputs] as the product of two."""
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


class ConvBoxHead(nn.Sequential):
    """3x3 convolutions with batch norm, then fully connected layers: pooled [R, C, r, r] to features [R, F].

    torchvision's ``fasterrcnn_resnet50_fpn_v2`` has this head.
    """

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
    """The two sibling layers: class logits [R, classes] and offsets [R, 4 * classes], class-major."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, num_classes)
        self.bbox_pred = nn.Linear(features, num_classes * 4)
        nn.init.normal_(self.cls_score.weight, std=0.01)  # as py-faster-rcnn's prototxt
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [R, F] to class logits [R, classes] and offsets [R, 4 * classes]."""
        return self.cls_score(features), self.bbox_pred(features)


class BatchDetections(NamedTuple):
    """Detections of all images of a batch together.

    After NMS they are on the host, by falling score; before it, within ``postprocess``, on the device in any order.

    boxes: float32 [D, 4], canvas pixels. scores: float32 [D]. class_ids: int64 [D]. region_rows: int64 [D], the row
    of the batch's regions that each was refined from. images: int64 [D], the image's number in the batch.
    """

    boxes: Tensor
    scores: Tensor
    class_ids: Tensor
    region_rows: Tensor
    images: Tensor

    def select(self, index: Tensor) -> BatchDetections:
        """Return the detections in rows ``index``, int64 [K]."""
        return BatchDetections(*(field[index] for field in self))


class RoIHead(nn.Module):
    """Pooling, box head and predictor, and the post-processing of their outputs to detections."""

    def __init__(self, channels: int, num_classes: int, config: RoIHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.box_head = ConvBoxHead(channels, config) if config.conv_channels else BoxHead(channels, config)
        self.box_predictor = BoxPredictor(config.fc_channels[-1], num_classes)

    def assign_levels(self, boxes: Tensor) -> Tensor:
        """Return the pooled level, int64 [R], 0 the finest, of each region [R, 4] in canvas pixels.

        floor(k0 + log2(side / canonical) + 1e-6), clamped to the levels there are (arXiv 1612.03144, equation 1).
        torchvision's poolers.py adds the 1e-6, without which a side of exactly 224 can fall a level too low.
        """
        config = self.config
        finest, coarsest = (round(-math.log2(config.scales[i])) for i in (0, -1))
        side = box_ops.area(boxes).sqrt()
        level = torch.floor(config.canonical_level + torch.log2(side / config.canonical_size) + 1e-6)
        return level.clamp(finest, coarsest).long() - finest

    def pool(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """Run step 1: the backbone's maps to [R, C, r, r], for regions float32 [R, 5] of (image, canvas box)."""
        config = self.config
        pooled_maps = [maps[level] for level in config.levels]
        if config.pool == "max":
            return roi_pool(pooled_maps[0], regions, config.scales[0], config.resolution)
        table = flatten_maps(pooled_maps)
        layout = table_layout(map_shapes(pooled_maps), len(pooled_maps[0]), regions.device)
        levels = self.assign_levels(regions[:, 1:])
        pooled = roi_align_embedding_bag(
            table, layout, config.scales, regions, levels, config.resolution, config.sampling
        )
        return pooled.permute(0, 3, 1, 2)

    def classify(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Run step 2: pooled regions [R, C, r, r] to class logits [R, classes] and offsets [R, classes, 4]."""
        logits, offsets = self.box_predictor(self.box_head(pooled))
        return logits, offsets.reshape(-1, self.num_classes, 4)  # not (R, -1, 4): -1 is ambiguous where R is 0

    def forward(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Run steps 1 and 2: logits [R, classes] and offsets [R, classes, 4] for regions [R, 5] of (image, box)."""
        return self.classify(self.pool(maps, regions))

    def postprocess(
        self,
        logits: Tensor,
        offsets: Tensor,
        regions: Tensor,
        sizes: Tensor,
        score_thresholds: Tensor,
        nms_thresholds: Sequence[float],
        class_masks: Tensor | None = None,
    ) -> BatchDetections:
        """Run steps 3 and 4 for a whole batch; the limit of detections an image comes after.

        logits [R, classes], offsets [R, classes, 4] of the batch's regions float32 [R, 5], canvas pixels. For each
        image: sizes [B, 2], height and width on the canvas; score_thresholds float32 [B]; nms_thresholds;
        class_masks: bool [B, classes], True for classes to keep, or None for all.
        """
        scores = logits.float().softmax(dim=1)
        images = regions[:, 0].long()
        keep = scores > score_thresholds[images, None]  # strictly above, as torchvision
        keep[:, 0] = False  # the background
        if class_masks is not None:
            keep &= class_masks[images]
        counts: list[int] = []
        if keep.is_cuda:
            # How many candidates each class of each image has: one wait, and every size after it is known.
            table = keep.new_zeros((sizes.shape[0], self.num_classes), dtype=torch.int32)
            (table,) = download(table.index_add_(0, images, keep.int()))
            counts = table.flatten().tolist()
            rows, classes = torch.nonzero_static(keep, size=sum(counts)).unbind(dim=1)
        else:
            rows, classes = torch.nonzero(keep, as_tuple=True)
        images = images[rows]
        boxes = box_ops.decode(offsets[rows, classes].float(), regions[rows, 1:], self.config.box_weights)
        heights, widths = sizes.to(boxes.dtype)[images].unbind(dim=1)
        boxes = box_ops.clip(boxes, heights, widths)
        large = ((boxes[:, 2:] - boxes[:, :2]) >= self.config.min_size).all(dim=1)
        candidates = BatchDetections(boxes, scores[rows, classes], classes, rows, images)
        if keep.is_cuda:
            return self._nms_on_gpu(candidates, large, counts, nms_thresholds)
        return self._nms(candidates.select(large.nonzero().squeeze(1)), nms_thresholds)

    def _nms(self, candidates: BatchDetections, thresholds: Sequence[float]) -> BatchDetections:
        """Run NMS within each class of each image, at the image's threshold, on a CPU."""
        boxes, scores, classes, _, images = candidates
        groups = images * self.num_classes + classes
        if len(set(thresholds)) == 1:
            return candidates.select(grouped_nms(boxes, scores, groups, thresholds[0]))
        keep_per_image = []
        for i, threshold in enumerate(thresholds):
            members = torch.nonzero(images == i).squeeze(1)
            keep = grouped_nms(boxes[members], scores[members], groups[members], threshold)
            keep_per_image.append(members[keep])
        keep = torch.cat(keep_per_image).sort().values
        return candidates.select(keep[scores[keep].sort(descending=True, stable=True).indices])

    def _nms_on_gpu(
        self, candidates: BatchDetections, large: Tensor, counts: Sequence[int], thresholds: Sequence[float]
    ) -> BatchDetections:
        """Run NMS within each class of each image on a GPU: the host waits once, unless NMS converges unusually slowly.

        large: bool [N], the candidates that may be kept. counts: candidates of each class of each image, image-major.
        """
        boxes, scores, classes, _, images = candidates
        groups = images * self.num_classes + classes
        limits = [threshold for threshold in thresholds for _ in range(self.num_classes)]
        converged, until_converged = False, False
        while not converged:
            keep, done = nms_per_class(boxes, scores, groups, large, counts, limits, until_converged=until_converged)
            *fields, keep, done = download(*candidates, keep, done)
            converged, until_converged = bool(done), True
        kept = keep.nonzero().squeeze(1)
        return BatchDetections(*fields).select(kept[fields[1][kept].sort(descending=True, stable=True).indices])


def stack_regions(boxes: Sequence[Tensor]) -> Tensor:
    """Stack each image's boxes [Ri, 4] to regions float32 [R, 5] of (image, x1, y1, x2, y2), in the images' order."""
    stacked = torch.cat(list(boxes))
    counts = [len(rows) for rows in boxes]
    images = upload(np.repeat(np.arange(len(boxes), dtype=np.float32), counts), torch.float32, stacked.device)
    return torch.cat((images[:, None], stacked), dim=1)
