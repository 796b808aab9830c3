// Small helpers that every part of the page uses.

// make("button", { class: "x", onclick }, "text", child): an element. Strings become text, never markup.
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "circle", "line", "polyline", "text", "g", "rect"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  set(node, attributes);
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value === false || value === null || value === undefined) node.removeAttribute(name);
    else node.setAttribute(name, value);
  }
  return node;
}

const ICONS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z",
  loop: "M11 1.2 14.3 4 11 6.8V5H5.5a3 3 0 0 0-2.6 4.5L1.6 10.7A4.6 4.6 0 0 1 5.5 3.3H11zM5 14.8 1.700 12 5 9.2V11h5.500a3 3 0 0 0 2.600-4.500l1.300-1.200a4.600 4.600 0 0 1-3.900 7.400H5z",
  die: "M3.500 1h9A2.500 2.500 0 0 1 15 3.500v9a2.500 2.500 0 0 1-2.500 2.500h-9A2.500 2.500 0 0 1 1 12.500v-9A2.500 2.500 0 0 1 3.500 1zM4.800 3.500a1.300 1.300 0 1 0 0 2.600 1.300 1.300 0 0 0 0-2.600zM8 6.700a1.300 1.300 0 1 0 0 2.600 1.300 1.300 0 0 0 0-2.600zM11.200 9.900a1.300 1.300 0 1 0 0 2.600 1.300 1.300 0 0 0 0-2.600z",
  close:
    "M3.700 2.300 8 6.600l4.300-4.300 1.400 1.400L9.400 8l4.300 4.300-1.400 1.400L8 9.400l-4.300 4.300-1.400-1.400L6.600 8 2.300 3.700z",
  left: "M10.500 2.500 5 8l5.500 5.500",
  right: "M5.500 2.500 11 8l-5.500 5.500",
  down: "M3 6l5 5 5-5",
  plus: "M7 2h2v5h5v2H9v5H7V9H2V7h5z",
};

export function icon(name) {
  const outlined = ["left", "right", "down"].includes(name);
  return make(
    "svg",
    { viewBox: "0 0 16 16", class: outlined ? "icon outlined" : "icon", "aria-hidden": "true" },
    make("path", { d: ICONS[name], "fill-rule": "evenodd" }),
  );
}

export function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  return value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}

// Where on the way a frame stands: the finished images are at no timestep.
export const timeText = (t) => (t === null ? "finished" : `t = ${Math.round(t)}`);

export const waitingText = (queue) => (queue ? `Waiting: ${queue}` : "Waiting for the model …");

export const range = (low, high) => Array.from({ length: high - low + 1 }, (_, i) => low + i);

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// What the parts tell each other: "settings" (of the form), "run" (what the stage shows), "painted" (a frame of it), "t"
// and "noised" (of the forward process), "restore" (settings for the form, and whether to run them), "tab" (to show one)
// and "shown", "model" (the description of another), "backdrop" (it is there), "asked" (a run), "notice": words, or
// { words, action: { title, run() } }.
export const page = Object.assign(new EventTarget(), { settings: null, description: null });
export const tell = (name, detail) => page.dispatchEvent(new CustomEvent(name, { detail }));
export const hear = (name, callback) => page.addEventListener(name, (event) => callback(event.detail));

// The parts of the page by name, and the wires of their runs: filled by main.js.
export const parts = {};
export const wires = {};

// On a phone the stage is above the settings.
export function bringIntoView(element) {
  if (element.getBoundingClientRect().top >= 0) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}
