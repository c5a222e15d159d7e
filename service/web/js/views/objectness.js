// The view of the RPN's objectness over the image, one level at a time.

import { colour, heatColour } from "../colours.js";
import { $, element, swatch } from "../dom.js";

/** Return the heat map to draw over the image, or null. Its colours are scaled to its own highest value. */
export function heatMap({ maps, heatLevel, alpha }) {
  const map = maps?.find((level) => level.level === heatLevel);
  return map ? { ...map, alpha, top: highest(map) } : null;
}

const highest = (map) => Math.max(...map.values.flat(), 1e-6);

/** Return the level with the highest objectness. */
export function highestLevel(maps) {
  return maps.reduce((best, map) => (highest(map) > highest(best) ? map : best)).level;
}

export const marks = () => [];

/** Make the radio buttons of the levels, once for a model. onChange(level) is called for a choice. */
export function renderLevels(state, onChange) {
  const choices = state.info.anchors.map((level, i) => {
    const radio = element("input", { type: "radio", name: "heat-level", checked: i === state.heatLevel });
    radio.onchange = () => onChange(i);
    return element("label", {}, radio, swatch(colour(i)), `${i}: anchors ${level.sizes.join(", ")} px`);
  });
  $("heat-levels").replaceChildren($("heat-levels").querySelector("legend"), ...choices);
  const stops = Array.from({ length: 11 }, (_, i) => `rgb(${heatColour(i / 10).join(" ")})`);
  $("scale").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
}

export function render(state) {
  document.getElementsByName("heat-level").forEach((radio, i) => (radio.checked = i === state.heatLevel));
  $("alpha-value").value = `${Math.round(state.alpha * 100)} %`;
  const map = heatMap(state);
  $("scale-end").textContent = map ? map.top.toFixed(2) : "1";
  $("heat-note").textContent = map
    ? `${map.values.length} × ${map.values[0].length} cells, ${map.step[0].toFixed(1)} px apart; the highest is ${map.top.toFixed(3)}.`
    : "";
}

export function describe(state) {
  return `objectness of level ${state.heatLevel}`;
}

export function request(state) {
  return { path: "proposals", options: { view: "objectness", level: state.heatLevel }, accept: "image/png" };
}

export function response({ detections, maps, stageCounts }) {
  const { request_id, model, image } = detections;
  return { request_id, model, image, stage_counts: stageCounts, maps };
}
