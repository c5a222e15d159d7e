// The colours of service/rendering/boxes.py, so that the page and the images that the service draws look alike.

/** Return a bright colour for a class or level, as [red, green, blue]; golden-angle steps of hue keep neighbours distinct. */
export function rgb(category) {
  const hue = ((category * 0.381966) % 1) * 6;
  const channel = (offset) => {
    const position = (offset + hue) % 6;
    return Math.round(255 * 0.95 * (1 - 0.85 * Math.max(0, Math.min(position, 4 - position, 1))));
  };
  return [channel(5), channel(3), channel(1)];
}

/** Return the same as a CSS colour. */
export function colour(category) {
  return `rgb(${rgb(category).join(" ")})`;
}

/** Return the text colour that is readable on that colour, black or white (luminance of ITU-R BT.601). */
export function textColour([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128 ? "black" : "white";
}

// The parts of an explanation.
export const ROLES = {
  expected: "rgb(255 255 255)",
  anchor: "rgb(122 167 255)",
  proposal: "rgb(245 184 61)",
  detection: "rgb(94 220 140)",
  suppressor: "rgb(255 92 92)",
};

// From low to high values. The lightness rises throughout, so that the map is readable in grey as well.
const STOPS = [[0, 0, 20], [60, 15, 110], [150, 40, 120], [230, 90, 70], [252, 180, 70], [252, 253, 190]];

/** Return the colour of a heat map's value in [0, 1], as [red, green, blue]. */
export function heatColour(value) {
  const position = Math.min(Math.max(value, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(position), STOPS.length - 2);
  return STOPS[low].map((start, i) => Math.round(start + (STOPS[low + 1][i] - start) * (position - low)));
}
