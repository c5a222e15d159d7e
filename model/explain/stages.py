"""The stages at which an expected box can be lost, what is known of it there, and a sentence that tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.structures import Box, Trace

Stage = Literal[
    "no_anchor",
    "low_objectness",
    "top_k",
    "too_small",
    "rpn_nms",
    "proposal_limit",
    "classified_background",
    "classified_other",
    "score_threshold",
    "misplaced",
    "class_nms",
    "detection_limit",
    "found",
]
# Two boxes *match* where their IoU is at least ``iou`` (0.5 unless the caller says otherwise). A *pair* is a final
# proposal and the expected class; where none was named, the proposal's likeliest class and every class that scores
# above the threshold. A pair is *near* where the proposal, or its refined box for that class, matches the expected box.
# Of near pairs the best is one whose refined box matches, if there is any; then the one that passed most cuts; then
# the one that scores most.
STAGES: dict[Stage, str] = {
    "no_anchor": "no anchor, moved by its offsets, matches it",
    "low_objectness": "such anchors match, but all have an objectness below the RPN's threshold",
    "top_k": "some are likely enough, but none is among its level's best by objectness",
    "too_small": "some are, but their boxes are below the RPN's smallest side",
    "rpn_nms": "some are large enough, but NMS dropped each for a likelier box of its level",
    "proposal_limit": "some survived NMS, but too far down the list to be handed to the detector",
    "classified_background": "proposals are near, but the best pair scores too low, and its proposal is background",
    "classified_other": "proposals are near, but the best pair scores too low, and its proposal is of another class",
    "score_threshold": "the best pair's class is its proposal's likeliest, but scores no higher than the threshold",
    "misplaced": "the best pair scores high enough, but its refined box does not match the expected one",
    "class_nms": "the refined box matches, but NMS dropped it for a higher score of the same class",
    "detection_limit": "it survived NMS, but too far down the list to be in the answer",
    "found": "a detection of the expected class matches it",
}


@dataclass(frozen=True)
class AnchorFacts:
    """One anchor. iou: of the anchor itself with the expected box. rank: 0-based, by objectness on its level.

    size: canvas pixels, as configured. box: image pixels. level_anchors: how many anchors its level has.
    """

    index: int
    level: int
    row: int
    column: int
    size: float
    ratio: float
    box: Box
    iou: float
    objectness: float
    rank: int
    level_anchors: int


@dataclass(frozen=True)
class Suppressor:
    """The box that NMS kept where it dropped another. score: its objectness, or its class score. iou: of the two.

    index: its row among the final proposals, or among the detections; None where a limit cut it later.
    """

    index: int | None
    score: float
    iou: float
    box: Box


@dataclass(frozen=True)
class ProposalFacts:
    """A box that the RPN decoded from ``anchor``. index: its row among the final proposals; None where it was cut."""

    index: int | None
    anchor: AnchorFacts
    box: Box
    iou: float
    suppressed_by: Suppressor | None = None


@dataclass(frozen=True)
class DetectionFacts:
    """The RoI head's output for a proposal and one class.

    index: row among the detections, None where it was cut. box, iou: refined for this class. top_label, top_score: the
    proposal's likeliest class, background included. class_scores: by class id, background first.
    """

    index: int | None
    proposal: int
    class_id: int
    label: str
    score: float
    box: Box
    iou: float
    top_label: str
    top_score: float
    class_scores: tuple[float, ...]
    suppressed_by: Suppressor | None = None


@dataclass(frozen=True)
class Explanation:
    """The stage that one expected box reached (image pixels; label None where any class matches).

    anchor: the one of the largest IoU. proposal: the RPN's box that passed most cuts; for ``no_anchor`` the one of the
    largest IoU. detection: the near pair that passed most cuts, None where no pair is near.
    """

    box: Box
    label: str | None
    stage: Stage
    sentence: str
    anchor: AnchorFacts
    proposal: ProposalFacts
    detection: DetectionFacts | None


def sentence(
    stage: Stage,
    trace: Trace,
    iou: float,
    anchor: AnchorFacts,
    proposal: ProposalFacts,
    detection: DetectionFacts | None,
) -> str:
    """Say in a sentence which cut dropped the box, with its threshold and how far the box was from passing it."""
    if detection is not None:
        return _sentence_after_rpn(stage, trace, iou, proposal, detection)
    rpn = trace.config.rpn
    origin, objectness = proposal.anchor, f"objectness {proposal.anchor.objectness:.3f}"
    if stage == "no_anchor":
        closest = f"the closest box that any anchor's offsets make overlaps by IoU {proposal.iou:.2f}, not {iou:.2f}"
        if anchor.iou < iou:
            return (
                f"No anchor fits: the best (size {anchor.size:g}, ratio {anchor.ratio:g}, level {anchor.level}) "
                f"overlaps by IoU {anchor.iou:.2f}, and {closest}."
            )
        return f"The RPN moved the anchors away: the best overlaps by IoU {anchor.iou:.2f}, but {closest}."
    box = f"The RPN's box on it (IoU {proposal.iou:.2f}, level {origin.level}, {objectness})"
    if stage == "low_objectness":
        return f"{box} is below the RPN's threshold of {rpn.score_threshold:g}."
    if stage == "top_k":
        return f"{box} comes from the anchor of rank {origin.rank + 1} on its level; only the best {rpn.pre_nms} go on."
    if stage == "too_small":
        return f"{box} has a side below the RPN's smallest, {rpn.min_size:g} pixels."
    if stage == "rpn_nms":
        suppressor = _for_suppressor(proposal.suppressed_by, rpn.nms_threshold, "proposal", "objectness")
        return f"{box} was dropped by NMS{suppressor}."
    return f"{box} survived NMS, but only the best {rpn.post_nms} proposals go to the detector."


def _sentence_after_rpn(
    stage: Stage, trace: Trace, iou: float, proposal: ProposalFacts, detection: DetectionFacts
) -> str:
    """Return the sentence for the stages from the RoI head on."""
    options = trace.options
    name, score = f'"{detection.label}"', f"{detection.score:.3f}"
    if stage == "found":
        return f"Found: detection {detection.index}, {name} with score {score}, overlaps it by IoU {detection.iou:.2f}."
    start = f"Proposal {detection.proposal} (IoU {proposal.iou:.2f})"
    below = f"{name} scores {score}, not above the threshold of {options.score_threshold:g}"
    if stage == "classified_background":
        return f"{start} was taken for background ({detection.top_score:.3f}); {below}."
    if stage == "classified_other":
        return f'{start} was taken for "{detection.top_label}" ({detection.top_score:.3f}); {below}.'
    if stage == "score_threshold":
        return f"{start} was recognised, but {below}."
    if stage == "misplaced":
        overlap = f"its refined box overlaps by IoU {detection.iou:.2f}, not {iou:.2f}"
        return f"{start} was recognised as {name} ({score}), but {overlap}."
    box = f"The refined box of proposal {detection.proposal}, {name} with score {score} (IoU {detection.iou:.2f}),"
    if stage == "class_nms":
        suppressor = _for_suppressor(detection.suppressed_by, options.nms_threshold, "detection", "score")
        return f"{box} was dropped by NMS{suppressor}."
    return f"{box} survived NMS, but only the best {options.max_detections} detections are returned."


def _for_suppressor(suppressor: Suppressor | None, threshold: float, noun: str, measure: str) -> str:
    """Name the box that suppressed another, with its measure and IoU; empty for None."""
    if suppressor is None:
        return ""
    name = f"{noun} {suppressor.index}" if suppressor.index is not None else f"a {noun} that a limit cut later"
    overlap = f"overlapping it by IoU {suppressor.iou:.2f}, more than {threshold:g}"
    return f" for {name}: {measure} {suppressor.score:.3f}, {overlap}"
