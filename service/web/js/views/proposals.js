// What the region proposal network handed to the detector, by level, and how many anchors each step left.

import { colour } from "../colours.js";
import { $, h, swatch } from "../dom.js";

function shown({ found, levels, count }) {
  if (!found) return [];
  return found.proposals.levels.map((_, i) => i).filter((i) => levels.has(found.proposals.levels[i])).slice(0, count);
}

export function marks(state) {
  const { proposals } = state.found ?? {};
  return shown(state).map((i) => ({
    box: proposals.boxes[i],
    colour: colour(proposals.levels[i]),
    alpha: 0.35 + 0.65 * proposals.objectness[i],
    width: 1.5,
  }));
}

/** Checkboxes of the levels; once a model. onChange(level, checked). */
export function renderLevels(state, onChange) {
  const boxes = state.info.anchors.map((level, i) => {
    const box = h("input", { type: "checkbox", checked: true });
    box.onchange = () => onChange(i, box.checked);
    return h("label", {}, box, swatch(colour(i)), `${i}: stride ${level.stride}`);
  });
  $("levels").replaceChildren($("levels").querySelector("legend"), ...boxes);
}

export function render(state) {
  $("count").max = Math.max(1, state.found?.proposals.boxes.length ?? 1);
  $("count").value = state.count;
  $("count-value").value = String(shown(state).length);
  $("stage-counts").replaceChildren(...(state.stageCounts ? [table(state.stageCounts)] : []));
}

const STAGES = [
  ["anchors", "anchors"],
  ["above_threshold", "likely enough"],
  ["after_top_k", "after top-k"],
  ["after_size", "large enough"],
  ["after_nms", "after NMS"],
  ["kept", "kept"],
];

function table(stageCounts) {
  const head = stageCounts.map((level) => h("th", { scope: "col" }, swatch(colour(level.level)), String(level.level)));
  const rows = STAGES.map(([key, title]) =>
    h("tr", {}, h("th", { scope: "row" }, title), ...stageCounts.map((level) => h("td", {}, level[key].toLocaleString("en")))),
  );
  return h(
    "table", {},
    h("caption", {}, "Anchors left after each step, by level"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "level"), ...head)),
    h("tbody", {}, ...rows),
  );
}

export function describe(state) {
  return `${shown(state).length} region proposals`;
}

export function request(state) {
  const only = state.levels.size === 1 ? { level: [...state.levels][0] } : {};
  return { path: "proposals", options: { limit: state.count, ...only } };
}

export function answer(state) {
  const here = shown(state);
  const lists = Object.entries(state.found.proposals).map(([key, list]) => [key, here.map((i) => list[i])]);
  const { request_id, model, image } = state.found;
  return { request_id, model, image, stage_counts: state.stageCounts, ...Object.fromEntries(lists) };
}
