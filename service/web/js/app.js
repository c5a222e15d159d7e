// The page: one state, and four views of it, each with the functions marks, render, describe, request and response.

import * as api from "./api.js";
import { openCamera } from "./camera.js";
import { $, element, save, swatch } from "./dom.js";
import { Stage } from "./stage.js";
import * as detections from "./views/detections.js";
import * as missed from "./views/missed.js";
import * as objectness from "./views/objectness.js";
import * as proposals from "./views/proposals.js";

const views = { detections, proposals, objectness, missed };
// The first request is for all detections above this score, before NMS: the sliders filter them in the page.
const MIN_SCORE = 0.02;
const MAX_DETECTIONS = 1000; // in a response
const STAGES = ["decode", "queue", "transform", "backbone", "rpn", "roi_head", "postprocess", "serialize"];
const STAGE_COLOURS = ["#8a94a6", "#c0c7d2", "#6aa6a1", "#3b6fd8", "#e0a02e", "#55a868", "#b07cc6", "#d0716a"];

const state = {
  info: null, image: null, name: "", bitmap: null, view: "detections",
  detections: null, fetchedScore: MIN_SCORE, fetchedNms: 1, score: 0.5, nms: 0.5, selected: null,
  levels: new Set(), count: 30, stageCounts: null, maps: null, heatLevel: 0, alpha: 0.65,
  expected: null, explanation: null, explainResponse: null, timings: null,
};
let currentRequest = new AbortController();

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
  for (const id of ["curl", "json", "save"]) $(id).disabled = !state.detections;
  if (state.info) view.render(state, { onSelect: select });
  renderTimings();
  if (!state.bitmap) return;
  stage.drawing = state.view === "missed";
  const { width, height } = state.bitmap;
  const heatMap = state.view === "objectness" ? objectness.heatMap(state) : null;
  stage.show({ bitmap: state.bitmap, width, height, marks: view.marks(state), heatMap });
  $("canvas").setAttribute("aria-label", `${state.name}, ${width} by ${height} pixels: ${view.describe(state)}`);
}

function renderTimings() {
  const { timings } = state;
  if (!timings) return;
  const shown = STAGES.filter((name) => timings[name] > 0);
  const tint = (name) => STAGE_COLOURS[STAGES.indexOf(name)];
  $("bar").replaceChildren(
    ...shown.map((name) => {
      const part = element("i", { title: `${name} ${timings[name].toFixed(1)} ms` });
      part.style.flexGrow = timings[name];
      part.style.background = tint(name);
      return part;
    }),
  );
  const legend = shown.map((name) => element("span", {}, swatch(tint(name)), `${name} ${timings[name].toFixed(1)}`));
  $("timings").replaceChildren(element("span", {}, `${timings.total.toFixed(1)} ms`), ...legend);
}

/** Run a request for the open image. A later request, or another image, cancels it. */
async function runRequest(work) {
  currentRequest.abort();
  const { signal } = (currentRequest = new AbortController());
  $("frame").classList.add("busy");
  $("problem").hidden = true;
  try {
    await work(signal);
    if (signal.aborted) return;
    render();
    $("status").textContent = views[state.view].describe(state);
  } catch (error) {
    if (!signal.aborted) await showError(error);
  } finally {
    if (!signal.aborted) $("frame").classList.remove("busy");
  }
}

async function showError(error) {
  if (error.status === 401 && (await askForKey())) return state.image ? open(state.image, state.name) : start();
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  $("problem").textContent = (error instanceof api.Problem ? error.message : `This failed: ${error.message}`) + wait;
  $("problem").hidden = false;
}

/** Ask for the API key in a dialog; return false where none was entered. */
async function askForKey() {
  const dialog = $("key-dialog");
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  api.setApiKey(dialog.returnValue === "use" ? $("key").value : "");
  return dialog.returnValue === "use" && $("key").value !== "";
}

