// The stage: a canvas that shows the frames of a run while they arrive: see stage_values() of runs.py.

import { hear, make, seconds, timeText, waitingText } from "./dom.js";
import { Film } from "./film.js";
import { Lens } from "./lens.js";
import { backdrop, drawBackdrop, drawTiles, largest, place } from "./tiles.js";
import { Transport } from "./transport.js";

const QUIET_SECONDS = 10; // without news, after which the time left would be a lie

export class Stage {
  // empty: what to say before the first run, [title, line]; plain: over nothing. isOld(run): whether a press on the
  // button of that name would make another run. more(run, index): "make more like this"; picked(stage): its state changed; painted(sheet, index): a frame was
  // drawn.
  constructor(element, { empty, label, plain, isOld, button, more, picked, painted }) {
    Object.assign(this, {
      view: "both",
      run: null,
      film: new Film(1),
      lastNews: 0,
      state: "empty",
      before: "empty",
      pointedAt: -1,
      layout: null,
      plain,
      isOld,
      button,
      more,
      picked,
      painted,
    });
    const [top, screen, foot] = [this.top(), this.screen(empty), this.foot()];
    this.root = make("section", { class: "stage", "data-state": "empty", "aria-label": label });
    this.transport = new Transport({
      paint: (index) => this.paint(index),
      words: (index) => this.stepText(index),
      changed: () => this.describe(),
    });
    this.root.append(top, screen, this.transport.element, foot);
    element.replaceChildren(this.root);
    new ResizeObserver(() => this.redraw()).observe(this.canvas);
    hear("settings", () => this.describe());
    hear("backdrop", () => {
      this.redraw();
      this.describe();
    });
    this.setView("both");
    setInterval(() => this.running && this.describe(), 1000); // a connection that is lost says nothing
  }

  // ---- the parts

  top() {
    this.views = viewButtons((view) => this.setView(view), true);
    this.progress = make("p", { class: "stage-progress" });
    return make(
      "div",
      { class: "stage-top" },
      make("div", { class: "segments", role: "group", "aria-label": "What to show" }, this.views),
      this.progress,
    );
  }

  screen([title, line]) {
    this.canvas = make("canvas", { role: "img", "aria-label": "No pictures yet" });
    this.guess = make("canvas", { class: "guess", role: "img", "aria-label": "Predicted images", onclick: (event) => this.enlarge(event) });
    this.cells = make("div", { class: "cells", role: "group", "aria-label": "Images" });
    this.cells.addEventListener("keydown", (event) => this.moveAmongCells(event));
    this.empty = make("div", { class: "stage-empty" }, make("strong", {}, title), make("span", {}, line));
    this.lens = new Lens({
      more: (index) => this.more(this.run, index),
      step: (index) => this.transport.show(index),
      closed: (index) => {
        this.cells.inert = false;
        this.redraw();
        this.cells.children[index]?.focus();
      },
    });
    this.lens.changed = () => {
      this.cells.inert = true; // behind the lens
      this.redraw();
    };
    const sides = ["the noisy images", "the network's guess"].map((words) => make("span", { class: "side", "aria-hidden": "true" }, words));
    return make("div", { class: "stage-screen" }, sides, this.canvas, this.guess, this.cells, this.empty, this.lens.element);
  }

  foot() {
    this.status = make("p", { class: "stage-status" });
    this.live = make("p", { class: "unseen", role: "status" });
    this.actions = make("div", { class: "stage-actions" });
    return make("div", { class: "stage-foot" }, this.status, this.actions, this.live);
  }

  // ---- what arrives

  get running() {
    return this.state === "running";
  }

  get busy() {
    return ["waiting", "running"].includes(this.state);
  }

  receive(value) {
    if (!value || !value.run) return;
    if (value.state === "waiting") return this.wait(value);
    if (!this.run || value.run !== this.run.run) this.begin(value);
    const { frames, ...head } = value;
    // what was on its way when Stop was pressed does not start the run again
    if (this.stopped && head.state === "running") head.state = "stopped";
    this.run = head;
    this.lastNews = performance.now();
    const first = this.film.frames[0];
    this.film.add(frames);
    this.setState(head.state);
    if (head.cached && head.state === "done") this.transport.playOnce(this.film.newest);
    else this.transport.arrived(this.film.newest, this.running);
    if (first && first !== this.film.frames[0] && this.transport.shown === 0) this.paint(0);
  }

