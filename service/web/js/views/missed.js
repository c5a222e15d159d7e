// The view of missed objects: draw a box, and see at which stage the detector lost it.

import { ROLES } from "../colours.js";
import { $, element, swatch } from "../dom.js";
import { cornersText } from "./detections.js";

const OUTCOMES = {
  no_anchor: "No anchor leads there",
  low_objectness: "Below the RPN's threshold",
  top_k: "Cut at the RPN's top-k",
  too_small: "Too small for the RPN",
  rpn_nms: "Lost to the RPN's NMS",
  proposal_limit: "Too far down the proposals",
  classified_background: "Taken for background",
  classified_other: "Taken for something else",
  score_threshold: "Recognised, but too uncertain",
  misplaced: "Recognised, but misplaced",
  class_nms: "Lost to NMS of its class",
  detection_limit: "Too far down the detections",
  found: "Found",
};
// What an expected box must pass, in order, each with the stages at which it can fail.
const STEPS = [
  ["an anchor leads there", ["no_anchor"]],
  ["likely enough for the RPN", ["low_objectness", "top_k", "too_small"]],
  ["survives the RPN's NMS and limit", ["rpn_nms", "proposal_limit"]],
  ["recognised by the detector", ["classified_background", "classified_other", "score_threshold"]],
  ["in the right place", ["misplaced"]],
  ["survives NMS and limit", ["class_nms", "detection_limit"]],
];

export function marks({ expected, explanation }) {
  if (!expected) return [];
  const drawn = { box: expected, colour: ROLES.expected, dash: [6, 4], label: "expected" };
  if (!explanation) return [drawn];
  const { anchor, proposal, detection } = explanation;
  const suppressor = detection?.suppressed_by ?? proposal.suppressed_by;
  return [
    drawn,
    ...(detection ? [{ box: detection.box, colour: ROLES.detection }] : []),
    { box: proposal.box, colour: ROLES.proposal, width: 1.5 },
    { box: anchor.box, colour: ROLES.anchor, dash: [2, 3], width: 1.5 },
    ...(suppressor ? [{ box: suppressor.box, colour: ROLES.suppressor, width: 1.5 }] : []),
  ];
}

/** Fill the list of classes, once for a model. */
export function renderLabels({ info }) {
  const names = info.classes.slice(1).filter((name) => name !== "N/A");
  $("label").replaceChildren($("label").firstElementChild, ...names.map((name) => element("option", { value: name }, name)));
}

export function render({ expected, explanation }) {
  const fields = $("expected").elements;
  ["x1", "y1", "x2", "y2"].forEach((name, i) => (fields[name].value = expected ? expected[i].toFixed(1) : ""));
  $("explanation").replaceChildren(...(explanation ? details(explanation) : []));
}

/** Return the outcome, the sentence, the steps and the boxes of one explanation. */
function details({ stage, sentence, anchor, proposal, detection }) {
  const failed = STEPS.findIndex(([, stages]) => stages.includes(stage));
  const steps = STEPS.map(([title], i) =>
    element("li", { className: failed < 0 || i < failed ? "" : i === failed ? "failed" : "not-reached" }, title),
  );
  const suppressor = detection?.suppressed_by ?? proposal.suppressed_by;
  const entries = [
    [ROLES.anchor, "best anchor", `IoU ${anchor.iou.toFixed(2)}; level ${anchor.level}, size ${anchor.size}, ratio ${anchor.ratio}; rank ${anchor.rank + 1} of ${anchor.level_anchors}`],
    [ROLES.proposal, "RPN's box", `IoU ${proposal.iou.toFixed(2)}, objectness ${proposal.anchor.objectness.toFixed(3)}${proposal.index === null ? "" : `, number ${proposal.index + 1}`}`],
    ...(detection ? [[ROLES.detection, "detector", `${detection.label} ${detection.score.toFixed(3)}, IoU ${detection.iou.toFixed(2)}; likeliest ${detection.top_label.replaceAll("_", "")} ${detection.top_score.toFixed(3)}`]] : []),
    ...(suppressor ? [[ROLES.suppressor, "lost to", `score ${suppressor.score.toFixed(3)}, box ${cornersText(suppressor.box)}`]] : []),
  ];
  const list = element("dl");
  for (const [tint, term, text] of entries) list.append(element("dt", {}, swatch(tint), term), element("dd", {}, text));
  const outcome = element("p", { className: "outcome" }, OUTCOMES[stage] ?? stage);
  outcome.dataset.stage = stage;
  return [outcome, element("p", {}, sentence), element("ol", { className: "steps" }, ...steps), list];
}

export function describe({ explanation }) {
  return explanation ? explanation.sentence : "draw a box";
}

export function request(state) {
  const label = $("label").value;
  const form = { boxes: JSON.stringify(state.expected ? [state.expected.map((side) => Number(side.toFixed(2)))] : []) };
  if (label) form.labels = JSON.stringify([label]);
  return { path: "explain", options: { score_threshold: state.score, nms_threshold: state.nms }, form };
}

export const response = ({ explainResponse }) => explainResponse;
