// A choice of one from a list in which every entry has a title and a line that explains it.

import { icon, make, set } from "./dom.js";

export class Choice {
  // options: [{ value, title, about }].
  constructor({ label, options, value, changed = () => {}, short = false }) {
    Object.assign(this, { options, changed });
    const id = `choice-${(Choice.count = (Choice.count ?? 0) + 1)}`;
    this.title = make("span", { class: "choice-title" });
    this.about = make("span", { class: "choice-about", id: `${id}-about` });
    this.button = make(
      "button",
      {
        type: "button",
        class: "choice-button",
        "aria-haspopup": "listbox",
        "aria-expanded": "false",
        "aria-describedby": short ? null : `${id}-about`,
        onclick: () => this.open(this.list.hidden),
      },
      this.title,
      icon("down"),
    );
    this.list = make("ul", {
      class: "choice-list",
      role: "listbox",
      id: `${id}-list`,
      tabindex: -1,
      "aria-label": label,
      hidden: true,
    });
    this.items = options.map(({ value, title, about }, i) =>
      make(
        "li",
        { role: "option", id: `${id}-${i}`, onclick: () => this.pick(value) },
        make("b", {}, title),
        make("span", {}, about),
      ),
    );
    this.list.append(...this.items);
    this.button.setAttribute("aria-controls", `${id}-list`);
    this.label = label;
    this.element = make("div", { class: "choice" }, this.button, short ? null : this.about, this.list);
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener(
      "focusout",
      (event) => !this.element.contains(event.relatedTarget) && this.open(false),
    );
    this.set(value);
  }

  set(value) {
    const at = this.options.findIndex((option) => option.value === value);
    if (at < 0) return false;
    this.value = value;
    this.title.textContent = this.options[at].title;
    this.about.textContent = this.options[at].about;
    this.button.setAttribute("aria-label", `${this.label}: ${this.options[at].title}`);
    this.items.forEach((item, i) => item.setAttribute("aria-selected", i === at));
    this.mark(at);
    return true;
  }

  pick(value) {
    const changed = value !== this.value;
    this.set(value);
    this.open(false);
    this.button.focus();
    if (changed) this.changed(value);
  }

  open(yes) {
    if (this.list.hidden === !yes) return;
    this.list.hidden = !yes;
    this.button.setAttribute("aria-expanded", yes);
    if (!yes) return;
    this.mark(this.options.findIndex((option) => option.value === this.value));
    this.list.focus();
  }

  mark(at) {
    this.marked = at;
    this.items.forEach((item, i) => item.classList.toggle("marked", i === at));
    this.list.setAttribute("aria-activedescendant", this.items[at].id);
    if (!this.list.hidden) this.items[at].scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const last = this.options.length - 1;
    const { key } = event;
    const to = {
      ArrowDown: Math.min(last, this.marked + 1),
      ArrowUp: Math.max(0, this.marked - 1),
      Home: 0,
      End: last,
    }[key];
    const letter =
      key.length === 1 && key !== " "
        ? this.options.findIndex(({ title }) => title.toLowerCase().startsWith(key.toLowerCase()))
        : -1;
    if (this.list.hidden) {
      if (key !== "ArrowDown" && key !== "ArrowUp") return;
      this.open(true);
    } else if (key === "Escape") {
      this.open(false);
      this.button.focus();
    } else if (key === "Enter" || key === " ") this.pick(this.options[this.marked].value);
    else if (to !== undefined) this.mark(to);
    else if (letter >= 0) this.mark(letter);
    else return;
    event.preventDefault();
  }
}
