"""Explain why an expected box was missed: follow it through a ``Trace``, from the anchors to the detections.

    1. does a detection overlap it enough?                                               -> found
    2. are final proposals near it? the pair (proposal, class) that passed most cuts names the stage: classification,
       score, misplacement, NMS or limit
    3. else the RPN's box on it that passed most cuts names the stage: objectness, top-k, size, NMS or limit
    4. else no anchor, moved by its offsets, overlaps it enough                          -> no_anchor

``stages.STAGES`` says what each stage means. Each expected box is judged alone: the same detection may match two.
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
    DetectionFacts,
    Explanation,
    ProposalFacts,
    Stage,
    Suppressor,
    sentence,
)
from model.structures import Box, Trace

_RPN_CUTS: tuple[Stage, ...] = ("low_objectness", "top_k", "too_small", "rpn_nms", "proposal_limit")


def explain(
    trace: Trace, boxes: Tensor, labels: Sequence[str | None] | None = None, *, iou: float = 0.5
) -> list[Explanation]:
    """Explain at which stage each expected box was lost, or which detection matches it.

    boxes: float [G, 4] xyxy in the image's pixels. labels: a class name each, None for any class. iou: in (0, 1], the
    least overlap at which a box matches the expected one. Raises ``ValueError`` for boxes without area, unknown or
    background labels, lengths that differ, and an ``iou`` out of range.
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
    explainer = _Explainer(trace, iou)
    return [explainer.explain(box, name) for box, name in zip(boxes, names, strict=True)]


