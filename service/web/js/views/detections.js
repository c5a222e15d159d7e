// What was found: sliders that need no new request, a list, and for one detection the way it came.

import { area, contains, visible } from "../boxes.js";
import { ROLES, colour, ink, rgb } from "../colours.js";
import { $, h, swatch } from "../dom.js";

const name = (state, i) => `${state.found.labels[i]} ${state.found.scores[i].toFixed(2)}`;

/** Indices of the detections that the sliders leave. */
export function shown(state) {
  return state.found ? visible(state.found, state.score, state.nms, state.info.defaults.max_detections) : [];
}

/** The best mark first. */
export function marks(state) {
  const { found, selected } = state;
  const here = shown(state);
  const lineage = here.includes(selected) ? parents(state, selected) : [];
  return [
    ...lineage,
    ...here.map((i) => ({
      box: found.boxes[i],
      colour: colour(found.class_ids[i]),
      letters: ink(rgb(found.class_ids[i])),
      label: name(state, i),
      alpha: lineage.length && i !== selected ? 0.3 : 1,
    })),
  ];
}

function parents({ found }, i) {
  const row = found.proposal_indices?.[i];
  const proposals = found.proposals;
  if (row === undefined || row >= proposals.boxes.length) return [];
  return [
    { box: proposals.boxes[row], colour: ROLES.proposal, dash: [6, 4], width: 1.5 },
    { box: proposals.anchors[row], colour: ROLES.anchor, dash: [2, 3], width: 1.5 },
  ];
}

/** The detection under a point: of several the smallest, which is hardest to hit. */
export function pick(state, point) {
  const here = shown(state).filter((i) => contains(state.found.boxes[i], point));
  here.sort((a, b) => area(state.found.boxes[a]) - area(state.found.boxes[b]));
  return here[0] ?? null;
}

/** onSelect(i or null) is called for a click in the list. */
export function render(state, { onSelect }) {
  const here = shown(state);
  const list = $("detections");
  const focused = list.contains(document.activeElement) ? Number(document.activeElement.dataset.index) : null;
  list.replaceChildren(
    ...here.map((i) => {
      const pressed = i === state.selected;
      const button = h("button", { type: "button", ariaPressed: String(pressed) });
      button.dataset.index = i;
      button.onclick = () => onSelect(pressed ? null : i);
      const score = h("span", { className: "number" }, state.found.scores[i].toFixed(3));
      button.append(swatch(colour(state.found.class_ids[i])), state.found.labels[i], score);
      return h("li", {}, button);
    }),
  );
  if (focused !== null) list.querySelector(`[data-index="${focused}"]`)?.focus();
  $("none").hidden = !state.found || here.length > 0;
  $("none").textContent = state.found?.boxes.length
    ? `Nothing scores above ${state.score.toFixed(2)}; the best is ${name(state, 0)}.`
    : "Nothing was found.";
  $("lineage").replaceChildren(...lineage(state, here));
}

function lineage({ found, selected, info }, here) {
  if (!here.includes(selected)) {
    return here.length ? [h("p", { className: "quiet" }, "Choose a detection to see where it came from.")] : [];
  }
  const row = found.proposal_indices?.[selected];
  const from = found.proposals;
  if (row === undefined || row >= from.boxes.length) return [];
  const [dx, dy, dw, dh] = from.deltas[row];
  const level = from.levels[row];
  const facts = [
    [ROLES.anchor, "anchor", anchor(from, row)],
    [null, "stands on", `level ${level}, stride ${info.anchors[level]?.stride}, row ${from.cells[row][0]}, column ${from.cells[row][1]}`],
    [null, "its rank", `${from.ranks[row] + 1} by objectness on its level`],
    [null, "moved by", `${signed(dx)}, ${signed(dy)} of its sides; × ${Math.exp(dw).toFixed(2)}, ${Math.exp(dh).toFixed(2)}`],
    [ROLES.proposal, "proposal", `number ${row + 1}, objectness ${from.objectness[row].toFixed(3)}`],
    [colour(found.class_ids[selected]), "detection", `${found.labels[selected]}, score ${found.scores[selected].toFixed(3)}`],
    [null, "its box", corners(found.boxes[selected])],
  ];
  const list = h("dl");
  for (const [tint, term, text] of facts) {
    list.append(h("dt", {}, ...(tint ? [swatch(tint)] : []), term), h("dd", {}, text));
  }
  return [list];
}

function anchor(from, row) {
  const [x1, y1, x2, y2] = from.anchors[row];
  const size = `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} px`;
  return `${size}; size ${from.sizes[row]}, ratio ${from.ratios[row]}`;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

export const corners = (box) => box.map((side) => side.toFixed(1)).join(", ");

export function describe(state) {
  const here = shown(state);
  return here.length ? here.map((i) => name(state, i)).join(", ") : "no detections";
}

/** The request whose answer this view shows. */
export function request(state) {
  return { path: "detect", options: { score_threshold: state.score, nms_threshold: state.nms } };
}

/** That answer, put together from what is here. */
export function answer(state) {
  const { found } = state;
  const here = shown(state);
  const rest = { ...found };
  delete rest.proposals;
  for (const list of ["boxes", "scores", "labels", "class_ids", "proposal_indices"]) {
    if (found[list]) rest[list] = here.map((i) => found[list][i]);
  }
  return rest;
}
