// Compare: two to four samplers from the same noise, in step, each in a lane with its own settings above it.

import { Choice } from "./choice.js";
import { icon, make, seconds, waitingText, wires } from "./dom.js";
import { SeedField } from "./fields.js";
import { Film } from "./film.js";
import { viewButtons } from "./stage.js";
import { drawNoise, drawTiles } from "./tiles.js";
import { Transport } from "./transport.js";

const LANES = [2, 4];
// few steps against more of the same sampler, which end nearer to all of them; and one that adds fresh noise
const FIRST_LANES = [
  ["ddim", 10],
  ["ddim", 50],
  ["dpm-sde", 20],
];

export class Compare {
  constructor(element, description) {
    Object.assign(this, { view: "x_t", state: "empty", run: null, stopped: false, shown: -1, lanes: [] });
    this.bar = make("form", { class: "card bar", "aria-label": "What to compare", novalidate: true });
    this.bar.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.bar.addEventListener("input", () => this.describe());
    this.views = viewButtons((view) => this.setView(view));
    this.progress = make("p", { class: "stage-progress" });
    this.lanesElement = make("div", { class: "lanes" });
    this.status = make("p", { class: "stage-status" });
    this.live = make("p", { class: "unseen", role: "status" });
    this.chart = make("div", { class: "distances" });
    this.root = make("section", {
      class: "stage compare",
      "data-state": "empty",
      "aria-label": "Samplers side by side",
    });
    this.transport = new Transport({
      paint: (at) => this.paint(at),
      words: (at) => this.words(at),
      changed: () => this.describe(),
    });
    this.root.append(
      make(
        "div",
        { class: "stage-top" },
        make("div", { class: "segments", role: "group", "aria-label": "What to show" }, this.views),
        this.progress,
      ),
      this.lanesElement,
      this.transport.element,
      make("div", { class: "stage-foot" }, this.status, this.live),
      this.chart,
    );
    element.replaceChildren(this.bar, this.root);
    new ResizeObserver(() => this.redraw()).observe(this.lanesElement);
    this.build(description);
    this.setView("x_t");
  }

  build(description) {
    const { limits, defaults, samplers, classes } = description;
    Object.assign(this, { description, run: null, state: "empty" });
    const number = (name, label, low, high, value, whole = true) =>
      make(
        "label",
        {},
        make("span", {}, label),
        make("input", { type: "number", class: "number", name, min: low, max: high, step: whole ? 1 : 0.1, value }),
      );
    const names = classes.length ? ["any", ...classes.map(({ name }) => name)] : [];
    const picker = make(
      "select",
      { class: "select", name: "class_name" },
      names.map((name) => make("option", { value: name }, name === "any" ? "Any" : name)),
    );
    this.seed = new SeedField({ max: limits.max_seed, id: "compare-seed", changed: () => this.describe() });
    this.go = make("button", { type: "submit", class: "primary" }, "Compare");
    this.bar.replaceChildren(
      ...(names.length ? [make("label", {}, make("span", {}, "Class"), picker)] : []),
      number("num_images", "Images", 1, limits.max_compared, Math.min(4, limits.max_compared)),
      ...(names.length
        ? [number("guidance_scale", "Guidance", 0, limits.max_guidance, defaults.guidance_scale, false)]
        : []),
      this.seed.element,
      make(
        "div",
        { class: "actions dock" },
        this.go,
        make("button", { type: "button", class: "pill stop", onclick: () => this.stop() }, "Stop"),
      ),
    );
    this.add = make(
      "button",
      { type: "button", class: "add-lane", onclick: () => this.addLane() },
      icon("plus"),
      "Add a sampler",
    );
    this.lanes = [];
    this.lanesElement.replaceChildren(this.add);
    for (const [sampler, steps] of FIRST_LANES) this.addLane(sampler, Math.min(steps, limits.max_steps));
    this.transport.reset(1);
    this.setState("empty");
    this.drawChart();
  }

  addLane(sampler = this.nextSampler(), steps = this.lanes.at(-1)?.steps.value ?? this.description.defaults.steps) {
    const { limits, samplers } = this.description;
    const lane = { film: null, made: null }; // made: what it was at the last run, until it is changed
    lane.sampler = new Choice({
      label: "Sampler",
      options: samplers,
      value: sampler,
      short: true,
      changed: () => this.laneEdited(lane),
    });
    lane.steps = make("input", {
      type: "number",
      class: "number",
      min: 1,
      max: limits.max_steps,
      step: 1,
      value: Number(steps),
      oninput: () => this.laneEdited(lane),
    });
    lane.remove = make(
      "button",
      {
        type: "button",
        class: "round small",
        "aria-label": "Remove this sampler",
        title: "Remove this sampler",
        onclick: () => this.removeLane(lane),
      },
      icon("close"),
    );
    lane.canvas = make("canvas", { role: "img", "aria-label": "No pictures yet" });
    lane.cost = make("p", { class: "lane-cost" });
    lane.element = make(
      "div",
      { class: "lane" },
      make("div", { class: "lane-top" }, lane.sampler.element, make("label", {}, lane.steps, "steps"), lane.remove),
      make("div", { class: "lane-screen" }, lane.canvas),
      lane.cost,
    );
    this.lanes.push(lane);
    this.lanesElement.insertBefore(lane.element, this.add);
    this.lanesChanged();
  }

