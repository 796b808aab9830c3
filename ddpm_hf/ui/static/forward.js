// Forward: a picture disappears in noise as t grows, and the model makes its way back from there.

import { ScheduleChart } from "./charts.js";
import { Choice } from "./choice.js";
import { bringIntoView, clamp, make, page, seconds, tell, waitingText, wires } from "./dom.js";
import { SeedField } from "./fields.js";
import { Film } from "./film.js";
import { dataUrl, dropZone, holdsSettings, smallPicture } from "./intake.js";
import { drawImage } from "./tiles.js";
import { Transport } from "./transport.js";
import { ask, askLatest } from "./wire.js";

const SHARES = [25, 50, 75, 100]; // % of the timesteps, as the original shows them

export class Forward {
  constructor(settings, screen, description) {
    this.settings = settings;
    this.ask = askLatest(
      "noise",
      (answer, values) => this.answered(answer, values),
      (error) => this.complain(error),
    );
    this.makeScreen(screen);
    this.build(description);
  }

  // ---- the parts

  makeScreen(element) {
    const figure = (letter, words) => {
      const image = make("img", { alt: words });
      const caption = make("figcaption", {}, make("i", {}, "x", make("sub", {}, letter)), ` ${words}`);
      return { image, caption, element: make("figure", {}, make("div", { class: "frame" }, image), caption) };
    };
    this.original = figure("0", "the picture");
    this.original.image.before(make("p", { class: "frame-hint bare" }, "Your picture goes here."));
    this.noised = figure("t", "noised");
    this.back = {
      canvas: make("canvas", { role: "img", "aria-label": "Nothing denoised yet", width: 1, height: 1 }),
      caption: make("figcaption", {}, "and back"),
    };
    const back = make(
      "figure",
      {},
      make(
        "div",
        { class: "frame" },
        this.back.canvas,
        (this.hint = make("p", { class: "frame-hint" }, "Press “Denoise from here”.")),
      ),
      this.back.caption,
    );
    this.strip = SHARES.map((share) =>
      make(
        "button",
        { type: "button", onclick: () => this.setT(Math.round((share / 100) * this.timesteps) - 1) },
        make("img", { alt: "" }),
        make("span", {}, `${share} %`),
      ),
    );
    this.status = make("p", { class: "stage-status", role: "status" });
    this.transport = new Transport({
      paint: (at) => this.paint(at),
      words: (at) => (at ? `${this.stepWord()} ${at} of ${this.film?.total}` : "the noised picture"),
      changed: () => this.describe(),
    });
    this.root = make(
      "section",
      { class: "stage forward", "aria-label": "The picture, noised and denoised", "data-state": "empty" },
      make("div", { class: "triptych" }, this.original.element, this.noised.element, back),
      this.transport.element,
      make("div", { class: "stage-foot" }, this.status),
      make("div", { class: "quarters", role: "group", "aria-label": "The picture at four timesteps" }, this.strip),
    );
    element.replaceChildren(this.root);
  }

