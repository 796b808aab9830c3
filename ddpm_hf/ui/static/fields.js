// Form fields: a slider with a number beside it, pictures of classes to pick from, a seed with a die.

import { clamp, icon, make, set } from "./dom.js";

const NICE = [
  0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90, 100,
  125, 150, 200, 250, 300, 400, 500, 600, 700, 800, 900, 1000,
];

// Round values from low to high, close together where they are small: what a slider over a wide range stops at.
function niceValues(low, high, whole) {
  const within = NICE.filter((value) => value > low && value < high && (!whole || Number.isInteger(value)));
  const first = whole ? Array.from({ length: Math.max(0, Math.min(19, high) - low) }, (_, i) => low + 1 + i) : [];
  return [...new Set([low, ...first, ...within, high])].sort((a, b) => a - b).filter((value) => value <= high);
}

export class NumberField {
  constructor({ name, label, low, high, value, whole = true, stops = null, line = null, changed = () => {} }) {
    Object.assign(this, { name, low, high, whole, line, changed, stops: stops ?? niceValues(low, high, whole) });
    const id = `field-${name}`;
    this.number = make("input", {
      type: "number",
      class: "number",
      "aria-label": `${label}, exactly`,
      min: low,
      max: high,
      step: whole ? 1 : 0.1,
      inputmode: whole ? "numeric" : "decimal",
      oninput: () => this.typed(),
      onchange: () => this.set(this.value),
    });
    this.range = make("input", {
      type: "range",
      id,
      class: "range",
      min: 0,
      max: this.stops.length - 1,
      step: 1,
      oninput: () => this.set(this.stops[Number(this.range.value)], true),
    });
    this.about = make("p", { class: "line", id: `${id}-line` });
    if (line) this.range.setAttribute("aria-describedby", `${id}-line`);
    this.element = make(
      "div",
      { class: "field" },
      make("label", { for: id }, label),
      this.number,
      this.range,
      line ? this.about : null,
    );
    this.set(value);
  }

  typed() {
    const value = Number(this.number.value);
    if (this.number.value !== "" && value >= this.low && value <= this.high) this.set(value, true, false);
  }

  set(value, mine = false, write = true) {
    if (typeof value !== "number" || Number.isNaN(value)) return;
    this.value = clamp(this.whole ? Math.round(value) : value, this.low, this.high);
    if (write) this.number.value = this.value;
    const at = this.stops.reduce(
      (best, stop, i) => (Math.abs(stop - this.value) < Math.abs(this.stops[best] - this.value) ? i : best),
      0,
    );
    this.range.value = at;
    this.range.setAttribute("aria-valuetext", String(this.value));
    this.range.style.setProperty("--at", this.stops.length > 1 ? at / (this.stops.length - 1) : 0);
    if (this.line) this.about.textContent = this.line(this.value);
    if (mine) this.changed(this.value);
  }
}

// Two timesteps, both included: where guidance is at work. The value is [low, high].
export class IntervalField {
  constructor({ high, value, changed = () => {} }) {
    Object.assign(this, { high, changed });
    const labels = ["From timestep", "to timestep"];
    this.numbers = labels.map((label) =>
      make("input", {
        type: "number",
        class: "number",
        "aria-label": label,
        min: 0,
        max: high,
        step: 1,
        inputmode: "numeric",
        oninput: () => this.typed(),
        onchange: () => this.set(this.value),
      }),
    );
    this.element = make(
      "fieldset",
      { class: "field interval-field" },
      make("legend", {}, "Guided timesteps"),
      make("div", { class: "row" }, this.numbers[0], make("span", { "aria-hidden": "true" }, "to"), this.numbers[1]),
      make("p", { class: "line" }, "The other steps take one network call, not two."),
    );
    this.set(value);
  }

  typed() {
    if (this.numbers.some((number) => number.value === "")) return;
    const [low, high] = this.numbers.map((number) => Number(number.value));
    if (!(low >= 0 && low <= high && high <= this.high)) return;
    this.value = [low, high];
    this.changed(this.value);
  }

  set(value) {
    if (!Array.isArray(value) || value.length !== 2 || value.some((part) => typeof part !== "number")) return;
    this.value = value.map((part) => clamp(part, 0, this.high));
    this.numbers.forEach((number, i) => (number.value = this.value[i]));
  }
}