async function open(image, name) {
  await runRequest(async (signal) => {
    state.info ??= await loadModel();
    // The service first: where it cannot decode the image, its message says why.
    const detections = await detect(image, { score: MIN_SCORE, nms: 1 }, signal);
    const bitmap = await bitmapOf(image, signal);
    if (signal.aborted) return;
    state.bitmap?.close();
    Object.assign(state, {
      image, name, bitmap, selected: null, stageCounts: null, maps: null, expected: null, explanation: null,
      explainResponse: null,
    });
    storeDetections(detections, MIN_SCORE, 1);
    if (state.view === "proposals" || state.view === "objectness") await loadMaps(signal);
  });
}

/** Return the image as a bitmap. The service converts to PNG what the browser cannot decode, as TIFF. */
async function bitmapOf(image, signal) {
  const upright = { imageOrientation: "from-image" };
  try {
    return await createImageBitmap(image, upright);
  } catch {
    const png = await api.post("detect", image, { score_threshold: 1 }, { accept: "image/png", signal });
    return createImageBitmap(png);
  }
}

function detect(image, { score, nms }, signal) {
  const options = {
    score_threshold: score, nms_threshold: nms, max_detections: MAX_DETECTIONS, proposals: state.info.limits.max_proposals,
  };
  return api.post("detect", image, options, { signal });
}

function storeDetections(detections, score, fetchedNms) {
  const { scores, timings_ms } = detections;
  const fetchedScore = scores.length === MAX_DETECTIONS ? scores.at(-1) : score;
  Object.assign(state, { detections, fetchedScore, fetchedNms, timings: timings_ms });
}

/** Handle a slider's move: filter the detections, or request them again where the response did not have all. */
function refilter() {
  render();
  if (!state.detections) return;
  const nmsFits = state.fetchedNms === 1 || state.fetchedNms === state.nms;
  if (state.score >= state.fetchedScore && nmsFits) return;
  const { score, nms } = state;
  runRequest(async (signal) => storeDetections(await detect(state.image, { score, nms }, signal), score, nms));
}

/** Load the counts of the RPN's steps and the heat maps, once for an image. */
async function loadMaps(signal) {
  if (!state.image || state.maps) return;
  const { maps, stage_counts } = await api.post("proposals", state.image, { limit: 1, view: "objectness" }, { signal });
  Object.assign(state, { stageCounts: stage_counts, maps, heatLevel: objectness.highestLevel(maps) });
}

function explain(box) {
  if (!state.image || !box) return;
  Object.assign(state, { expected: box, explanation: null, explainResponse: null });
  render();
  runRequest(async (signal) => {
    const { path, options, form } = missed.request(state);
    const explainResponse = await api.post(path, state.image, options, { form, signal });
    const { explanations, timings_ms } = explainResponse;
    Object.assign(state, { explainResponse, explanation: explanations[0], timings: timings_ms });
  });
}

function select(index) {
  state.selected = index;
  render();
}

async function loadModel() {
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

// ------------------------------------------------------------------------------------------------------ image sources

async function example(name) {
  const response = await fetch(`web/examples/${name}`);
  await open(await response.blob(), name);
}

const start = () => example("chelsea.jpg");
const choose = (file) => file && open(file, file.name || "image");

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
  const photo = await openCamera(() => $("capture").click());
  if (photo) open(photo, "photo.jpg");
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
    if (state.image && !state.maps && (state.view === "proposals" || state.view === "objectness")) runRequest(loadMaps);
  });
}
for (const [id, update] of [["score", refilter], ["nms", refilter], ["count", render], ["alpha", render]]) {
  $(id).addEventListener("input", () => {
    state[id] = Number($(id).value);
    update();
  });
}
$("label").addEventListener("change", () => explain(state.expected));
$("expected").addEventListener("submit", (event) => {
  event.preventDefault();
  explain(["x1", "y1", "x2", "y2"].map((name) => Number(event.target.elements[name].value)));
});
$("curl").addEventListener("click", async () => {
  const { path, options, form, accept } = views[state.view].request(state);
  const command = api.curl(path, state.image, state.name, options, { form, accept });
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
  const body = views[state.view].response(state);
  save(new Blob([JSON.stringify(body, null, 1)], { type: "application/json" }), `${state.view}.json`);
});
$("save").addEventListener("click", async () => save(await stage.toBlob("image/png"), `${state.view}.png`));

render();
start();
