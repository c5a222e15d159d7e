// Functions of boxes: [x1, y1, x2, y2] in the image's pixels. They do not touch the page.

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

/** Return the box between two corners, clipped to an image of that size. */
export function between([xa, ya], [xb, yb], { width, height }) {
  const inX = (x) => Math.min(Math.max(x, 0), width);
  const inY = (y) => Math.min(Math.max(y, 0), height);
  return [inX(Math.min(xa, xb)), inY(Math.min(ya, yb)), inX(Math.max(xa, xb)), inY(Math.max(ya, yb))];
}

/**
 * Filter detections as the service does: those above `score` that greedy NMS keeps within each class, at most `limit`.
 * detections: a response of /detect, by falling score. Returns indices into its lists.
 */
export function filterDetections({ boxes, scores, class_ids }, score, threshold, limit) {
  const keep = [];
  for (let i = 0; i < boxes.length; i++) {
    if (scores[i] <= score) break;
    const suppresses = (j) => class_ids[j] === class_ids[i] && iou(boxes[j], boxes[i]) > threshold;
    if (!keep.some(suppresses)) keep.push(i);
  }
  return keep.slice(0, limit);
}