// What the pictures are to show. The value is null of an empty field.
export class PromptField {
  constructor({ examples, longest, changed = () => {} }) {
    this.changed = changed;
    this.input = make("input", {
      type: "text",
      id: "field-prompt",
      class: "search",
      maxlength: longest,
      autocomplete: "off",
      placeholder: "Anything",
      oninput: () => this.set(this.input.value, true),
    });
    const pick = (text) => make("button", { type: "button", class: "pill", onclick: () => this.set(text, true) }, text);
    this.element = make(
      "div",
      { class: "field prompt-field" },
      make("label", { for: "field-prompt" }, "Prompt"),
      this.input,
      examples.length ? make("div", { class: "row prompts", role: "group", "aria-label": "Examples" }, examples.map(pick)) : null,
    );
    this.set("");
  }

  set(text, mine = false) {
    if (typeof text !== "string") return;
    if (this.input.value !== text) this.input.value = text;
    this.value = text.trim() || null;
    if (mine) this.changed(this.value);
  }
}

const MANY_CLASSES = 24; // from here on a field to search them

export class ClassField {
  // classes: [{ name, src: data URL or null }]; any: whether "any" is among them. The value is a name.
  constructor({ classes, any = true, changed = () => {}, legend = "Class" }) {
    Object.assign(this, { changed, value: any ? "any" : classes[0].name });
    const group = `class-${(ClassField.count = (ClassField.count ?? 0) + 1)}`;
    const options = any ? [{ name: "any", title: "Any", sheet: classes }, ...classes] : classes;
    this.radios = options.map((option) =>
      make("input", {
        type: "radio",
        name: group,
        value: option.name,
        checked: option.name === this.value,
        onchange: () => this.picked(option.name),
      }),
    );
    this.items = options.map((option, i) =>
      make(
        "label",
        { class: "class", title: option.title ?? option.name },
        this.radios[i],
        this.picture(option),
        make("span", {}, option.title ?? option.name),
      ),
    );
    const plain = !classes.some(({ src }) => src);
    const many = options.length > MANY_CLASSES;
    const list = make("div", { class: "classes", "data-many": many, "data-plain": plain }, this.items);
    this.element = make(
      "fieldset",
      { class: "field class-field" },
      make("legend", {}, legend),
      many ? this.search(options) : null,
      list,
    );
  }

  picture({ src, sheet }) {
    if (sheet) {
      const some = sheet.filter((one) => one.src);
      if (!some.length) return null;
      const four = [0, 1, 2, 3].map((i) => some[Math.floor((i * some.length) / 4)]).filter(Boolean);
      return make(
        "span",
        { class: "class-any", "aria-hidden": "true" },
        four.length === 4 ? four.map((one) => make("img", { src: one.src, alt: "" })) : "∗",
      );
    }
    return src ? make("img", { src, alt: "" }) : null;
  }

  search(options) {
    const filter = (text) =>
      this.items.forEach(
        (item, i) => (item.hidden = !(options[i].title ?? options[i].name).toLowerCase().includes(text.toLowerCase())),
      );
    return make("input", {
      type: "search",
      class: "search",
      placeholder: `Search ${options.length - 1} classes`,
      "aria-label": "Search the classes",
      oninput: (event) => filter(event.target.value),
    });
  }

  picked(name) {
    this.value = name;
    this.changed(name);
  }

  set(name) {
    const radio = this.radios.find((one) => one.value.toLowerCase() === String(name).toLowerCase());
    if (!radio) return false;
    radio.checked = true;
    this.value = radio.value;
    return true;
  }
}

export class SeedField {
  // max: the last to begin with; images: of a run that begins there, each of which may be made alone.
  constructor({ max, images = 1, value = 0, id = "field-seed", changed = () => {} }) {
    Object.assign(this, { max, most: max + images - 1, changed });
    this.input = make("input", {
      type: "number",
      class: "number wide",
      id,
      name: "seed",
      min: 0,
      max: this.most,
      step: 1,
      inputmode: "numeric",
      oninput: () => this.typed(),
      onchange: () => this.set(this.value),
    });
    const roll = make(
      "button",
      {
        type: "button",
        class: "pill die",
        "aria-label": "Roll a seed",
        title: "Roll a seed",
        onclick: () => this.roll(),
      },
      icon("die"),
    );
    this.element = make(
      "div",
      { class: "field seed-field" },
      make("label", { for: id }, "Seed"),
      make("div", { class: "row" }, this.input, roll),
    );
    this.set(value);
  }

  roll() {
    this.set(Math.floor(Math.random() * (this.max + 1)));
    this.changed(this.value);
  }

  typed() {
    const value = Number(this.input.value);
    if (this.input.value === "" || !(value >= 0 && value <= this.most)) return;
    this.value = Math.floor(value);
    this.changed(this.value);
  }

  set(value) {
    if (typeof value !== "number" || Number.isNaN(value)) return;
    this.value = clamp(Math.floor(value), 0, this.most);
    this.input.value = this.value;
  }
}
