// The view of the region proposals, by level, and of the number of anchors that each step of the RPN leaves.

import { colour } from "../colours.js";
import { $, element, swatch } from "../dom.js";

/** Return the indices of the proposals that the controls select. */
function shownIndices({ detections, levels, count }) {
  if (!detections) return [];
  const { proposals } = detections;
  return proposals.levels.map((_, i) => i).filter((i) => levels.has(proposals.levels[i])).slice(0, count);
}

export function marks(state) {
  const { proposals } = state.detections ?? {};
  return shownIndices(state).map((i) => ({
    box: proposals.boxes[i],
    colour: colour(proposals.levels[i]),
    alpha: 0.35 + 0.65 * proposals.objectness[i],
    width: 1.5,
  }));
}

/** Make the checkboxes of the levels, once for a model. onChange(level, checked) is called for a change. */
export function renderLevels(state, onChange) {
  const boxes = state.info.anchors.map((level, i) => {
    const box = element("input", { type: "checkbox", checked: true });
    box.onchange = () => onChange(i, box.checked);
    return element("label", {}, box, swatch(colour(i)), `${i}: stride ${level.stride}`);
  });
  $("levels").replaceChildren($("levels").querySelector("legend"), ...boxes);
}

export function render(state) {
  $("count").max = Math.max(1, state.detections?.proposals.boxes.length ?? 1);
  $("count").value = state.count;
  $("count-value").value = String(shownIndices(state).length);
  $("stage-counts").replaceChildren(...(state.stageCounts ? [table(state.stageCounts)] : []));
}

const STEPS = [
  ["anchors", "anchors"],
  ["above_threshold", "likely enough"],
  ["after_top_k", "after top-k"],
  ["after_size", "large enough"],
  ["after_nms", "after NMS"],
  ["kept", "kept"],
];

function table(stageCounts) {
  const head = stageCounts.map((level) => element("th", { scope: "col" }, swatch(colour(level.level)), String(level.level)));
  const rows = STEPS.map(([key, title]) =>
    element(
      "tr", {},
      element("th", { scope: "row" }, title),
      ...stageCounts.map((level) => element("td", {}, level[key].toLocaleString("en"))),
    ),
  );
  return element(
    "table", {},
    element("caption", {}, "Anchors left after each step, by level"),
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "level"), ...head)),
    element("tbody", {}, ...rows),
  );
}

export function describe(state) {
  return `${shownIndices(state).length} region proposals`;
}

export function request(state) {
  const only = state.levels.size === 1 ? { level: [...state.levels][0] } : {};
  return { path: "proposals", options: { limit: state.count, ...only } };
}

export function response(state) {
  const indices = shownIndices(state);
  const lists = Object.entries(state.detections.proposals).map(([key, list]) => [key, indices.map((i) => list[i])]);
  const { request_id, model, image } = state.detections;
  return { request_id, model, image, stage_counts: state.stageCounts, ...Object.fromEntries(lists) };
}
