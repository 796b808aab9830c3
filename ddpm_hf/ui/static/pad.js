// A pad on a picture, with mouse, pen or finger: draw one's own, or mark the part that is to be made anew.

import { make } from "./dom.js";

const GRAYS = ["#000000", "#4d4d4d", "#808080", "#b3b3b3", "#ffffff"];
const COLOURS = ["#000000", "#ffffff", "#7f7f7f", "#d7301f", "#f2a900", "#f7e04b", "#3a9d4b", "#2b6cb0", "#7b3fa0", "#8b5a2b"];
const BRUSHES = [["Fine", 0.04], ["Medium", 0.09], ["Broad", 0.2]]; // shares of a side
const UNDONE = 20; // strokes that can be taken back

// It is read after every stroke.
const paint = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

export class Pad {
  // drawn(url): a stroke of the drawing has ended; marked(url or null): of the mask, null where nothing is marked.
  constructor({ drawn, marked }) {
    Object.assign(this, { drawn, marked, mode: null, brush: 1, past: [] });
    this.canvas = make("canvas", { class: "pad", hidden: true, "aria-label": "Your drawing", role: "img" });
    this.mask = make("canvas", { class: "pad mask", hidden: true, "aria-label": "What is made anew", role: "img" });
    for (const canvas of [this.canvas, this.mask]) {
      canvas.addEventListener("pointerdown", (event) => this.begin(event));
      canvas.addEventListener("pointermove", (event) => this.line && this.move(event));
      for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => this.end());
    }
    const mode = (name, words) =>
      make("button", { type: "button", class: "tool", "data-mode": name, "aria-pressed": "false", onclick: () => this.use(name) }, words);
    this.modes = [mode("draw", "Draw"), mode("mask", "Paint over a part")];
    this.swatches = make("div", { class: "swatches", role: "group", "aria-label": "Colour" });
    this.brushes = BRUSHES.map(([title], i) =>
      make("button", { type: "button", class: "tool", "aria-pressed": String(i === this.brush), onclick: () => this.pick(i) }, title),
    );
    this.undo = make("button", { type: "button", class: "tool", onclick: () => this.back() }, "Undo");
    this.tools = make(
      "div",
      { class: "pad-tools", hidden: true },
      this.swatches,
      make("div", { class: "pad-row", role: "group", "aria-label": "Brush" }, this.brushes),
      make(
        "div",
        { class: "pad-row" },
        this.undo,
        make("button", { type: "button", class: "tool", onclick: () => this.clear() }, "Clear"),
        make("button", { type: "button", class: "tool", onclick: () => this.use(null) }, "Done"),
      ),
    );
    this.element = make("div", { class: "pad-bar" }, make("div", { class: "pad-row" }, this.modes), this.tools);
  }

  // Of a model: width and height of its pictures, and whether they are gray.
  build({ image_size: [width, height], gray }) {
    for (const canvas of [this.canvas, this.mask]) Object.assign(canvas, { width, height });
    this.paper = gray ? "#000000" : "#ffffff";
    this.fill();
    const colours = gray ? GRAYS : COLOURS;
    this.colour = gray ? "#ffffff" : "#000000";
    this.swatches.replaceChildren(
      ...colours.map((colour) =>
        make("button", {
          type: "button",
          class: "swatch",
          style: `background: ${colour}`,
          title: colour,
          "aria-label": `Colour ${colour}`,
          "aria-pressed": String(colour === this.colour),
          onclick: () => this.dip(colour),
        }),
      ),
    );
    this.use(null);
    this.unmark();
  }

  fill() {
    const context = paint(this.canvas);
    context.fillStyle = this.paper;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  // image: the picture that is there, or null.
  use(mode, image = this.image?.()) {
    this.mode = this.mode === mode ? null : mode;
    this.past = [];
    this.canvas.hidden = this.mode !== "draw";
    this.mask.hidden = this.mode !== "mask" && !this.isMarked;
    this.mask.toggleAttribute("data-active", this.mode === "mask");
    this.tools.hidden = !this.mode;
    this.swatches.hidden = this.mode !== "draw";
    for (const button of this.modes) button.setAttribute("aria-pressed", String(button.dataset.mode === this.mode));
    if (this.mode === "draw" && image?.src) paint(this.canvas).drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
    this.changed?.(this.mode);
  }

  pick(brush) {
    this.brush = brush;
    this.brushes.forEach((button, i) => button.setAttribute("aria-pressed", String(i === brush)));
  }

  dip(colour) {
    this.colour = colour;
    for (const button of this.swatches.children) button.setAttribute("aria-pressed", String(button.title === colour));
  }

  // ---- strokes

  get active() {
    return this.mode === "mask" ? this.mask : this.canvas;
  }

  at({ clientX, clientY }) {
    const box = this.active.getBoundingClientRect();
    return [((clientX - box.left) / box.width) * this.active.width, ((clientY - box.top) / box.height) * this.active.height];
  }

  begin(event) {
    if (!this.mode || event.button > 0) return;
    event.preventDefault();
    this.active.setPointerCapture(event.pointerId);
    const context = paint(this.active);
    this.past = [...this.past.slice(1 - UNDONE), context.getImageData(0, 0, this.active.width, this.active.height)];
    Object.assign(context, {
      lineCap: "round",
      lineJoin: "round",
      lineWidth: Math.max(1, BRUSHES[this.brush][1] * this.active.width),
      strokeStyle: this.mode === "mask" ? "#ffffff" : this.colour,
    });
    this.line = this.at(event);
    this.move(event);
  }

  move(event) {
    const context = paint(this.active);
    const to = this.at(event);
    context.beginPath();
    context.moveTo(...this.line);
    context.lineTo(...to);
    context.stroke();
    this.line = to;
  }

  end() {
    if (!this.line) return;
    this.line = null;
    this.tell();
  }

  tell() {
    if (this.mode === "draw") this.drawn(this.canvas.toDataURL());
    else this.marked(this.isMarked ? this.maskUrl() : null);
  }

  back() {
    const before = this.past.pop();
    if (!before) return;
    paint(this.active).putImageData(before, 0, 0);
    this.tell();
  }

  clear() {
    if (this.mode === "draw") this.fill();
    else this.unmark();
    this.tell();
  }

  // ---- the mask

  get isMarked() {
    const { data } = paint(this.mask).getImageData(0, 0, this.mask.width, this.mask.height);
    return data.some((value, i) => i % 4 === 3 && value > 127);
  }

  unmark() {
    paint(this.mask).clearRect(0, 0, this.mask.width, this.mask.height);
    this.mask.hidden = this.mode !== "mask";
  }

  // White on black.
  maskUrl() {
    const flat = make("canvas", { width: this.mask.width, height: this.mask.height });
    const context = flat.getContext("2d");
    context.fillRect(0, 0, flat.width, flat.height);
    context.drawImage(this.mask, 0, 0);
    return flat.toDataURL();
  }

  // A mask from elsewhere, such as a link.
  async mark(url) {
    const image = new Image();
    image.src = url;
    await image.decode();
    const context = paint(this.mask);
    context.drawImage(image, 0, 0, this.mask.width, this.mask.height);
    const pixels = context.getImageData(0, 0, this.mask.width, this.mask.height);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i];
    context.putImageData(pixels, 0, 0);
    this.mask.hidden = false;
  }
}
