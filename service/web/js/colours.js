// The colours that the service itself draws with (rendering.py), so that the page and its pictures agree.

/** A bright colour for a class or a level, as [red, green, blue]: golden-angle steps keep neighbours apart. */
export function rgb(kind) {
  const hue = ((kind * 0.381966) % 1) * 6;
  const channel = (offset) => {
    const position = (offset + hue) % 6;
    return Math.round(255 * 0.95 * (1 - 0.85 * Math.max(0, Math.min(position, 4 - position, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

export function colour(kind) {
  return `rgb(${rgb(kind).join(" ")})`;
}

/** Black or white, whichever can be read on that colour (ITU-R BT.601). */
export function ink([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "black" : "white";
}

// The parts of an explanation.
export const ROLES = {
  expected: "rgb(255 255 255)",
  anchor: "rgb(122 167 255)",
  proposal: "rgb(245 184 61)",
  detection: "rgb(94 220 140)",
  rival: "rgb(255 92 92)",
};

// From cold to hot, readable in grey as well: lightness rises all the way.
const STOPS = [[0, 0, 20], [60, 15, 110], [150, 40, 120], [230, 90, 70], [252, 180, 70], [252, 253, 190]];

/** The colour of a heat in [0, 1], as [red, green, blue]. */
export function heat(value) {
  const place = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((from, i) => Math.round(from + (STOPS[low + 1][i] - from) * (place - low)));
}