  build(description) {
    const { classes, examples, limits, samplers, defaults, schedule } = description;
    const names = classes.map(({ name }) => name);
    Object.assign(this, {
      description,
      timesteps: limits.max_steps,
      schedule,
      // about half picture, half noise
      t: Math.max(0, schedule.alpha_bar.findIndex((share) => share < 0.5) - 1),
      picture: examples.length ? { example: 0 } : null,
    });
    this.examples = examples.map(({ name, src }, i) => {
      const title = name ?? `example ${i + 1}`;
      return make(
        "label",
        { class: "class", title },
        make("input", {
          type: "radio",
          name: "example",
          value: i,
          checked: i === 0,
          onchange: () => this.pickExample(i),
        }),
        make("img", { src, alt: title }),
      );
    });
    this.made = 0;
    this.maker = make(
      "button",
      { type: "button", class: "pill maker", onclick: () => this.takeMade() },
      "Let the model make one",
    );
    const drop = dropZone({
      label: "Drop a picture here",
      hint: "or press to choose one",
      given: (file) => this.take(file),
    });
    this.slider = make("input", {
      type: "range",
      class: "range",
      id: "forward-t",
      min: 0,
      max: this.timesteps - 1,
      step: 1,
      value: this.t,
      oninput: () => this.setT(Number(this.slider.value)),
    });
    this.number = make("output", { for: "forward-t", class: "big" });
    this.chart = new ScheduleChart({ moved: (t) => this.setT(t) });
    this.chart.draw(schedule.alpha_bar);
    this.facts = make("dl", { class: "facts" });
    this.sampler = new Choice({ label: "Sampler", options: samplers, value: defaults.sampler, short: true });
    const number = (value, low, high, step) =>
      make("input", { type: "number", class: "number", min: low, max: high, step, value });
    this.steps = number(Math.min(50, limits.max_steps), 1, limits.max_steps, 1);
    this.steps.addEventListener("input", () => this.tellSteps());
    this.stepsLine = make("p", { class: "line" });
    this.guidance = names.length ? number(defaults.guidance_scale, 0, limits.max_guidance, 0.1) : null;
    this.seed = new SeedField({ max: limits.max_seed, id: "forward-seed", changed: () => this.refresh() });
    this.class = names.length
      ? make(
          "select",
          { class: "select" },
          make("option", { value: "" }, "None: unguided"),
          names.map((name) => make("option", { value: name }, name)),
        )
      : null;
    if (this.class && examples[0]?.name) this.class.value = examples[0].name;
    this.settings.replaceChildren(
      make(
        "form",
        {
          class: "form card",
          "aria-label": "Forward process",
          onsubmit: (event) => {
            event.preventDefault();
            this.submit();
          },
        },
        make(
          "fieldset",
          { class: "field class-field" },
          make("legend", {}, "A picture"),
          this.examples.length ? make("div", { class: "classes examples" }, this.examples) : null,
          drop,
          examples.length ? null : this.maker,
        ),
        make(
          "div",
          { class: "dock" },
          make(
            "div",
            { class: "field" },
            make("label", { for: "forward-t" }, "Timestep ", make("i", {}, "t")),
            this.number,
            this.slider,
          ),
          make(
            "div",
            { class: "actions" },
            make("button", { type: "submit", class: "primary" }, "Denoise from here"),
            make("button", { type: "button", class: "pill stop", onclick: () => this.stop() }, "Stop"),
          ),
        ),
        this.chart.element,
        this.facts,
        this.seed.element,
        this.wayBack(),
      ),
    );
    Object.assign(this, { film: null, run: null });
    this.root.dataset.state = "empty";
    if (!this.picture) this.clear();
    this.complaint = this.picture
      ? ""
      : "This model brings no examples: drop in a picture of your own, or let the model make one.";
    this.transport.reset(1);
    this.hint.hidden = false;
    this.noised.caption.lastChild.textContent = " noised";
    this.back.caption.textContent = "and back";
    [this.back.canvas.width, this.back.canvas.height] = [1, 1];
    this.setT(this.t);
  }

  // How to get back: class, sampler, steps and guidance, each with its name above it.
  wayBack() {
    const named = (name, control, ...classes) =>
      make("label", { class: ["way", ...classes].join(" ") }, make("span", {}, name), control);
    return make(
      "fieldset",
      { class: "field way-back" },
      make("legend", {}, "The way back"),
      this.class && named("Class", this.class, "wide"),
      make("div", { class: "way wide" }, make("span", { "aria-hidden": "true" }, "Sampler"), this.sampler.element),
      named("Steps (whole way)", this.steps),
      this.guidance && named("Guidance", this.guidance),
      this.stepsLine,
    );
  }

  // How many of the steps fall on the way from t down, as the server counts them.
  get stepsBack() {
    const share = (this.t + 1) / this.timesteps;
    return Math.min(this.t + 1, Math.max(1, Math.round(Number(this.steps.value) * share)));
  }

  tellSteps() {
    const steps = this.stepsBack;
    this.stepsLine.textContent = `From t = ${this.t} down, ${steps === 1 ? "one of them is" : `${steps} of them are`} left.`;
  }

