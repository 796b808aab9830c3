// One image of the stage, large, above its own strip over the steps.

import { clamp, icon, make, timeText } from "./dom.js";
import { drawImage, drawTiles } from "./tiles.js";

const STRIP = 8; // pictures in the strip
const SWIPE = 40; // pixels

export class Lens {
  // more(index): "make more like this"; step(index): show that step; closed(index): the lens was shut.
  constructor({ more, step, closed }) {
    Object.assign(this, { index: null, closed });
    this.title = make("p", { class: "lens-title" });
    this.canvas = make("canvas", { role: "img" });
    this.strip = make("div", { class: "lens-strip", role: "group", "aria-label": "This image over the steps" });
    for (let i = 0; i < STRIP; i++) {
      const button = make(
        "button",
        { type: "button", onclick: () => step(this.steps[i]) },
        make("canvas", { width: 1, height: 1 }),
        make("span"),
      );
      this.strip.append(button);
    }
    const turn = (by, label, name) =>
      make(
        "button",
        {
          type: "button",
          class: "round small",
          "aria-label": label,
          title: label,
          onclick: () => this.open(this.index + by),
        },
        icon(name),
      );
    this.before = turn(-1, "Previous image", "left");
    this.after = turn(1, "Next image", "right");
    this.shut = make(
      "button",
      {
        type: "button",
        class: "round small",
        "aria-label": "Back to all images",
        title: "Back to all images",
        onclick: () => this.close(),
      },
      icon("close"),
    );
    this.element = make(
      "div",
      { class: "lens", role: "dialog", "aria-label": "One image, enlarged", hidden: true },
      make("div", { class: "lens-top" }, this.title, this.before, this.after, this.shut),
      make("div", { class: "lens-picture" }, this.canvas),
      this.strip,
      make("button", { type: "button", class: "pill", onclick: () => more(this.index) }, "Make more like this"),
    );
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.steps = [];
    // also while the focus is elsewhere, such as on the player, or when something beside the stage is pressed
    window.addEventListener("keydown", (event) => event.key === "Escape" && this.isOpen && this.close());
    window.addEventListener("pointerdown", (event) => {
      const stage = this.element.closest(".stage");
      if (this.isOpen && !stage.contains(event.target) && !event.target.closest(".notice")) this.close();
    });
    window.addEventListener("popstate", () => this.isOpen && this.close());
    this.swipeable();
    new ResizeObserver(() => this.isOpen && this.changed()).observe(this.canvas);
  }

  key(event) {
    if (event.key === "Tab" && getComputedStyle(this.element).position === "fixed") return this.stayWithin(event);
    const turn = { ArrowLeft: this.before, ArrowRight: this.after, Escape: this.shut }[event.key];
    if (!turn || turn.disabled) return;
    event.preventDefault();
    return turn.click();
  }

  // A finger that moves sideways over the picture turns to the next or the one before.
  swipeable() {
    let start = null;
    this.canvas.addEventListener("pointerdown", (event) => (start = event.clientX));
    this.canvas.addEventListener("pointerup", (event) => {
      const moved = start === null ? 0 : event.clientX - start;
      start = null;
      if (Math.abs(moved) < SWIPE) return;
      const turn = moved < 0 ? this.after : this.before;
      if (!turn.disabled) turn.click();
    });
  }

  // Where it covers the page, the focus must not leave it for what cannot be seen.
  stayWithin(event) {
    const buttons = [...this.element.querySelectorAll("button:enabled")].filter((button) => button.offsetParent);
    const [from, to] = event.shiftKey ? [buttons[0], buttons.at(-1)] : [buttons.at(-1), buttons[0]];
    if (document.activeElement !== from) return;
    event.preventDefault();
    to.focus();
  }

  get isOpen() {
    return this.index !== null;
  }

  // The run whose images it shows: its value, its frames and the words on an image.
  use(run, film, nameOf) {
    Object.assign(this, { run, film, nameOf, drawn: [] });
    this.steps = Array.from({ length: STRIP }, (_, i) => Math.round((i * film.total) / (STRIP - 1)));
    [...this.strip.children].forEach((button, i) => {
      button.hidden = i > 0 && this.steps[i] === this.steps[i - 1];
      button.disabled = true;
      [button.firstChild.width, button.firstChild.height] = run.tile;
    });
  }

  open(index) {
    const from = this.index;
    this.index = clamp(index, 0, this.run.seeds.length - 1);
    this.element.hidden = false;
    this.drawn = [];
    this.title.textContent = this.nameOf(this.index);
    this.before.disabled = this.index === 0;
    this.after.disabled = this.index === this.run.seeds.length - 1;
    if (from === null) {
      this.shut.focus();
      history.pushState({ lens: true }, ""); // so that Back closes it
    }
    this.changed();
  }

  close() {
    const index = this.index;
    this.index = null;
    this.element.hidden = true;
    if (history.state?.lens) history.back();
    this.closed(index);
  }

  // Draws the image as it is on a frame.
  draw(sheet, view, shown) {
    drawTiles(this.canvas, sheet, this.run.tile, view, [this.index]);
    this.canvas.setAttribute("aria-label", `${this.nameOf(this.index)}, step ${shown}`);
    this.drawStrip(view, shown);
  }

  // Draws what of the strip has arrived and is not drawn yet.
  async drawStrip(view, shown) {
    const index = this.index;
    const buttons = [...this.strip.children];
    const now = this.steps.reduce(
      (best, step, i) => (Math.abs(step - shown) < Math.abs(this.steps[best] - shown) ? i : best),
      0,
    );
    for (const [i, button] of buttons.entries()) {
      const frame = this.film.frames[this.steps[i]];
      button.disabled = !frame;
      button.setAttribute("aria-current", i === now);
      const key = `${view} ${index} ${this.run.run}`;
      const drawn = this.drawn[i];
      if (!frame || (drawn?.key === key && drawn.frame === frame)) continue;
      const sheet = await this.film.picture(frame);
      if (!sheet || this.index !== index) return;
      this.drawn[i] = { key, frame };
      drawImage(button.firstChild, sheet, this.run.tile, view, index);
      button.lastChild.textContent = frame.t === null ? "end" : `t ${Math.round(frame.t)}`;
      button.setAttribute("aria-label", `Step ${this.steps[i]}, ${timeText(frame.t)}`);
    }
  }

  changed() {} // set by the stage: draw the current frame again
}
