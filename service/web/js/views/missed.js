// Draw a box: how far did it come, and where was it lost?

import { ROLES } from "../colours.js";
import { $, h, swatch } from "../dom.js";
import { corners } from "./detections.js";

const WORDS = {
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
  detection_limit: "Too far down the answer",
  found: "Found",
};
// The stages as a ladder: what an expected box must pass.
const STEPS = [
  ["an anchor leads there", ["no_anchor"]],
  ["likely enough for the RPN", ["low_objectness", "top_k", "too_small"]],
  ["survives the RPN's NMS and limit", ["rpn_nms", "proposal_limit"]],
  ["recognised by the detector", ["classified_background", "classified_other", "score_threshold"]],
  ["in the right place", ["misplaced"]],
  ["survives NMS and limit", ["class_nms", "detection_limit"]],
];

export function marks({ expected, story }) {
  if (!expected) return [];
  const drawn = { box: expected, colour: ROLES.expected, dash: [6, 4], label: "expected" };
  if (!story) return [drawn];
  const { anchor, proposal, detection } = story;
  const rival = detection?.suppressed_by ?? proposal.suppressed_by;
  return [
    drawn,
    ...(detection ? [{ box: detection.box, colour: ROLES.detection }] : []),
    { box: proposal.box, colour: ROLES.proposal, width: 1.5 },
    { box: anchor.box, colour: ROLES.anchor, dash: [2, 3], width: 1.5 },
    ...(rival ? [{ box: rival.box, colour: ROLES.rival, width: 1.5 }] : []),
  ];
}

/** The classes to choose from; once a model. */
export function renderLabels({ info }) {
  const names = info.classes.slice(1).filter((name) => name !== "N/A");
  $("label").replaceChildren($("label").firstElementChild, ...names.map((name) => h("option", { value: name }, name)));
}

export function render({ expected, story }) {
  const fields = $("expected").elements;
  ["x1", "y1", "x2", "y2"].forEach((name, i) => (fields[name].value = expected ? expected[i].toFixed(1) : ""));
  $("explanation").replaceChildren(...(story ? told(story) : []));
}

function told({ stage, sentence, anchor, proposal, detection }) {
  const lost = STEPS.findIndex(([, stages]) => stages.includes(stage));
  const steps = STEPS.map(([title], i) =>
    h("li", { className: lost < 0 || i < lost ? "" : i === lost ? "lost" : "ahead" }, title),
  );
  const rival = detection?.suppressed_by ?? proposal.suppressed_by;
  const facts = [
    [ROLES.anchor, "best anchor", `IoU ${anchor.iou.toFixed(2)}; level ${anchor.level}, size ${anchor.size}, ratio ${anchor.ratio}; rank ${anchor.rank + 1} of ${anchor.level_anchors}`],
    [ROLES.proposal, "RPN's box", `IoU ${proposal.iou.toFixed(2)}, objectness ${proposal.anchor.objectness.toFixed(3)}${proposal.index === null ? "" : `, number ${proposal.index + 1}`}`],
    ...(detection ? [[ROLES.detection, "detector", `${detection.label} ${detection.score.toFixed(3)}, IoU ${detection.iou.toFixed(2)}; likeliest ${detection.top_label.replaceAll("_", "")} ${detection.top_score.toFixed(3)}`]] : []),
    ...(rival ? [[ROLES.rival, "lost to", `score ${rival.score.toFixed(3)}, box ${corners(rival.box)}`]] : []),
  ];
  const list = h("dl");
  for (const [tint, term, text] of facts) list.append(h("dt", {}, swatch(tint), term), h("dd", {}, text));
  const word = h("p", { className: "word" }, WORDS[stage] ?? stage);
  word.dataset.stage = stage;
  return [word, h("p", {}, sentence), h("ol", { className: "ladder" }, ...steps), list];
}

export function describe({ story }) {
  return story ? story.sentence : "draw a box";
}

export function request(state) {
  const label = $("label").value;
  const form = { boxes: JSON.stringify(state.expected ? [state.expected.map((side) => Number(side.toFixed(2)))] : []) };
  if (label) form.labels = JSON.stringify([label]);
  return { path: "explain", options: { score_threshold: state.score, nms_threshold: state.nms }, form };
}

export const answer = ({ told: document }) => document;
