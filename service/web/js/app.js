// The page: one state, four views of it. A view has marks, render, describe, request and answer.

import * as api from "./api.js";
import { openCamera } from "./camera.js";
import { $, h, save, swatch } from "./dom.js";
import { Stage } from "./stage.js";
import * as detections from "./views/detections.js";
import * as missed from "./views/missed.js";
import * as objectness from "./views/objectness.js";
import * as proposals from "./views/proposals.js";

const views = { detections, proposals, objectness, missed };
const FLOOR = 0.02; // the first request asks for everything above this score, before NMS: the sliders do the rest here
const MOST = 1000; // detections in an answer
const STAGES = ["decode", "queue", "transform", "backbone", "rpn", "roi_head", "postprocess", "serialize"];
const STAGE_COLOURS = ["#8a94a6", "#c0c7d2", "#6aa6a1", "#3b6fd8", "#e0a02e", "#55a868", "#b07cc6", "#d0716a"];

const state = {
  info: null, picture: null, name: "", bitmap: null, view: "detections",
  found: null, floor: FLOOR, nmsAt: 1, score: 0.5, nms: 0.5, selected: null,
  levels: new Set(), count: 30, stageCounts: null, maps: null, heatLevel: 0, alpha: 0.65,
  expected: null, story: null, told: null, timings: null,
};
let asking = new AbortController();

const stage = new Stage($("canvas"), {
  onPick(point) {
    if (state.view === "detections") select(detections.pick(state, point));
  },
  onBox: (box) => explain(box),
});

function render() {
  const view = views[state.view];
  for (const section of document.querySelectorAll("[data-view]")) section.hidden = section.dataset.view !== state.view;
  $("score").value = state.score;
  $("nms").value = state.nms;
  $("score-value").value = state.score.toFixed(2);
  $("nms-value").value = state.nms.toFixed(2);
  for (const id of ["curl", "json", "save"]) $(id).disabled = !state.found;
  if (state.info) view.render(state, { onSelect: select });
  renderTimings();
  if (!state.bitmap) return;
  stage.drawing = state.view === "missed";
  const { width, height } = state.bitmap;
  const heat = state.view === "objectness" ? objectness.overlay(state) : null;
  stage.show({ bitmap: state.bitmap, width, height, marks: view.marks(state), heat });
  $("canvas").setAttribute("aria-label", `${state.name}, ${width} by ${height} pixels: ${view.describe(state)}`);
}

function renderTimings() {
  const { timings } = state;
  if (!timings) return;
  const spent = STAGES.filter((name) => timings[name] > 0);
  const tint = (name) => STAGE_COLOURS[STAGES.indexOf(name)];
  $("bar").replaceChildren(
    ...spent.map((name) => {
      const part = h("i", { title: `${name} ${timings[name].toFixed(1)} ms` });
      part.style.flexGrow = timings[name];
      part.style.background = tint(name);
      return part;
    }),
  );
  const legend = spent.map((name) => h("span", {}, swatch(tint(name)), `${name} ${timings[name].toFixed(1)}`));
  $("timings").replaceChildren(h("span", {}, `${timings.total.toFixed(1)} ms`), ...legend);
}

/** Run a request for the picture that is open; a newer one, or another picture, makes its answer void. */
async function during(work) {
  asking.abort();
  const { signal } = (asking = new AbortController());
  $("frame").classList.add("busy");
  $("problem").hidden = true;
  try {
    await work(signal);
    if (signal.aborted) return;
    render();
    $("status").textContent = views[state.view].describe(state);
  } catch (error) {
    if (!signal.aborted) await complain(error);
  } finally {
    if (!signal.aborted) $("frame").classList.remove("busy");
  }
}

async function complain(error) {
  if (error.status === 401 && (await askKey())) return state.picture ? open(state.picture, state.name) : start();
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  $("problem").textContent = (error instanceof api.Problem ? error.message : `This failed: ${error.message}`) + wait;
  $("problem").hidden = false;
}

/** The key, from its dialog; false where none was given. */
async function askKey() {
  const dialog = $("key-dialog");
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  api.useKey(dialog.returnValue === "use" ? $("key").value : "");
  return dialog.returnValue === "use" && $("key").value !== "";
}

async function open(picture, name) {
  await during(async (signal) => {
    state.info ??= await model();
    // The service is asked first: what it cannot read, it says in a sentence.
    const found = await detect(picture, { score: FLOOR, nms: 1 }, signal);
    const bitmap = await bitmapOf(picture, signal);
    if (signal.aborted) return;
    state.bitmap?.close();
    Object.assign(state, {
      picture, name, bitmap, selected: null, stageCounts: null, maps: null, expected: null, story: null, told: null,
    });
    take(found, FLOOR, 1);
    if (state.view === "proposals" || state.view === "objectness") await look(signal);
  });
}

