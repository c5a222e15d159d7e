// Elements without a framework: text is always text, never markup.

export const $ = (id) => document.getElementById(id);

/** h("button", {type: "button", onclick}, "text", child): an element with properties and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function swatch(colour) {
  const dot = h("i", { className: "swatch", ariaHidden: "true" });
  dot.style.background = colour;
  return dot;
}

export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
