// The head of the page: what it is, which model, the tabs, and a line for what went wrong.

import { hear, icon, make, page, tell } from "./dom.js";
import { Tabs } from "./tabs.js";
import { ask } from "./wire.js";

const PANELS = [
  ["generate", "Generate"],
  ["compare", "Compare"],
  ["forward", "Forward"],
  ["theory", "How it works"],
  ["take-away", "Take away"],
];

export class Masthead {
  constructor(element, { name, description }) {
    this.name = name;
    this.about = make("p", {});
    this.picker = make(
      "select",
      {
        class: "select",
        "aria-label": "Model",
        hidden: description.models.length < 2,
        onchange: () => this.choose(this.picker.value),
      },
      description.models.map((model) => make("option", { value: model }, model)),
    );
    this.notice = make("div", { class: "notice", role: "alert", hidden: true });
    const bar = make("div", { class: "tabs-bar" });
    element.replaceChildren(
      make("header", {}, make("div", { class: "title" }, make("h1", {}, element.querySelector("h1").textContent), this.picker), this.about),
      bar,
      this.notice,
    );
    this.tell(name);
    this.tabs = new Tabs(
      bar,
      PANELS.map(([id, title]) => ({ id, title })),
    );
    hear("notice", (notice) => this.say(notice));
    hear("asked", () => (this.notice.hidden = true)); // what was wrong before
  }

  tell(name) {
    this.about.replaceChildren(
      "A diffusion model makes pictures by taking noise away, step by step. Watch ",
      make("b", {}, name),
      " do it live.",
    );
  }

  // Over the page, so that nothing moves; it stays for as long as somebody points at it or is in it.
  say(notice) {
    const { words, action } = typeof notice === "string" ? { words: notice } : notice;
    const close = () => (this.notice.hidden = true);
    const later = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(
        () => (this.notice.matches(":hover, :focus-within") ? later() : close()),
        action ? 20_000 : 8000,
      );
    };
    const act = () => {
      close();
      action.run();
    };
    this.notice.replaceChildren(
      make("p", {}, words),
      ...(action ? [make("button", { type: "button", class: "pill", onclick: act }, action.title)] : []),
      make(
        "button",
        { type: "button", class: "close", "aria-label": "Close", title: "Close", onclick: close },
        icon("close"),
      ),
    );
    this.notice.hidden = false;
    later();
  }

  // Another of the allowed models: the server loads it and says what its controls are.
  async choose(model) {
    this.picker.disabled = true;
    try {
      const description = await ask("model", { model });
      const first = description.models[0] === model;
      this.tell(first ? this.name : model);
      tell("model", description);
      this.picker.value = model;
    } catch (error) {
      this.picker.value = page.description.model;
      this.say(error.message);
    }
    this.picker.disabled = false;
  }
}