/** The picture to draw on. What a browser cannot show (TIFF), the service turns into PNG. */
async function bitmapOf(picture, signal) {
  const upright = { imageOrientation: "from-image" };
  try {
    return await createImageBitmap(picture, upright);
  } catch {
    const bare = await api.ask("detect", picture, { score_threshold: 1 }, { accept: "image/png", signal });
    return createImageBitmap(bare);
  }
}

function detect(picture, { score, nms }, signal) {
  const options = {
    score_threshold: score, nms_threshold: nms, max_detections: MOST, proposals: state.info.limits.max_proposals,
  };
  return api.ask("detect", picture, options, { signal });
}

function take(found, floor, nmsAt) {
  const cut = found.scores.length === MOST ? found.scores.at(-1) : floor;
  Object.assign(state, { found, floor: cut, nmsAt, timings: found.timings_ms });
}

/** A slider moved: filter what is here, or ask again where the answer had been cut short. */
function refilter() {
  render();
  const here = state.found && state.score >= state.floor && (state.nmsAt === 1 || state.nmsAt === state.nms);
  if (!state.found || here) return;
  const { score, nms } = state;
  during(async (signal) => take(await detect(state.picture, { score, nms }, signal), score, nms));
}

/** The anchor counts by stage and the heat maps, once a picture. */
async function look(signal) {
  if (!state.picture || state.maps) return;
  const seen = await api.ask("proposals", state.picture, { limit: 1, view: "objectness" }, { signal });
  Object.assign(state, { stageCounts: seen.stage_counts, maps: seen.maps, heatLevel: objectness.hottest(seen.maps) });
}

function explain(box) {
  if (!state.picture || !box) return;
  Object.assign(state, { expected: box, story: null, told: null });
  render();
  during(async (signal) => {
    const { path, options, form } = missed.request(state);
    const document = await api.ask(path, state.picture, options, { form, signal });
    Object.assign(state, { told: document, story: document.explanations[0], timings: document.timings_ms });
  });
}

function select(index) {
  state.selected = index;
  render();
}

async function model() {
  const info = await api.model();
  state.levels = new Set(info.anchors.keys());
  state.heatLevel = Math.floor(info.anchors.length / 2);
  Object.assign(state, { info, score: Math.max(0.4, info.defaults.score_threshold), nms: info.defaults.nms_threshold });
  $("model").textContent = `${info.name} · ${info.preset} · ${info.device} ${info.precision}`;
  missed.renderLabels(state);
  proposals.renderLevels(state, (level, on) => {
    state.levels[on ? "add" : "delete"](level);
    render();
  });
  objectness.renderLevels(state, (level) => {
    state.heatLevel = level;
    render();
  });
  return info;
}

// ------------------------------------------------------------------------------------------------ where pictures come from

async function example(name) {
  const answer = await fetch(`web/examples/${name}`);
  await open(await answer.blob(), name);
}

const start = () => example("chelsea.jpg");
const choose = (file) => file && open(file, file.name || "picture");

for (const input of [$("file"), $("capture")]) {
  input.addEventListener("change", () => {
    choose(input.files[0]);
    input.value = "";
  });
}
for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", () => example(button.dataset.example));
}
$("camera").addEventListener("click", async () => {
  const shot = await openCamera(() => $("capture").click());
  if (shot) open(shot, "camera picture.jpg");
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
  if (file) choose(file);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").hidden = true;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  choose(event.dataTransfer.files[0]);
});

// -------------------------------------------------------------------------------------------------------------- controls

for (const radio of document.getElementsByName("view")) {
  radio.addEventListener("change", () => {
    state.view = radio.value;
    render();
    if (state.picture && !state.maps && (state.view === "proposals" || state.view === "objectness")) during(look);
  });
}
for (const [id, then] of [["score", refilter], ["nms", refilter], ["count", render], ["alpha", render]]) {
  $(id).addEventListener("input", () => {
    state[id] = Number($(id).value);
    then();
  });
}
$("label").addEventListener("change", () => explain(state.expected));
$("expected").addEventListener("submit", (event) => {
  event.preventDefault();
  explain(["x1", "y1", "x2", "y2"].map((name) => Number(event.target.elements[name].value)));
});
$("curl").addEventListener("click", async () => {
  const { path, options, form, accept } = views[state.view].request(state);
  const command = api.curl(path, state.picture, state.name, options, { form, accept });
  try {
    await navigator.clipboard.writeText(command);
    $("status").textContent = "Copied";
    $("curl").textContent = "Copied";
    setTimeout(() => ($("curl").textContent = "Copy as curl"), 1500);
  } catch {
    window.prompt("Copy this:", command);
  }
});
$("json").addEventListener("click", () => {
  const document = views[state.view].answer(state);
  save(new Blob([JSON.stringify(document, null, 1)], { type: "application/json" }), `${state.view}.json`);
});
$("save").addEventListener("click", async () => save(await stage.picture("image/png"), `${state.view}.png`));

render();
start();
