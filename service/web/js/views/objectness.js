// The RPN's objectness over the picture, one level at a time.

import { colour, heat } from "../colours.js";
import { $, h, swatch } from "../dom.js";

/** The map to lie over the picture, or null. Colours run to the map's own highest value. */
export function overlay({ maps, heatLevel, alpha }) {
  const map = maps?.find((level) => level.level === heatLevel);
  return map ? { ...map, alpha, top: highest(map) } : null;
}

const highest = (map) => Math.max(...map.values.flat(), 1e-6);

/** The level with the highest objectness. */
export function hottest(maps) {
  return maps.reduce((best, map) => (highest(map) > highest(best) ? map : best)).level;
}

export const marks = () => [];

/** Radio buttons of the levels; once a model. onChange(level). */
export function renderLevels(state, onChange) {
  const choices = state.info.anchors.map((level, i) => {
    const radio = h("input", { type: "radio", name: "heat-level", checked: i === state.heatLevel });
    radio.onchange = () => onChange(i);
    return h("label", {}, radio, swatch(colour(i)), `${i}: anchors ${level.sizes.join(", ")} px`);
  });
  $("heat-levels").replaceChildren($("heat-levels").querySelector("legend"), ...choices);
  const stops = Array.from({ length: 11 }, (_, i) => `rgb(${heat(i / 10).join(" ")})`);
  $("scale").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
}

export function render(state) {
  document.getElementsByName("heat-level").forEach((radio, i) => (radio.checked = i === state.heatLevel));
  $("alpha-value").value = `${Math.round(state.alpha * 100)} %`;
  const map = overlay(state);
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

export function answer({ found, maps, stageCounts }) {
  const { request_id, model, image } = found;
  return { request_id, model, image, stage_counts: stageCounts, maps };
}