  nextSampler() {
    const used = this.lanes.map((lane) => lane.sampler.value);
    return (this.description.samplers.find(({ value }) => !used.includes(value)) ?? this.description.samplers[0]).value;
  }

  removeLane(lane) {
    this.lanes = this.lanes.filter((other) => other !== lane);
    lane.element.remove();
    this.add.focus();
    this.lanesChanged();
  }

  // What a lane shows was made with other settings: it goes.
  laneEdited(lane) {
    Object.assign(lane, { film: null, made: null, sheet: null });
    lane.canvas.setAttribute("aria-label", "No pictures of these settings yet");
    this.redraw();
    this.describe();
    this.drawChart();
  }

  lanesChanged() {
    this.add.hidden = this.lanes.length >= LANES[1];
    this.allowChanges();
    this.lanesElement.style.setProperty("--lanes", this.lanes.length + (this.add.hidden ? 0 : 1));
    this.redraw();
    this.describe();
    this.drawChart();
  }

  // While the lanes are on their way, they stay as they are.
  allowChanges() {
    const fixed = ["waiting", "running"].includes(this.state);
    this.add.disabled = fixed;
    for (const lane of this.lanes) {
      lane.sampler.button.disabled = lane.steps.disabled = fixed;
      lane.remove.disabled = fixed || this.lanes.length <= LANES[0];
    }
  }

  // ---- asking

  read() {
    const values = Object.fromEntries(new FormData(this.bar));
    for (const name of ["num_images", "guidance_scale"]) if (name in values) values[name] = Number(values[name]);
    delete values.seed;
    const { model } = this.description;
    return {
      model,
      ...values,
      ...("guidance_scale" in values && { guidance_interval: this.description.defaults.guidance_interval }),
      seed: this.seed.value,
      lanes: this.lanes.map(({ sampler, steps }) => ({ sampler: sampler.value, steps: Number(steps.value) })),
    };
  }

  // What all lanes have in common.
  shared() {
    const { lanes, ...others } = this.read();
    return others;
  }

  // While the distances are measured the lanes are there, and a press starts anew.
  submit() {
    if (this.state === "measuring") this.stop();
    if (this.busy) return;
    Object.assign(this, { stopped: false, queue: "", left: this.run?.run });
    this.before = this.state;
    this.setState("waiting");
    wires.compare.send(this.read());
  }

  stop() {
    this.stopped = true;
    wires.compare.stop();
    this.ended("stopped");
  }

  ended(state) {
    if (this.state === "waiting") this.setState(this.before);
    else if (this.busy) this.setState(this.state === "measuring" ? "done" : state);
  }

  get busy() {
    return ["waiting", "running", "measuring"].includes(this.state);
  }

  // ---- what arrives

  receive(value) {
    if (!value || !value.run || value.run === this.left) return; // left: what is on its way of the run before
    if (value.state === "waiting") {
      this.queue = value.queue;
      if (!this.stopped) this.setState("waiting");
      return;
    }
    if (value.run !== this.run?.run) this.begin(value);
    this.run = value;
    value.lanes.forEach((made, i) => {
      const lane = this.ran[i];
      if (!lane.film) return; // changed since
      const first = lane.film.frames[0];
      lane.film.add(made.frames);
      lane.made = made;
      if (first && first !== lane.film.frames[0] && this.transport.shown === 0) this.paintLane(lane, 0, value);
    });
    const going = ["running", "measuring"].includes(value.state);
    this.setState(this.stopped && going ? "stopped" : value.state);
    const behind = this.lanes
      .filter(({ film }) => film)
      .map(({ film }) => Math.floor((film.newest / film.total) * this.transport.total));
    if (behind.length) this.transport.arrived(Math.min(...behind), this.state === "running");
    this.drawChart();
  }

  begin(value) {
    this.ran = this.lanes.slice(0, value.lanes.length);
    this.ran.forEach((lane, i) => (lane.film = new Film(value.lanes[i].total)));
    this.asked = JSON.stringify(this.shared());
    this.transport.reset(Math.max(...value.lanes.map(({ total }) => total)));
  }

  setState(state) {
    const changed = this.state !== state;
    this.state = this.root.dataset.state = state;
    this.bar.toggleAttribute("data-busy", this.busy);
    this.bar.toggleAttribute("data-again", state === "measuring");
    this.allowChanges();
    this.describe();
    if (changed) {
      this.live.textContent = this.statusText();
      this.drawChart();
    }
  }

  // ---- drawing