  begin(value) {
    this.film = new Film(value.total);
    this.run = value;
    this.lens.use(value, this.film, (index) => this.imageText(index));
    if (this.lens.isOpen && this.lens.index >= value.seeds.length) this.lens.close();
    if (this.lens.isOpen) this.lens.open(this.lens.index);
    this.transport.reset(value.total);
    this.makeCells();
    this.empty.hidden = true;
  }

  wait(value) {
    if (this.stopped) return;
    this.queue = value.queue;
    this.setState("waiting");
  }

  // What the page does without the server: a run is asked for, stopped, or has failed.
  submitted() {
    this.stopped = false;
    this.queue = null;
    this.before = this.state;
    this.setState("waiting");
  }

  ended(state) {
    if (state === "stopped") this.stopped = true;
    if (this.state === "waiting") this.setState(this.before);
    else if (this.running) this.setState(state);
    this.transport.arrived(this.film.newest, this.running);
  }

  setState(state) {
    const changed = this.state !== state;
    this.state = state;
    this.root.dataset.state = state;
    this.describe();
    if (changed || state === "done") this.live.textContent = this.announcement();
    this.picked(this);
  }

  // ---- drawing

  async paint(index) {
    const { film } = this;
    const frame = film.nearest(index);
    const sheet = frame && (await film.picture(frame));
    if (!sheet || film !== this.film) return false;
    this.drawn = index;
    this.draw(sheet);
    this.painted(sheet, index);
    return true;
  }

  draw(sheet) {
    this.sheet = sheet;
    if (this.lens.isOpen) this.lens.draw(sheet, this.view, this.drawn);
    const all = this.run.seeds.map((_, i) => i);
    // side by side until both are the same
    const both = this.view === "both" && this.film.nearest(this.drawn)?.t !== null;
    if (both) this.root.dataset.both = this.split();
    else delete this.root.dataset.both;
    const layout = drawTiles(this.canvas, sheet, this.run.tile, this.view, all);
    if (both) this.guessed = drawTiles(this.guess, sheet, this.run.tile, "x_0", all);
    this.putCells(layout);
  }

  // Beside or below each other: how the images are larger.
  split() {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = this.canvas.parentElement.getBoundingClientRect();
    const scale = (...room) => largest(room.map((side) => side * ratio), ratio, this.run.seeds.length, this.run.tile).scale;
    return scale(width, height / 2 - 28) > scale(width / 2 - 8, height - 24) ? "rows" : "columns";
  }

  // The predicted image under the pointer.
  enlarge({ offsetX, offsetY }) {
    const { ratio, width, height } = this.guessed;
    const at = [offsetX * ratio, offsetY * ratio];
    const index = this.run.seeds.findIndex((_, i) => {
      const [left, top] = place(this.guessed, i);
      return at[0] >= left && at[0] < left + width && at[1] >= top && at[1] < top + height;
    });
    if (index >= 0) this.lens.open(index);
  }

  redraw() {
    if (this.run && this.sheet) this.draw(this.sheet);
    else if (!this.run && !this.plain) drawBackdrop(this.canvas);
  }

  // As before the first run.
  clear() {
    Object.assign(this, { run: null, sheet: null, film: new Film(1), layout: null });
    delete this.root.dataset.both;
    if (this.lens.isOpen) this.lens.close();
    this.cells.replaceChildren();
    this.canvas.width = this.canvas.height = 1;
    this.empty.hidden = false;
    this.transport.reset(1);
    this.setState("empty");
    this.redraw();
  }

  setView(view) {
    this.view = this.root.dataset.view = view;
    for (const button of this.views) button.setAttribute("aria-pressed", button.dataset.view === view);
    this.redraw();
    this.describe();
  }

  // ---- the images, one button each over the canvas: to point at, to reach by keyboard, to hear named

  makeCells() {
    const cell = (i) => {
      const point = (on) => () => {
        this.pointedAt = on ? i : -1;
        this.describe();
      };
      return make("button", {
        type: "button",
        tabindex: i ? -1 : 0,
        "aria-label": `Enlarge ${this.imageText(i)}`,
        onclick: () => this.lens.open(i),
        onpointerenter: point(true),
        onpointerleave: point(false),
        onfocus: point(true),
        onblur: point(false),
      });
    };
    const focused = this.cells.contains(document.activeElement);
    this.cells.replaceChildren(...this.run.seeds.map((_, i) => cell(i)));
    this.layout = null;
    if (focused) this.cells.firstChild.focus({ preventScroll: true });
  }

