// The image and what is drawn on it. A mark is {box, colour, label?, textColour?, dash?, width?, alpha?}, in the image's
// pixels.

import { between } from "./boxes.js";
import { heatColour } from "./colours.js";

const FONT = "600 12px system-ui, sans-serif";

export class Stage {
  #canvas;
  #scene = null; // {bitmap, width, height, marks, heatMap}
  #draft = null; // the mark that is being drawn
  #start = null;

  /** handlers: onPick([x, y]) for a click, onBox(box) for a drawn box. */
  constructor(canvas, handlers) {
    this.#canvas = canvas;
    this.drawing = false;
    new ResizeObserver(() => this.#paint()).observe(canvas.parentElement);
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event, handlers));
    canvas.addEventListener("pointercancel", () => this.#cancelDraft());
  }

  show(scene) {
    this.#scene = scene;
    this.#canvas.classList.toggle("drawing", this.drawing);
    this.#paint();
  }

  /** Return the image with its marks, in its own size, as a blob. */
  async toBlob(type) {
    const { width, height } = this.#scene;
    const canvas = new OffscreenCanvas(width, height);
    paint(canvas.getContext("2d"), this.#scene, 1, Math.max(1, Math.min(width, height) / 400));
    return canvas.convertToBlob({ type, quality: 0.92 });
  }

  #paint() {
    if (!this.#scene) return;
    const { width, height } = this.#scene;
    const container = this.#canvas.parentElement;
    const scale = Math.min(container.clientWidth / width, container.clientHeight / height);
    const density = window.devicePixelRatio || 1;
    this.#canvas.style.width = `${width * scale}px`;
    this.#canvas.style.height = `${height * scale}px`;
    this.#canvas.width = Math.round(width * scale * density);
    this.#canvas.height = Math.round(height * scale * density);
    const context = this.#canvas.getContext("2d");
    const marks = this.#draft ? [...this.#scene.marks, this.#draft] : this.#scene.marks;
    paint(context, { ...this.#scene, marks }, this.#canvas.width / width, density);
  }

  #imagePoint(event) {
    const frame = this.#canvas.getBoundingClientRect();
    const { width, height } = this.#scene;
    return [((event.clientX - frame.left) / frame.width) * width, ((event.clientY - frame.top) / frame.height) * height];
  }

  #down(event) {
    if (!this.#scene || event.button !== 0) return;
    this.#start = this.#imagePoint(event);
    if (this.drawing) this.#canvas.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (!this.#start || !this.drawing) return;
    this.#draft = { box: between(this.#start, this.#imagePoint(event), this.#scene), colour: "white", dash: [6, 4] };
    this.#paint();
  }

  #up(event, { onPick, onBox }) {
    if (!this.#start) return;
    const end = this.#imagePoint(event);
    const box = between(this.#start, end, this.#scene);
    const drawn = this.drawing && box[2] - box[0] > 3 && box[3] - box[1] > 3;
    this.#cancelDraft();
    if (drawn) onBox(box);
    else if (!this.drawing) onPick(end);
  }

  #cancelDraft() {
    this.#start = this.#draft = null;
    this.#paint();
  }
}

/** Draw a scene. scale: canvas pixels for each image pixel; density: factor of line widths and font size. */
function paint(context, { bitmap, width, height, marks, heatMap }, scale, density) {
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, Math.round(width * scale), Math.round(height * scale));
  if (heatMap) paintHeatMap(context, heatMap, scale, width, height);
  // The best mark is drawn last, so that nothing covers it.
  for (const mark of [...marks].reverse()) paintBox(context, mark, scale, density);
  for (const mark of [...marks].reverse()) if (mark.label) paintLabel(context, mark, scale, density);
  context.globalAlpha = 1;
}

function paintBox(context, { box, colour, dash = [], width = 2, alpha = 1 }, scale, density) {
  const line = width * density;
  const [x1, y1, x2, y2] = box.map((side) => side * scale);
  // The line is inside the box, as in service/rendering/boxes.py: its outer edge is the edge of the box.
  const frame = [x1 + line / 2, y1 + line / 2, Math.max(x2 - x1 - line, 1), Math.max(y2 - y1 - line, 1)];
  context.globalAlpha = alpha;
  context.setLineDash(dash.map((length) => length * density));
  if (dash.length) {
    context.lineWidth = line + density;
    context.strokeStyle = "rgb(0 0 0 / 0.4)";
    context.setLineDash([]);
    context.strokeRect(...frame);
    context.setLineDash(dash.map((length) => length * density));
  }
  context.lineWidth = line;
  context.strokeStyle = colour;
  context.strokeRect(...frame);
  context.setLineDash([]);
}

function paintLabel(context, { box, colour, label, textColour = "black", alpha = 1 }, scale, density) {
  context.save();
  context.globalAlpha = alpha;
  context.scale(density, density);
  context.font = FONT;
  context.textBaseline = "top";
  const [canvasWidth, canvasHeight] = [context.canvas.width / density, context.canvas.height / density];
  const [width, height] = [context.measureText(label).width + 8, 18];
  const [left, top] = [(box[0] * scale) / density, (box[1] * scale) / density];
  const x = Math.max(0, Math.min(left, canvasWidth - width));
  const y = top >= height ? top - height : Math.min(top, canvasHeight - height);
  context.fillStyle = colour;
  context.fillRect(x, y, width, height);
  context.fillStyle = textColour;
  context.fillText(label, x + 4, y + 3);
  context.restore();
}

/** Draw a heat map, one pixel for each cell, stretched over the image. map: {values, origin, step, alpha, top}. */
function paintHeatMap(context, { values, origin, step, alpha, top }, scale, width, height) {
  // Repeat the outermost cells: cells are centred on their anchors, and the last may end before the image does.
  const pad = (list) => [list[0], ...list, list.at(-1)];
  const cellRows = pad(values.map(pad));
  const [rows, columns] = [cellRows.length, cellRows[0].length];
  const cells = new ImageData(columns, rows);
  cellRows.flat().forEach((value, i) => cells.data.set([...heatColour(value / top), 255], i * 4));
  const cellCanvas = new OffscreenCanvas(columns, rows);
  cellCanvas.getContext("2d").putImageData(cells, 0, 0);
  context.save();
  context.beginPath();
  context.rect(0, 0, width * scale, height * scale);
  context.clip();
  context.globalAlpha = alpha;
  const [x, y] = [(origin[0] - step[0] * 1.5) * scale, (origin[1] - step[1] * 1.5) * scale];
  context.drawImage(cellCanvas, x, y, columns * step[0] * scale, rows * step[1] * scale);
  context.restore();
}
