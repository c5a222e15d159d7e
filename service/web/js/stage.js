// The picture and what is drawn on it. A mark is {box, colour, label?, dash?, width?, alpha?}, in the picture's pixels.

import { between } from "./boxes.js";
import { heat } from "./colours.js";

const FONT = "600 12px system-ui, sans-serif";

export class Stage {
  #canvas;
  #scene = null; // {bitmap, width, height, marks, heat}
  #draft = null; // the box that is being drawn
  #start = null;

  /** handlers: onPick([x, y]) for a click, onBox(box) for a box that was drawn. */
  constructor(canvas, handlers) {
    this.#canvas = canvas;
    this.drawing = false;
    new ResizeObserver(() => this.#paint()).observe(canvas.parentElement);
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event, handlers));
    canvas.addEventListener("pointercancel", () => this.#forget());
  }

  show(scene) {
    this.#scene = scene;
    this.#canvas.classList.toggle("drawing", this.drawing);
    this.#paint();
  }

  /** The picture with its marks in its own size, as a blob. */
  async picture(type) {
    const { width, height } = this.#scene;
    const canvas = new OffscreenCanvas(width, height);
    paint(canvas.getContext("2d"), this.#scene, 1, Math.max(1, Math.min(width, height) / 400));
    return canvas.convertToBlob({ type, quality: 0.92 });
  }

  #paint() {
    if (!this.#scene) return;
    const { width, height } = this.#scene;
    const room = this.#canvas.parentElement;
    const scale = Math.min(room.clientWidth / width, room.clientHeight / height);
    const density = window.devicePixelRatio || 1;
    this.#canvas.style.width = `${width * scale}px`;
    this.#canvas.style.height = `${height * scale}px`;
    this.#canvas.width = Math.round(width * scale * density);
    this.#canvas.height = Math.round(height * scale * density);
    const context = this.#canvas.getContext("2d");
    const marks = this.#draft ? [...this.#scene.marks, this.#draft] : this.#scene.marks;
    paint(context, { ...this.#scene, marks }, this.#canvas.width / width, density);
  }

  #at(event) {
    const frame = this.#canvas.getBoundingClientRect();
    const { width, height } = this.#scene;
    return [((event.clientX - frame.left) / frame.width) * width, ((event.clientY - frame.top) / frame.height) * height];
  }

  #down(event) {
    if (!this.#scene || event.button !== 0) return;
    this.#start = this.#at(event);
    if (this.drawing) this.#canvas.setPointerCapture(event.pointerId);
  }

  #move(event) {
    if (!this.#start || !this.drawing) return;
    this.#draft = { box: between(this.#start, this.#at(event), this.#scene), colour: "white", dash: [6, 4] };
    this.#paint();
  }

  #up(event, { onPick, onBox }) {
    if (!this.#start) return;
    const end = this.#at(event);
    const box = between(this.#start, end, this.#scene);
    const drawn = this.drawing && box[2] - box[0] > 3 && box[3] - box[1] > 3;
    this.#forget();
    if (drawn) onBox(box);
    else if (!this.drawing) onPick(end);
  }

  #forget() {
    this.#start = this.#draft = null;
    this.#paint();
  }
}

/** Draw a scene; scale: canvas pixels a picture pixel; density: how thick lines and letters are. */
function paint(context, { bitmap, width, height, marks, heat: map }, scale, density) {
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, Math.round(width * scale), Math.round(height * scale));
  if (map) paintHeat(context, map, scale, width, height);
  // The best mark is drawn last, so that nothing covers it.
  for (const mark of [...marks].reverse()) paintBox(context, mark, scale, density);
  for (const mark of [...marks].reverse()) if (mark.label) paintLabel(context, mark, scale, density);
  context.globalAlpha = 1;
}

function paintBox(context, { box, colour, dash = [], width = 2, alpha = 1 }, scale, density) {
  const line = width * density;
  const [x1, y1, x2, y2] = box.map((side) => side * scale);
  // Inside its box, as rendering.py draws: the outer edge of the line is the box.
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

function paintLabel(context, { box, colour, label, letters = "black", alpha = 1 }, scale, density) {
  context.save();
  context.globalAlpha = alpha;
  context.scale(density, density);
  context.font = FONT;
  context.textBaseline = "top";
  const [room, depth] = [context.canvas.width / density, context.canvas.height / density];
  const [width, height] = [context.measureText(label).width + 8, 18];
  const [left, top] = [(box[0] * scale) / density, (box[1] * scale) / density];
  const x = Math.max(0, Math.min(left, room - width));
  const y = top >= height ? top - height : Math.min(top, depth - height);
  context.fillStyle = colour;
  context.fillRect(x, y, width, height);
  context.fillStyle = letters;
  context.fillText(label, x + 4, y + 3);
  context.restore();
}

/** Cells as soft spots: one pixel a cell, stretched over the picture. map: {values, origin, step, alpha, top}. */
function paintHeat(context, { values, origin, step, alpha, top }, scale, width, height) {
  // A rim that repeats the edge: cells are centred on their anchors, and the last may end before the picture does.
  const rim = (list) => [list[0], ...list, list.at(-1)];
  const cellRows = rim(values.map(rim));
  const [rows, columns] = [cellRows.length, cellRows[0].length];
  const cells = new ImageData(columns, rows);
  cellRows.flat().forEach((value, i) => cells.data.set([...heat(value / top), 255], i * 4));
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(cells, 0, 0);
  context.save();
  context.beginPath();
  context.rect(0, 0, width * scale, height * scale);
  context.clip();
  context.globalAlpha = alpha;
  const [x, y] = [(origin[0] - step[0] * 1.5) * scale, (origin[1] - step[1] * 1.5) * scale];
  context.drawImage(small, x, y, columns * step[0] * scale, rows * step[1] * scale);
  context.restore();
}