  // ---- the picture and t

  pickExample(i) {
    this.picture = { example: i };
    const { name } = this.description.examples[i];
    if (this.class && name) this.class.value = name;
    this.refresh();
  }

  // A picture; one that was made here may also give its settings back.
  async take(file) {
    if (await holdsSettings(file)) this.offerSettings(file);
    try {
      this.picture = { image: await smallPicture(file) };
    } catch (error) {
      return this.complain(error);
    }
    for (const example of this.examples) example.firstChild.checked = false;
    if (this.class) this.class.value = ""; // nobody has said of which class it is
    this.complaint = "";
    this.describe();
    return this.refresh();
  }

  // Until there is a picture; those of another model go.
  clear() {
    const images = [this.original.image, this.noised.image, ...this.strip.map((button) => button.firstChild)];
    for (const image of images) image.removeAttribute("src");
    delete this.root.dataset.t;
    this.root.toggleAttribute("data-bare", true);
  }

  // Where the model brings no examples: a picture of its own, as the settings of Generate make it from this seed.
  async takeMade() {
    const say = (words, busy) => {
      this.maker.textContent = words;
      this.maker.disabled = busy;
    };
    const { description } = this;
    say("Making one …", true);
    try {
      const seed = this.seed.value + this.made; // another at every press
      const settings = { ...page.settings, num_images: 1, seed };
      if (this.class?.value) settings.class_name = this.class.value;
      const { data, type } = await ask("export", { settings, kind: "png" });
      if (description !== this.description) return; // another model was chosen meanwhile
      this.picture = { image: `data:${type};base64,${data}` };
      this.made += 1;
      this.refresh();
      say("Let the model make another", false);
    } catch (error) {
      say("Let the model make one", false);
      this.complain(error);
    }
  }

  async offerSettings(file) {
    try {
      const { settings } = await ask("restore", { file: await dataUrl(file) });
      const run = () => {
        tell("restore", { settings, run: true });
        tell("tab", "generate");
      };
      tell("notice", {
        words: "This PNG was made here, and holds the settings of its run.",
        action: { title: "Restore them", run },
      });
    } catch {
      // settings of a model that is not here, or damaged: it is a picture all the same
    }
  }

  setT(t) {
    this.t = this.slider.value = clamp(t, 0, this.timesteps - 1);
    this.slider.value = this.t;
    this.slider.style.setProperty("--at", this.t / Math.max(1, this.timesteps - 1));
    this.number.textContent = this.t;
    this.chart.mark(this.t);
    this.strip.forEach((button, i) =>
      button.setAttribute("aria-current", this.t === Math.round((SHARES[i] / 100) * this.timesteps) - 1),
    );
    this.tellFacts();
    this.tellSteps();
    this.refresh();
  }

  tellFacts() {
    const alphaBar = this.schedule.alpha_bar[this.t];
    const [signal, noise] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
    const fact = (name, value, about) => make("div", {}, make("dt", {}, name), make("dd", { title: about }, value));
    const bar = () => make("span", { style: "text-decoration: overline" }, "α");
    this.facts.replaceChildren(
      fact(
        [bar(), make("sub", {}, "t")],
        alphaBar.toPrecision(3),
        "alpha-bar: the share of the picture in the variance",
      ),
      fact(["√", bar(), " signal"], signal.toFixed(3), "what the picture is multiplied by"),
      fact(["√(1−", bar(), ") noise"], noise.toFixed(3), "what the noise is multiplied by"),
      fact("SNR", `${this.schedule.snr_db[this.t].toFixed(1)} dB`, "signal-to-noise ratio"),
    );
    tell("t", { t: this.t, signal, noise, alphaBar });
  }

  refresh() {
    if (this.picture) this.ask(this.values());
  }

  values() {
    return { ...this.picture, t: this.t, seed: this.seed.value, model: this.description.model };
  }

