// DOM helpers. Children that are strings become text nodes, so that text is never read as markup.

/** Return the element with that id. */
export const $ = (id) => document.getElementById(id);

/** Return a new element: element("button", {type: "button", onclick}, "text", child). */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Return a small square of `colour`, for legends. */
export function swatch(colour) {
  const square = element("i", { className: "swatch", ariaHidden: "true" });
  square.style.background = colour;
  return square;
}

/** Download `blob` as a file. */
export function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