  async paint(at) {
    const run = this.run;
    const drawn = await Promise.all(this.lanes.map((lane) => this.paintLane(lane, at, run)));
    if (run?.run !== this.run?.run) return false;
    this.shown = at;
    return drawn.some(Boolean);
  }

  async paintLane(lane, at, run) {
    const { film } = lane;
    if (!film) return false;
    const index = Math.min(film.newest, Math.round((at / this.transport.total) * film.total));
    const frame = film.nearest(index);
    const sheet = frame && (await film.picture(frame));
    if (!sheet || film !== lane.film) return false; // changed, or run anew, in the meantime
    lane.sheet = sheet;
    drawTiles(
      lane.canvas,
      sheet,
      run.tile,
      this.view,
      run.seeds.map((_, i) => i),
    );
    lane.canvas.setAttribute(
      "aria-label",
      `${run.seeds.length} images by ${lane.made.title}, step ${index} of ${film.total}`,
    );
    return true;
  }

  redraw() {
    for (const lane of this.lanes) {
      if (lane.film && lane.sheet)
        drawTiles(
          lane.canvas,
          lane.sheet,
          this.run.tile,
          this.view,
          this.run.seeds.map((_, i) => i),
        );
      else drawNoise(lane.canvas, 4);
    }
  }

  setView(view) {
    this.view = this.root.dataset.view = view;
    for (const button of this.views) button.setAttribute("aria-pressed", button.dataset.view === view);
    this.redraw();
  }

  // How far each lane's images end from those of all steps; before it is known, the same lines without numbers.
  drawChart() {
    const lanes = this.lanes.map(({ sampler, steps, made }) => ({
      title: sampler.title.textContent,
      steps: steps.value,
      fresh: this.description.samplers.find(({ value }) => value === sampler.value)?.fresh_noise,
      distance: made?.distance ?? null,
    }));
    const most = Math.max(...lanes.map(({ distance }) => distance ?? 0), 1e-6);
    const line = ({ title, steps, fresh, distance }) =>
      make(
        "li",
        {},
        make("span", {}, `${title} · ${steps}`),
        fresh ? make("span", { class: "fresh" }, "adds noise of its own") : bar((distance ?? 0) / most),
        make("b", {}, distance === null ? "–" : distance.toFixed(3)),
      );
    this.chart.replaceChildren(
      make("h3", {}, `Distance to the result of all ${this.description.limits.max_steps} steps`),
      make("p", {}, this.measureText()),
      make("ul", {}, lanes.map(line)),
    );
  }

  measureText() {
    const { reference } = this.run ?? {};
    const left = reference?.left ? `about ${seconds(reference.left)}` : "";
    if (this.state === "measuring" && reference) {
      const words = `Measuring: DDIM is at step ${reference.step} of ${reference.total} from the same noise`;
      return left ? `${words}, ${left} left.` : `${words}.`;
    }
    if (this.state === "running" && left) return `Comes after the lanes: all steps of DDIM take ${left} here.`;
    const shown = this.run && this.lanes.some(({ made }) => made);
    if (shown && this.state === "done" && reference?.note) return reference.note;
    if (shown && ["stopped", "failed", "done"].includes(this.state))
      return `${this.state === "failed" ? "Failed" : "Stopped"} before the distances were measured.`;
    return "Root mean square over the pixels, from 0 to 1, to what DDIM makes with every step from the same noise.";
  }

  // ---- words

  words(at) {
    return at === 0 ? "noise" : `${Math.round((100 * at) / this.transport.total)} % of the way`;
  }

  statusText() {
    const { state, run } = this;
    if (run && !this.busy && this.asked !== JSON.stringify(this.shared()))
      return "Made with other settings: press Compare for those above.";
    if (run && !this.busy && this.lanes.some(({ film }) => !film)) return "Some lanes are new: press Compare.";
    if (state === "waiting") return waitingText(this.queue);
    if (state === "running") return "Denoising";
    if (state === "measuring") return "Done; measuring the distances";
    if (state === "done") return run.cached ? "Done: from memory, as made before" : `Done in ${seconds(run.seconds)}`;
    if (state === "stopped") return "Stopped";
    return state === "failed" ? "Failed" : "The same noise for all: press Compare.";
  }

  describe() {
    this.status.textContent = this.statusText();
    const at = Math.max(0, this.transport.shown);
    this.progress.textContent = this.words(this.run ? at : 0);
    this.root.dataset.shown = this.transport.shown;
    for (const lane of this.lanes) {
      const { made } = lane;
      lane.cost.textContent = made
        ? `${made.calls} ${made.calls === 1 ? "call" : "calls"} · ${seconds(made.seconds)}`
        : "";
      lane.element.dataset.frames = lane.film?.count ?? 0;
    }
  }
}

const bar = (share) =>
  make(
    "span",
    { class: "meter", "aria-hidden": "true" },
    make("span", { style: `width: ${(100 * share).toFixed(2)}%` }),
  );