  answered(answer, { model }) {
    if (model !== this.description.model) return; // asked for before another was chosen
    this.root.toggleAttribute("data-bare", false);
    this.original.image.src = answer.original;
    this.noised.image.src = answer.x_t;
    this.noised.image.alt = `The picture at t = ${answer.t}`;
    this.noised.caption.lastChild.textContent = ` at t = ${answer.t}`;
    this.root.dataset.t = answer.t;
    answer.strip.forEach((src, i) => (this.strip[i].firstChild.src = src));
    tell("noised", answer);
    this.complaint = "";
    this.describe();
  }

  complain(error) {
    this.complaint = error.message;
    this.describe();
  }

  // ---- the way back

  submit() {
    if (!this.picture) return this.complain(new Error("Drop in a picture first."));
    if (this.busy) return;
    Object.assign(this, { stopped: false, complaint: "" });
    this.setState("waiting");
    bringIntoView(this.root);
    wires.denoise.send({
      ...this.values(),
      num_images: 1,
      sampler: this.sampler.value,
      steps: Number(this.steps.value),
      ...this.guided(),
    });
  }

  // Without a class: what the network makes of the picture when it gets none, at every step.
  guided() {
    if (!this.class) return {};
    const { defaults, limits } = this.description;
    if (!this.class.value) return { guidance_scale: 0, guidance_interval: [0, limits.max_steps] };
    return {
      class_name: this.class.value,
      guidance_scale: Number(this.guidance.value),
      guidance_interval: defaults.guidance_interval,
    };
  }

  stop() {
    this.stopped = true;
    wires.denoise.stop();
    this.ended("stopped");
  }

  ended(state) {
    if (this.busy) this.setState(state);
  }

  get busy() {
    return ["waiting", "running"].includes(this.root.dataset.state);
  }

  receive(value) {
    if (!value || !value.run) return;
    if (value.state === "waiting") {
      this.queue = value.queue;
      if (!this.stopped) this.setState("waiting");
      return;
    }
    if (value.run !== this.run?.run) {
      this.film = new Film(value.total);
      this.hint.hidden = true;
      this.transport.reset(value.total);
    }
    this.run = value;
    const first = this.film.frames[0];
    this.film.add(value.frames);
    if (first && first !== this.film.frames[0] && this.transport.shown === 0) this.paint(0);
    this.setState(this.stopped && value.state === "running" ? "stopped" : value.state);
    this.transport.arrived(this.film.newest, value.state === "running");
  }

  setState(state) {
    this.root.dataset.state = state;
    this.settings.firstChild.toggleAttribute("data-busy", this.busy);
    this.describe();
  }

  async paint(at) {
    const { film, run } = this;
    const frame = film?.nearest(at);
    const sheet = frame && (await film.picture(frame));
    if (!sheet || film !== this.film) return false;
    drawImage(this.back.canvas, sheet, run.tile, "x_t", 0);
    this.back.canvas.setAttribute("aria-label", `The way back from t = ${run.t}, step ${at} of ${film.total}`);
    return true;
  }

  describe() {
    const { state } = this.root.dataset;
    this.root.dataset.shown = this.transport.shown;
    this.status.textContent = this.complaint || this.stateText(state);
    if (this.run) this.back.caption.textContent = `back from t = ${this.run.t}`;
  }

  stateText(state) {
    if (state === "waiting") return waitingText(this.queue);
    if (state === "done") return this.doneText();
    return { running: "Denoising", stopped: "Stopped", failed: "Failed" }[state] ?? "";
  }

  // Some samplers call the network twice a step.
  stepWord() {
    const { run, timesteps } = this;
    const steps = Math.min(run.t + 1, Math.max(1, Math.round((run.steps * (run.t + 1)) / timesteps)));
    return run.total === steps ? "step" : "call";
  }

  doneText() {
    const { run, film } = this;
    const way = `${film.total} ${this.stepWord()}${film.total === 1 ? "" : "s"} from t = ${run.t} down`;
    return run.cached ? `Done: ${way}, from memory` : `Done: ${way}, in ${seconds(run.seconds)}`;
  }
}
