// The keys that the page knows, and the way to the walk.

import { make } from "./dom.js";

const KEYS = [
  ["Enter", "in the settings: Generate, Compare or Denoise"],
  ["← →", "on the tabs, the player, the images and an enlarged image: the one before, the next"],
  ["Home End", "on the tabs, the player and the images: the first, the last"],
  ["Enter", "on an image: enlarge it"],
  ["Esc", "leave an enlarged image, a list or the walk"],
  ["Space", "on the player's button: play or pause"],
];

// The button that opens the list; walk: see walk.js.
export function helpButton(walk) {
  const close = make("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close");
  const begin = () => {
    dialog.close();
    walk.begin();
  };
  const dialog = make(
    "dialog",
    { class: "help card", "aria-label": "Keys" },
    make("h2", {}, "Keys"),
    make("dl", {}, KEYS.map(([key, about]) => make("div", {}, make("dt", {}, key.split(" ").map((one) => make("kbd", {}, one))), make("dd", {}, about)))),
    make("div", { class: "actions" }, close, make("button", { type: "button", class: "pill", onclick: begin }, "Take the short walk")),
  );
  document.body.append(dialog);
  return make(
    "button",
    { type: "button", class: "pill help-button", "aria-label": "Keys and a short walk", title: "Keys and a short walk", onclick: () => dialog.showModal() },
    "?",
  );
}
