// Boxes are [x1, y1, x2, y2] in the picture's pixels. Pure functions; nothing here knows of the page.

export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const overlap = width * height;
  return overlap / (area(a) + area(b) - overlap);
}

export function area([x1, y1, x2, y2]) {
  return (x2 - x1) * (y2 - y1);
}

export function contains([x1, y1, x2, y2], [x, y]) {
  return x >= x1 && x <= x2 && y >= y1 && y <= y2;
}

/** The box between two corners, inside a picture of that size. */
export function between([xa, ya], [xb, yb], { width, height }) {
  const inX = (x) => Math.min(Math.max(x, 0), width);
  const inY = (y) => Math.min(Math.max(y, 0), height);
  return [inX(Math.min(xa, xb)), inY(Math.min(ya, yb)), inX(Math.max(xa, xb)), inY(Math.max(ya, yb))];
}

/**
 * What the service itself would answer: the detections (by falling score) above `score` that greedy NMS leaves within
 * each class, at most `limit`. `found` is an answer of /detect; returns indices into its lists.
 */
export function visible(found, score, threshold, limit) {
  const kept = [];
  for (let i = 0; i < found.boxes.length; i++) {
    if (found.scores[i] <= score) break;
    const rival = (j) => found.class_ids[j] === found.class_ids[i] && iou(found.boxes[j], found.boxes[i]) > threshold;
    if (!kept.some(rival)) kept.push(i);
  }
  return kept.slice(0, limit);
}