  putCells(layout) {
    const key = JSON.stringify([layout, this.canvas.offsetTop]);
    if (this.layout && key === this.placed) return;
    [this.layout, this.placed] = [layout, key];
    [...this.cells.children].forEach((cell, i) => {
      const [left, top] = place(layout, i).map((pixels) => pixels / layout.ratio);
      const [width, height] = [layout.width, layout.height].map((pixels) => pixels / layout.ratio);
      Object.assign(cell.style, { left: `${left}px`, top: `${top + this.canvas.offsetTop}px`, width: `${width}px`, height: `${height}px` });
    });
  }

  moveAmongCells(event) {
    const cells = [...this.cells.children];
    const at = cells.indexOf(document.activeElement);
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.layout?.columns, ArrowUp: -this.layout?.columns }[
      event.key
    ];
    const to = { Home: 0, End: cells.length - 1 }[event.key] ?? at + by;
    if (at < 0 || !cells[to]) return;
    event.preventDefault();
    cells[at].tabIndex = -1;
    cells[to].tabIndex = 0;
    cells[to].focus();
  }

  // ---- words

  imageText(i) {
    const of = this.run.seeds.length > 1 ? `image ${i + 1}` : "image";
    return [of, this.run.names[i], `seed ${this.run.seeds[i]}`].filter(Boolean).join(" · ");
  }

  stepText(index) {
    if (!this.run) return "";
    // two network calls a step, where the sampler makes so many
    const word = this.run.total === this.run.steps ? "step" : "call";
    return index === 0 ? "noise" : `${word} ${index} of ${this.run.total}`;
  }

  announcement() {
    if (this.state === "waiting") return waitingText(this.queue);
    if (this.state === "running") return "Denoising";
    if (this.state === "failed") return "Failed";
    return this.run ? this.timeText() : "";
  }

  timeText() {
    const spent = seconds(this.run.seconds);
    if (this.state === "done") return this.run.cached ? "Done: from memory, as made before" : `Done in ${spent}`;
    if (this.state === "stopped") return `Stopped after ${spent}`;
    if (this.state === "failed") return `Failed after ${spent}`;
    const quiet = (performance.now() - this.lastNews) / 1000;
    if (quiet > QUIET_SECONDS) return `No news for ${seconds(quiet)}`;
    // told from the steps after the first, which is slower than the rest
    const { newest, frames } = this.film;
    if (!frames[1] || !frames[newest] || newest < 3) return "Denoising";
    const each = (frames[newest].at - frames[1].at) / (newest - 1);
    return `${seconds(each * (this.film.total - newest))} left`;
  }

  describe() {
    const { state, run, film } = this;
    const index = Math.max(0, this.transport.shown);
    const t = film.nearest(index)?.t;
    if (run && this.pointedAt >= 0 && run.seeds[this.pointedAt] !== undefined)
      this.progress.textContent = this.imageText(this.pointedAt);
    else if (run) this.progress.textContent = this.stepText(index) + (t === undefined ? "" : ` · ${timeText(t)}`);
    else if (this.plain) this.progress.textContent = "";
    else this.progress.textContent = backdrop ? "pictures of the data set, noised" : "noise";
    if (state === "waiting") this.status.textContent = waitingText(this.queue);
    else this.status.textContent = run ? this.timeText() : "";
    if (run && !this.busy && this.isOld(run)) this.status.textContent = `Made with other settings: press ${this.button} for the new ones.`;
    this.root.dataset.shown = this.transport.shown;
    this.root.dataset.frames = film.count;
    if (run) {
      const what = this.view === "x_0" ? "predicted images" : "noisy images";
      this.canvas.setAttribute("aria-label", `${run.seeds.length} ${what}, ${this.stepText(index)}`);
    }
  }
}

// The switch between what is on the canvas and what the network makes of it.
export function viewButtons(chosen, both = false) {
  const view = (name, words, title) =>
    make(
      "button",
      { type: "button", "data-view": name, title, onclick: () => chosen(name) },
      `${words} `,
      make("i", {}, "x", make("sub", {}, name.slice(2))),
    );
  const sides = make(
    "button",
    { type: "button", "data-view": "both", title: "The noisy image, and what the network makes of it", onclick: () => chosen("both") },
    "Both",
  );
  return [
    ...(both ? [sides] : []),
    view("x_t", "Noisy", "The noisy image at this step"),
    view("x_0", "Predicted", "The finished image as the network predicts it at this step"),
  ];
}
