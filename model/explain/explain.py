"""Why was it missed? Each expected box followed through a ``Trace``, from the anchors to the answer.

    1. does a detection of the answer lie on it?                                             -> found
    2. are final proposals near it? the pair (proposal, class) that came furthest tells the cut: classification, score,
       place, NMS or limit
    3. else the RPN's box on it that came furthest tells the cut: objectness, top-k, size, NMS or limit
    4. else no anchor led there                                                              -> no_anchor

What each word means is written in ``explanation.STAGES``. Boxes are judged one by one: two expected boxes may be found
by the same detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model import boxes as box_ops
from model.anchors import anchor_locations
from model.explain.stages import (
    AnchorFacts,
    Box,
    DetectionFacts,
    Explanation,
    ProposalFacts,
    Stage,
    Suppressor,
    sentence,
)
from model.structures import Trace

_RPN_CUTS: tuple[Stage, ...] = ("low_objectness", "top_k", "too_small", "rpn_nms", "proposal_limit")


def explain(
    trace: Trace, boxes: Tensor, labels: Sequence[str | None] | None = None, *, iou: float = 0.5
) -> list[Explanation]:
    """How far each expected box came.

    boxes: float [G, 4] xyxy in the picture's pixels. labels: a class name each, None for any class. iou: at least this
    overlap lies on the expected box, in (0, 1]. Raises ``ValueError`` for boxes without area, unknown or background
    labels, lengths that differ, and an ``iou`` out of range.
    """
    boxes = boxes.detach().to("cpu", torch.float32).reshape(-1, 4)
    names = [None] * len(boxes) if labels is None else list(labels)
    if len(names) != len(boxes):
        raise ValueError(f"{len(names)} labels for {len(boxes)} boxes: give one each, or none at all.")
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be above 0 and at most 1, not {iou}.")
    if not (torch.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError("Every box must be finite, x1 < x2 and y1 < y2.")
    for name in names:
        if name is not None and name not in trace.classes[1:]:
            raise ValueError(f"There is no class {name!r}.")
    walk = _Walk(trace, iou)
    return [walk.follow(box, name) for box, name in zip(boxes, names, strict=True)]


class _Walk:
    """What all expected boxes of one trace share: every anchor's moved box, and what became of it."""

    def __init__(self, trace: Trace, iou: float) -> None:
        self.trace, self.iou = trace, iou
        candidates, least = trace.candidates, trace.config.rpn.score_threshold
        height, width = trace.size
        # Offsets are in units of the anchor's sides: decoded here, a box is the one decoded on the canvas, rescaled.
        self.moved = box_ops.clip(box_ops.decode(trace.deltas, trace.anchors), float(height), float(width))
        self.candidate_of = torch.full((len(trace.anchors),), -1)
        self.candidate_of[candidates.anchor_indices] = torch.arange(len(candidates))
        # Which cut of _RPN_CUTS each anchor met; those that met none (the kept) count one more.
        survivors = candidates.anchor_indices[trace.survivors]
        self.reached = torch.zeros(len(trace.anchors), dtype=torch.int64)
        for stage, passed in enumerate(
            (
                trace.objectness >= least,
                candidates.anchor_indices[candidates.objectness >= least],
                candidates.anchor_indices[trace.valid],
                survivors,
                survivors[: len(trace.scores)],
            )
        ):
            self.reached[passed] = stage + 1
        self.proposal_anchors = survivors[: len(trace.scores)]
        self.found_boxes = trace.refined[trace.found[:, 0], trace.found[:, 1]]

    def follow(self, box: Tensor, label: str | None) -> Explanation:
        """One expected box [4], step by step as the head of this file counts them."""
        fits = box_ops.iou(box[None], self.trace.anchors)[0]
        lies = box_ops.iou(box[None], self.moved)[0]
        stage, anchor, detection = (
            self._detected(box, label) or self._classified(box, label, lies) or self._proposed(lies)
        )
        best = self._anchor(int(fits.argmax()), fits)
        proposal = self._proposal(anchor, fits, lies, suppressed=stage == "rpn_nms")
        words = sentence(stage, self.trace, self.iou, best, proposal, detection)
        return Explanation(_corners(box), label, stage, words, best, proposal, detection)

    def _detected(self, box: Tensor, label: str | None) -> tuple[Stage, int, DetectionFacts | None] | None:
        """Step 1: the detection that lies on it best."""
        answer = self.trace.found[: self.trace.options.max_detections]
        overlap = box_ops.iou(box[None], self.found_boxes[: len(answer)])[0]
        if label is not None:
            overlap = overlap.where(answer[:, 1] == self.trace.classes.index(label), torch.tensor(0.0))
        if not len(answer) or float(overlap.max()) < self.iou:
            return None
        proposal, class_id = answer[int(overlap.argmax())].tolist()
        return "found", int(self.proposal_anchors[proposal]), self._detection(proposal, class_id, box)

    def _classified(
        self, box: Tensor, label: str | None, lies: Tensor
    ) -> tuple[Stage, int, DetectionFacts | None] | None:
        """Step 2: the best of the near pairs [R, K]; first those whose refined box lies on it."""
        trace = self.trace
        first, last = (1, len(trace.classes)) if label is None else (i := trace.classes.index(label), i + 1)
        scores, refined = trace.scores[:, first:last], trace.refined[:, first:last]
        hits = box_ops.iou(box[None], refined.reshape(-1, 4))[0].view(scores.shape) >= self.iou
        passed = scores > _number(trace.options.score_threshold)
        near = hits | (lies[self.proposal_anchors] >= self.iou)[:, None]
        near &= passed | (scores == scores.amax(dim=1, keepdim=True))
        if not near.any():
            return None
        survived = torch.zeros_like(trace.scores, dtype=torch.bool)
        survived[trace.found[:, 0], trace.found[:, 1]] = True
        survived = survived[:, first:last]
        key = 8.0 * hits + 4.0 * passed + 2.0 * survived + scores
        proposal, column = divmod(int(key.where(near, torch.tensor(-1.0)).argmax()), last - first)
        class_id, top = first + column, int(trace.scores[proposal].argmax())
        found = self._detection(proposal, class_id, box)
        stage: Stage
        if not passed[proposal, column]:
            stage = "score_threshold" if top == class_id else "classified_other" if top else "classified_background"
        elif not hits[proposal, column]:
            stage = "misplaced"
        elif not survived[proposal, column]:
            stage, found = "class_nms", replace(found, suppressed_by=self._better_detection(proposal, class_id))
        else:
            stage = "detection_limit"
        return stage, int(self.proposal_anchors[proposal]), found

    def _proposed(self, lies: Tensor) -> tuple[Stage, int, None]:
        """Steps 3 and 4: of the RPN's boxes on it, cut or not, the one that came furthest, then the likeliest."""
        if float(lies.max()) < self.iou:
            return "no_anchor", int(lies.argmax()), None
        key = (2.0 * self.reached + self.trace.objectness).where(lies >= self.iou, torch.tensor(-1.0))
        anchor = int(key.argmax())
        return _RPN_CUTS[int(self.reached[anchor])], anchor, None

    def _anchor(self, index: int, fits: Tensor) -> AnchorFacts:
        trace, place = self.trace, anchor_locations(self.trace.config.anchors, self.trace.maps, torch.tensor([index]))
        level, candidate = int(place.levels), int(self.candidate_of[index])
        start, count = sum(trace.anchor_counts[:level]), trace.anchor_counts[level]
        if candidate >= 0:
            rank = int(trace.candidates.ranks[candidate])
        else:
            mates, own = trace.objectness[start : start + count], trace.objectness[index]
            rank = int((mates > own).sum() + (mates[: index - start] == own).sum())
        return AnchorFacts(
            index=index,
            level=level,
            row=int(place.rows),
            column=int(place.columns),
            size=float(place.sizes),
            ratio=float(place.ratios),
            box=_corners(trace.anchors[index]),
            iou=float(fits[index]),
            objectness=float(trace.objectness[index]),
            rank=rank,
            level_anchors=count,
        )

    def _proposal(self, anchor: int, fits: Tensor, lies: Tensor, *, suppressed: bool) -> ProposalFacts:
        rows = torch.nonzero(self.proposal_anchors == anchor).flatten().tolist()
        return ProposalFacts(
            index=rows[0] if rows else None,
            anchor=self._anchor(anchor, fits),
            box=_corners(self.moved[anchor]),
            iou=float(lies[anchor]),
            suppressed_by=self._likelier_proposal(anchor) if suppressed else None,
        )

    def _detection(self, proposal: int, class_id: int, box: Tensor) -> DetectionFacts:
        trace = self.trace
        scores, refined = trace.scores[proposal], trace.refined[proposal, class_id]
        answer = trace.found[: trace.options.max_detections]
        rows = torch.nonzero((answer == torch.tensor([proposal, class_id])).all(dim=1)).flatten().tolist()
        top = int(scores.argmax())
        return DetectionFacts(
            index=rows[0] if rows else None,
            proposal=proposal,
            class_id=class_id,
            label=trace.classes[class_id],
            score=float(scores[class_id]),
            box=_corners(refined),
            iou=float(box_ops.iou(box[None], refined[None])),
            top_label=trace.classes[top],
            top_score=float(scores[top]),
            class_scores=tuple(scores.tolist()),
        )

    def _likelier_proposal(self, anchor: int) -> Suppressor | None:
        trace, candidates = self.trace, self.trace.candidates
        own = self.candidate_of[anchor]
        mates = candidates.levels[trace.survivors] == candidates.levels[own]
        mates &= candidates.ranks[trace.survivors] < candidates.ranks[own]
        rows = torch.nonzero(mates).flatten()
        boxes = self.moved[candidates.anchor_indices[trace.survivors[rows]]]
        objectness = candidates.objectness[trace.survivors[rows]]
        return _suppressor(
            self.moved[anchor], boxes, objectness, rows, len(trace.scores), trace.config.rpn.nms_threshold
        )

    def _better_detection(self, proposal: int, class_id: int) -> Suppressor | None:
        trace = self.trace
        rows = torch.nonzero(trace.found[:, 1] == class_id).flatten()
        scores = trace.scores[trace.found[rows, 0], class_id]
        limit, threshold = trace.options.max_detections, _number(trace.options.nms_threshold)
        own = trace.refined[proposal, class_id]
        return _suppressor(own, self.found_boxes[rows], scores, rows, int(_number(limit)), threshold)


def _suppressor(
    box: Tensor, boxes: Tensor, scores: Tensor, rows: Tensor, limit: int, threshold: float
) -> Suppressor | None:
    """Which of the kept ``boxes`` [K, 4], by falling score, dropped ``box`` [4]: the first that overlaps by more.

    Greedy NMS drops a box for the first one that it meets so, which is why this need not be remembered. None of them
    overlaps enough only where rounding decided: then the one that overlaps most.
    """
    if not len(boxes):
        return None
    overlap = box_ops.iou(box[None], boxes)[0]
    over = torch.nonzero(overlap > threshold).flatten()
    index = int(over[0]) if len(over) else int(overlap.argmax())
    row = int(rows[index])
    return Suppressor(row if row < limit else None, float(scores[index]), float(overlap[index]), _corners(boxes[index]))


def _corners(box: Tensor) -> Box:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


def _number(value: float | None) -> float:
    """An option that the detector has filled in."""
    assert value is not None
    return value
