// The view of the detections: sliders that need no new request, a list, and the origin of the selected detection.

import { area, contains, filterDetections } from "../boxes.js";
import { ROLES, colour, rgb, textColour } from "../colours.js";
import { $, element, swatch } from "../dom.js";

const caption = (state, i) => `${state.detections.labels[i]} ${state.detections.scores[i].toFixed(2)}`;

/** Return the indices of the detections that the sliders leave. */
function shownIndices({ detections, score, nms, info }) {
  return detections ? filterDetections(detections, score, nms, info.defaults.max_detections) : [];
}

/** Return the marks to draw, the best first. */
export function marks(state) {
  const { detections, selected } = state;
  const indices = shownIndices(state);
  const origin = indices.includes(selected) ? originMarks(state, selected) : [];
  return [
    ...origin,
    ...indices.map((i) => ({
      box: detections.boxes[i],
      colour: colour(detections.class_ids[i]),
      textColour: textColour(rgb(detections.class_ids[i])),
      label: caption(state, i),
      alpha: origin.length && i !== selected ? 0.3 : 1,
    })),
  ];
}

/** Return the marks of a detection's proposal and anchor; none where the response does not have them. */
function originMarks({ detections }, i) {
  const row = detections.proposal_indices?.[i];
  const proposals = detections.proposals;
  if (row === undefined || row >= proposals.boxes.length) return [];
  return [
    { box: proposals.boxes[row], colour: ROLES.proposal, dash: [6, 4], width: 1.5 },
    { box: proposals.anchors[row], colour: ROLES.anchor, dash: [2, 3], width: 1.5 },
  ];
}

/** Return the detection under a point: of several the smallest, which is the hardest to hit. */
export function pick(state, point) {
  const { boxes } = state.detections;
  const hits = shownIndices(state).filter((i) => contains(boxes[i], point));
  hits.sort((a, b) => area(boxes[a]) - area(boxes[b]));
  return hits[0] ?? null;
}

/** Fill the list. onSelect(i or null) is called for a click in it. */
export function render(state, { onSelect }) {
  const { detections } = state;
  const indices = shownIndices(state);
  const list = $("detections");
  const focused = list.contains(document.activeElement) ? Number(document.activeElement.dataset.index) : null;
  list.replaceChildren(
    ...indices.map((i) => {
      const pressed = i === state.selected;
      const button = element("button", { type: "button", ariaPressed: String(pressed) });
      button.dataset.index = i;
      button.onclick = () => onSelect(pressed ? null : i);
      const score = element("span", { className: "number" }, detections.scores[i].toFixed(3));
      button.append(swatch(colour(detections.class_ids[i])), detections.labels[i], score);
      return element("li", {}, button);
    }),
  );
  if (focused !== null) list.querySelector(`[data-index="${focused}"]`)?.focus();
  $("none").hidden = !detections || indices.length > 0;
  $("none").textContent = detections?.boxes.length
    ? `Nothing scores above ${state.score.toFixed(2)}; the best is ${caption(state, 0)}.`
    : "Nothing was found.";
  $("origin").replaceChildren(...originDetails(state, indices));
}

/** Return a table of the selected detection's anchor, offsets and proposal, or a hint to select one. */
function originDetails({ detections, selected, info }, indices) {
  if (!indices.includes(selected)) {
    return indices.length ? [element("p", { className: "quiet" }, "Choose a detection to see where it came from.")] : [];
  }
  const row = detections.proposal_indices?.[selected];
  const { proposals } = detections;
  if (row === undefined || row >= proposals.boxes.length) return [];
  const [dx, dy, dw, dh] = proposals.deltas[row];
  const level = proposals.levels[row];
  const [cellRow, cellColumn] = proposals.cells[row];
  const entries = [
    [ROLES.anchor, "anchor", anchorText(proposals, row)],
    [null, "at", `level ${level}, stride ${info.anchors[level]?.stride}, row ${cellRow}, column ${cellColumn}`],
    [null, "rank", `${proposals.ranks[row] + 1} by objectness on its level`],
    [null, "moved by", `${signed(dx)}, ${signed(dy)} of its sides; × ${Math.exp(dw).toFixed(2)}, ${Math.exp(dh).toFixed(2)}`],
    [ROLES.proposal, "proposal", `number ${row + 1}, objectness ${proposals.objectness[row].toFixed(3)}`],
    [colour(detections.class_ids[selected]), "detection", `${detections.labels[selected]}, score ${detections.scores[selected].toFixed(3)}`],
    [null, "box", cornersText(detections.boxes[selected])],
  ];
  const list = element("dl");
  for (const [tint, term, text] of entries) {
    list.append(element("dt", {}, ...(tint ? [swatch(tint)] : []), term), element("dd", {}, text));
  }
  return [list];
}

function anchorText(proposals, row) {
  const [x1, y1, x2, y2] = proposals.anchors[row];
  const size = `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} px`;
  return `${size}; size ${proposals.sizes[row]}, ratio ${proposals.ratios[row]}`;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

export const cornersText = (box) => box.map((side) => side.toFixed(1)).join(", ");

/** Describe the view in a sentence, for screen readers. */
export function describe(state) {
  const indices = shownIndices(state);
  return indices.length ? indices.map((i) => caption(state, i)).join(", ") : "no detections";
}

/** Return the request whose response this view shows. */
export function request(state) {
  return { path: "detect", options: { score_threshold: state.score, nms_threshold: state.nms } };
}

/** Return that response, made from the data of the page. */
export function response(state) {
  const { detections } = state;
  const indices = shownIndices(state);
  const body = { ...detections };
  delete body.proposals;
  for (const list of ["boxes", "scores", "labels", "class_ids", "proposal_indices"]) {
    if (detections[list]) body[list] = indices.map((i) => detections[list][i]);
  }
  return body;
}