class _Explainer:
    """Hold what the explanations of one trace share: every anchor's decoded box, and the cuts that it passed."""

    def __init__(self, trace: Trace, iou: float) -> None:
        self.trace, self.iou = trace, iou
        candidates, threshold = trace.candidates, trace.config.rpn.score_threshold
        height, width = trace.size
        # Offsets are in units of the anchor's sides, so that decoding commutes with rescaling from the canvas.
        self.decoded = box_ops.clip(box_ops.decode(trace.deltas, trace.anchors), float(height), float(width))
        self.candidate_of = torch.full((len(trace.anchors),), -1)
        self.candidate_of[candidates.anchor_indices] = torch.arange(len(candidates))
        # How many of _RPN_CUTS each anchor passed; the final proposals passed all.
        after_nms = candidates.anchor_indices[trace.after_nms]
        self.cuts_passed = torch.zeros(len(trace.anchors), dtype=torch.int64)
        for cut, passed in enumerate(
            (
                trace.objectness >= threshold,
                candidates.anchor_indices[candidates.objectness >= threshold],
                candidates.anchor_indices[trace.valid],
                after_nms,
                after_nms[: len(trace.scores)],
            )
        ):
            self.cuts_passed[passed] = cut + 1
        self.proposal_anchors = after_nms[: len(trace.scores)]
        self.detected_boxes = trace.refined[trace.detected_pairs[:, 0], trace.detected_pairs[:, 1]]

    def explain(self, box: Tensor, label: str | None) -> Explanation:
        """Explain one expected box [4], in the steps that this file's docstring numbers."""
        anchor_ious = box_ops.iou(box[None], self.trace.anchors)[0]
        decoded_ious = box_ops.iou(box[None], self.decoded)[0]
        stage, anchor, detection = (
            self._match_detection(box, label)
            or self._match_pair(box, label, decoded_ious)
            or self._match_rpn_box(decoded_ious)
        )
        best = self._anchor(int(anchor_ious.argmax()), anchor_ious)
        proposal = self._proposal(anchor, anchor_ious, decoded_ious, suppressed=stage == "rpn_nms")
        text = sentence(stage, self.trace, self.iou, best, proposal, detection)
        return Explanation(_to_tuple(box), label, stage, text, best, proposal, detection)

    def _match_detection(self, box: Tensor, label: str | None) -> tuple[Stage, int, DetectionFacts | None] | None:
        """Run step 1: find the detection that overlaps the box most.

        Returns the stage, the detection's anchor and the detection; None where no overlap is large enough.
        """
        detected = self.trace.detected_pairs[: self.trace.options.max_detections]
        overlap = box_ops.iou(box[None], self.detected_boxes[: len(detected)])[0]
        if label is not None:
            overlap = overlap.where(detected[:, 1] == self.trace.classes.index(label), torch.tensor(0.0))
        if not len(detected) or float(overlap.max()) < self.iou:
            return None
        proposal, class_id = detected[int(overlap.argmax())].tolist()
        return "found", int(self.proposal_anchors[proposal]), self._detection(proposal, class_id, box)

    def _match_pair(
        self, box: Tensor, label: str | None, decoded_ious: Tensor
    ) -> tuple[Stage, int, DetectionFacts | None] | None:
        """Run step 2: find the best of the near pairs [R, K]; those whose refined box matches come first.

        decoded_ious: float32 [N], IoU of the box with every anchor's decoded box. Returns the stage, the pair's anchor
        and the RoI head's output; None where no pair is near.
        """
        trace = self.trace
        first, last = (1, len(trace.classes)) if label is None else (i := trace.classes.index(label), i + 1)
        scores, refined = trace.scores[:, first:last], trace.refined[:, first:last]
        matches = box_ops.iou(box[None], refined.reshape(-1, 4))[0].view(scores.shape) >= self.iou
        above_threshold = scores > trace.options.score_threshold
        near = matches | (decoded_ious[self.proposal_anchors] >= self.iou)[:, None]
        near &= above_threshold | (scores == scores.amax(dim=1, keepdim=True))
        if not near.any():
            return None
        after_nms = torch.zeros_like(trace.scores, dtype=torch.bool)
        after_nms[trace.detected_pairs[:, 0], trace.detected_pairs[:, 1]] = True
        after_nms = after_nms[:, first:last]
        key = 8.0 * matches + 4.0 * above_threshold + 2.0 * after_nms + scores
        proposal, column = divmod(int(key.where(near, torch.tensor(-1.0)).argmax()), last - first)
        class_id, top = first + column, int(trace.scores[proposal].argmax())
        detection = self._detection(proposal, class_id, box)
        stage: Stage
        if not above_threshold[proposal, column]:
            stage = "score_threshold" if top == class_id else "classified_other" if top else "classified_background"
        elif not matches[proposal, column]:
            stage = "misplaced"
        elif not after_nms[proposal, column]:
            stage = "class_nms"
            detection = replace(detection, suppressed_by=self._suppressing_detection(proposal, class_id))
        else:
            stage = "detection_limit"
        return stage, int(self.proposal_anchors[proposal]), detection

    def _match_rpn_box(self, decoded_ious: Tensor) -> tuple[Stage, int, None]:
        """Run steps 3 and 4: of the RPN's boxes that match, find the one that passed most cuts, then the likeliest.

        decoded_ious: float32 [N]. Returns the stage, the anchor, and None for the detection.
        """
        if float(decoded_ious.max()) < self.iou:
            return "no_anchor", int(decoded_ious.argmax()), None
        key = (2.0 * self.cuts_passed + self.trace.objectness).where(decoded_ious >= self.iou, torch.tensor(-1.0))
        anchor = int(key.argmax())
        return _RPN_CUTS[int(self.cuts_passed[anchor])], anchor, None

    def _anchor(self, index: int, anchor_ious: Tensor) -> AnchorFacts:
        """Describe anchor ``index``. anchor_ious: float32 [N], IoU of the expected box with every anchor."""
        trace = self.trace
        location = anchor_locations(trace.config.anchors, trace.maps, torch.tensor([index]))
        level, candidate = int(location.levels), int(self.candidate_of[index])
        start, count = sum(trace.anchor_counts[:level]), trace.anchor_counts[level]
        if candidate >= 0:
            rank = int(trace.candidates.ranks[candidate])
        else:
            on_level, own = trace.objectness[start : start + count], trace.objectness[index]
            rank = int((on_level > own).sum() + (on_level[: index - start] == own).sum())
        return AnchorFacts(
            index=index,
            level=level,
            row=int(location.rows),
            column=int(location.columns),
            size=float(location.sizes),
            ratio=float(location.ratios),
            box=_to_tuple(trace.anchors[index]),
            iou=float(anchor_ious[index]),
            objectness=float(trace.objectness[index]),
            rank=rank,
            level_anchors=count,
        )

    def _proposal(self, anchor: int, anchor_ious: Tensor, decoded_ious: Tensor, *, suppressed: bool) -> ProposalFacts:
        """Describe the box decoded from ``anchor``. suppressed: name the box for which NMS dropped it."""
        rows = torch.nonzero(self.proposal_anchors == anchor).flatten().tolist()
        return ProposalFacts(
            index=rows[0] if rows else None,
            anchor=self._anchor(anchor, anchor_ious),
            box=_to_tuple(self.decoded[anchor]),
            iou=float(decoded_ious[anchor]),
            suppressed_by=self._suppressing_proposal(anchor) if suppressed else None,
        )

    def _detection(self, proposal: int, class_id: int, box: Tensor) -> DetectionFacts:
        """Describe the RoI head's output for a proposal and a class. box: the expected one, [4]."""
        trace = self.trace
        scores, refined = trace.scores[proposal], trace.refined[proposal, class_id]
        detected = trace.detected_pairs[: trace.options.max_detections]
        rows = torch.nonzero((detected == torch.tensor([proposal, class_id])).all(dim=1)).flatten().tolist()
        top = int(scores.argmax())
        return DetectionFacts(
            index=rows[0] if rows else None,
            proposal=proposal,
            class_id=class_id,
            label=trace.classes[class_id],
            score=float(scores[class_id]),
            box=_to_tuple(refined),
            iou=float(box_ops.iou(box[None], refined[None])),
            top_label=trace.classes[top],
            top_score=float(scores[top]),
            class_scores=tuple(scores.tolist()),
        )

    def _suppressing_proposal(self, anchor: int) -> Suppressor | None:
        """Return the proposal for which the RPN's NMS dropped the box decoded from ``anchor``."""
        trace, candidates = self.trace, self.trace.candidates
        own = self.candidate_of[anchor]
        likelier = candidates.levels[trace.after_nms] == candidates.levels[own]
        likelier &= candidates.ranks[trace.after_nms] < candidates.ranks[own]
        rows = torch.nonzero(likelier).flatten()
        boxes = self.decoded[candidates.anchor_indices[trace.after_nms[rows]]]
        objectness = candidates.objectness[trace.after_nms[rows]]
        return _suppressor(
            self.decoded[anchor], boxes, objectness, rows, len(trace.scores), trace.config.rpn.nms_threshold
        )

    def _suppressing_detection(self, proposal: int, class_id: int) -> Suppressor | None:
        """Return the detection for which class NMS dropped the refined box of a proposal and a class."""
        trace = self.trace
        rows = torch.nonzero(trace.detected_pairs[:, 1] == class_id).flatten()
        scores = trace.scores[trace.detected_pairs[rows, 0], class_id]
        limit, threshold = trace.options.max_detections, trace.options.nms_threshold
        own = trace.refined[proposal, class_id]
        return _suppressor(own, self.detected_boxes[rows], scores, rows, limit, threshold)


def _suppressor(
    box: Tensor, boxes: Tensor, scores: Tensor, rows: Tensor, limit: int, threshold: float
) -> Suppressor | None:
    """Return which of the kept ``boxes`` [K, 4], by falling score, suppressed ``box`` [4].

    That is the first whose IoU is above the threshold, as in greedy NMS. Where rounding decided, none is: then it is
    the one of the largest IoU.
    """
    if not len(boxes):
        return None
    overlap = box_ops.iou(box[None], boxes)[0]
    over = torch.nonzero(overlap > threshold).flatten()
    index = int(over[0]) if len(over) else int(overlap.argmax())
    row = int(rows[index])
    return Suppressor(
        row if row < limit else None, float(scores[index]), float(overlap[index]), _to_tuple(boxes[index])
    )


def _to_tuple(box: Tensor) -> Box:
    """Convert a box [4] to numbers."""
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2
