// Forward: a picture disappears in noise as t grows, and the model makes its way back from there: to variations of it,
// to a part of it made anew, or to what lies between it and a second one.

import { ScheduleChart } from "./charts.js";
import { Choice } from "./choice.js";
import { bringIntoView, clamp, make, page, tell, wires } from "./dom.js";
import { SeedField } from "./fields.js";
import { dataUrl, dropZone, holdsSettings, smallPicture } from "./intake.js";
import { Pad } from "./pad.js";
import { drawImage } from "./tiles.js";
import { ask, askLatest } from "./wire.js";

const SHARES = [25, 50, 75, 100]; // % of the timesteps, as the original shows them
const VARIATIONS = 9;
const LOOP_MS = 160; // between two pictures of the way from one to the other
const CALM = matchMedia("(prefers-reduced-motion: reduce)");

export class Forward {
  // makeStage(element, options): the stage of the way back, with what can be done with a run.
  constructor(settings, screen, description, makeStage) {
    this.settings = settings;
    this.ask = askLatest(
      "noise",
      (answer, values) => this.answered(answer, values),
      (error) => this.complain(error),
    );
    this.makeScreen(screen, makeStage);
    this.build(description);
  }

  // ---- the parts

  makeScreen(element, makeStage) {
    const figure = (letter, words, ...more) => {
      const image = make("img", { alt: words });
      const caption = make("figcaption", {}, make("i", {}, "x", make("sub", {}, letter)), ` ${words}`);
      return { image, caption, element: make("figure", {}, make("div", { class: "frame" }, image, ...more), caption) };
    };
    this.pad = new Pad({ drawn: (url) => this.drew(url), marked: (url) => this.setMask(url) });
    this.original = figure("0", "the picture", this.pad.canvas, this.pad.mask);
    this.original.image.before(make("p", { class: "frame-hint bare" }, "Your picture goes here."));
    this.original.element.append(this.pad.element);
    this.pad.image = () => this.original.image;
    this.pad.changed = (mode) => {
      this.root?.toggleAttribute("data-pad", Boolean(mode));
      if (mode === "draw" && !this.picture) this.drew(this.pad.canvas.toDataURL());
    };
    this.noised = figure("t", "noised");
    this.loop = make("canvas", { role: "img", "aria-label": "The way from the first picture to the second, as a loop", width: 1, height: 1 });
    this.second = figure("", "the second", this.loop);
    this.second.caption.textContent = "the second picture";
    this.second.element.hidden = true;
    const result = make("div", { class: "result" });
    this.strip = SHARES.map((share) =>
      make(
        "button",
        { type: "button", onclick: () => this.setT(Math.round((share / 100) * this.timesteps) - 1) },
        make("img", { alt: "" }),
        make("span", {}, `${share} %`),
      ),
    );
    this.status = make("p", { class: "stage-status", role: "status" });
    this.root = make(
      "section",
      { class: "stage forward", "aria-label": "The picture, noised and denoised", "data-state": "empty" },
      make(
        "div",
        { class: "bench" },
        make("div", { class: "sources" }, this.original.element, this.noised.element, this.second.element),
        result,
      ),
      this.status,
      make("div", { class: "quarters", role: "group", "aria-label": "The picture at four timesteps" }, this.strip),
    );
    element.replaceChildren(this.root);
    this.stage = makeStage(result, {
      label: "The way back",
      empty: ["And back", "Press “Denoise from here”."],
      plain: true,
      button: "“Denoise from here”",
      isOld: () => Boolean(this.picture) && JSON.stringify(this.request()) !== this.asked,
      changed: ({ state }) => {
        this.root.dataset.state = state;
        this.settings.firstChild?.toggleAttribute("data-busy", this.stage?.busy ?? false);
        this.startLoop();
      },
    });
  }

  build(description) {
    const { classes, examples, limits, samplers, defaults, schedule } = description;
    const names = classes.map(({ name }) => name);
    // about half picture, half noise
    this.halfWay = Math.max(0, schedule.alpha_bar.findIndex((share) => share < 0.5) - 1);
    Object.assign(this, {
      description,
      timesteps: limits.max_steps,
      schedule,
      t: this.halfWay,
      picture: examples.length ? { example: 0 } : null,
      other: null,
      slot: "picture", // which of the two a press on an example or a file sets
      mask: null,
      interval: defaults.guidance_interval,
    });
    this.pad.build(description);
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
    this.images = number(Math.min(VARIATIONS, limits.max_images), 1, limits.max_images, 1);
    this.slots = make("div", { class: "segments slots", role: "group", "aria-label": "Which picture" }, [
      ["picture", "First"],
      ["second", "Second"],
    ].map(([slot, words]) => make("button", { type: "button", "data-slot": slot, onclick: () => this.choose(slot) }, words)));
    this.pairing = make("button", { type: "button", class: "pill between", onclick: () => this.pair(!this.paired) });
    this.stepsLine = make("p", { class: "line" });
    this.guidance = names.length ? number(defaults.guidance_scale, 0, limits.max_guidance, 0.1) : null;
    this.seed = new SeedField({ max: limits.max_seed, id: "forward-seed", changed: () => this.refresh() });
    this.class = names.length
      ? make(
          "select",
          { class: "select" },
          make("option", { value: "" }, "None: unguided"),
          make("option", { value: "any" }, "Any: all in turn"),
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
          this.slots,
          this.examples.length ? make("div", { class: "classes examples" }, this.examples) : null,
          drop,
          examples.length ? null : this.maker,
          this.pairing,
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
    if (!this.picture) this.clear();
    this.complaint = this.picture
      ? ""
      : "This model brings no examples: drop in a picture of your own, draw one, or let the model make one.";
    this.stage.clear();
    this.noised.caption.lastChild.textContent = " noised";
    this.pair(false);
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
      named("Images", this.images),
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
    const { name } = this.description.examples[i];
    if (this.class && name && !this.paired) this.class.value = name;
    this.use({ example: i }, true);
  }

  // A picture; one that was made here may also give its settings back.
  async take(file) {
    if (await holdsSettings(file)) this.offerSettings(file);
    try {
      this.use({ image: await smallPicture(file) });
    } catch (error) {
      this.complain(error);
    }
  }

  // source: { example } or { image: data URL }.
  use(source, known = false) {
    if (!known) {
      for (const example of this.examples) example.firstChild.checked = false;
      if (this.class) this.class.value = ""; // nobody has said of which class it is
    }
    this.complaint = "";
    if (this.slot === "second") {
      this.other = source;
      this.showSecond();
    } else {
      this.picture = source;
      if (this.pad.mode !== "draw") this.pad.use(null);
      this.pad.unmark();
      this.mask = null;
    }
    this.describe();
    this.stage.describe();
    this.refresh();
  }

  drew(image) {
    this.slot = "picture";
    this.use({ image });
    this.choose("picture");
  }

  setMask(url) {
    if (url && !this.mask) this.setT(this.timesteps - 1); // from pure noise, what is marked is free
    this.mask = url;
    if (url && this.class && !this.class.value) this.class.value = "any";
    this.describe();
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
      this.use({ image: `data:${type};base64,${data}` }, true);
      this.made += 1;
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
    this.stage.describe();
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

  // ---- two pictures

  get paired() {
    return !this.second.element.hidden;
  }

  pair(on) {
    this.second.element.hidden = !on;
    this.root.toggleAttribute("data-pair", on);
    this.pairing.textContent = on ? "One picture alone" : "The way to a second picture …";
    this.slots.hidden = !on;
    this.other = null;
    this.second.image.removeAttribute("src");
    if (on && this.class) this.class.value = ""; // the two may be of different classes
    const isFresh = ({ value, fresh_noise }) => value === this.sampler.value && fresh_noise;
    if (on && this.description.samplers.some(isFresh)) this.sampler.set("dpm"); // noise on the way would lead elsewhere
    this.choose(on ? "second" : "picture");
    this.startLoop();
  }

  choose(slot) {
    this.slot = slot;
    for (const button of this.slots.children) button.setAttribute("aria-pressed", String(button.dataset.slot === slot));
    const { example } = (slot === "second" ? this.other : this.picture) ?? {};
    this.examples.forEach((one, i) => (one.firstChild.checked = i === example));
    this.describe();
  }

  async showSecond() {
    const { example, image } = this.other;
    this.second.image.src = image ?? this.description.examples[example].src;
    this.startLoop();
  }

  // The finished pictures of the way there and back, one after the other, where the second picture stands.
  async startLoop() {
    clearInterval(this.timer);
    const { run, film, state } = this.stage ?? {};
    const made = run?.settings.to_image ?? run?.settings.to_example;
    this.loop.hidden = !this.paired || state !== "done" || made === undefined;
    this.second.caption.textContent = this.loop.hidden ? "the second picture" : "the way, as a loop";
    if (this.loop.hidden) return;
    const sheet = await film.picture(film.frames[film.total]);
    const last = run.seeds.length - 1;
    let at = 0;
    const draw = () => {
      drawImage(this.loop, sheet, run.tile, "x_t", at > last ? 2 * last - at : at);
      at = (at + 1) % Math.max(1, 2 * last);
    };
    if (!sheet) return;
    draw();
    if (!CALM.matches) this.timer = setInterval(draw, LOOP_MS);
  }

  // ---- the way back

  // What is asked for, as the server takes it.
  request() {
    const named = ({ image, example }, prefix) =>
      image ? { [`${prefix}image`]: image } : { [`${prefix}example`]: example };
    return {
      ...named(this.picture, ""),
      ...(this.paired && this.other && named(this.other, "to_")),
      ...(this.mask && !this.paired && { mask: this.mask }),
      t: this.t,
      seed: this.seed.value,
      model: this.description.model,
      num_images: Number(this.images.value),
      sampler: this.sampler.value,
      steps: Number(this.steps.value),
      ...this.guided(),
    };
  }

  submit() {
    if (!this.picture) return this.complain(new Error("Drop in a picture first."));
    if (this.paired && !this.other) return this.complain(new Error("Pick the second picture, or drop it in."));
    if (this.stage.busy) return;
    this.pad.use(null);
    this.complaint = "";
    this.describe();
    this.stage.submitted();
    bringIntoView(this.root);
    this.asked = JSON.stringify(this.request());
    wires.forward.send(this.request());
  }

  // Without a class: what the network makes of the picture when it gets none, at every step.
  guided() {
    if (!this.class) return {};
    if (!this.class.value) return { guidance_scale: 0, guidance_interval: [0, this.description.limits.max_steps] };
    return {
      class_name: this.class.value,
      guidance_scale: Number(this.guidance.value),
      guidance_interval: this.interval,
    };
  }

  // Settings of a run from elsewhere: a link, a PNG, an image of Generate.
  write(settings) {
    const { image, example, to_image, to_example, mask, guidance_scale: scale, guidance_interval: interval } = settings;
    const paired = (to_image ?? to_example) !== undefined;
    if (paired !== this.paired) this.pair(paired);
    if (paired) {
      this.slot = "second";
      this.use(to_image ? { image: to_image } : { example: to_example }, true);
    }
    this.slot = "picture";
    this.use(image ? { image } : { example }, true);
    this.choose("picture");
    if (mask) this.pad.mark(mask);
    this.mask = mask ?? null;
    if (this.class) {
      const unguided = scale === 0 && interval?.[0] === 0 && interval[1] === this.description.limits.max_steps;
      this.class.value = unguided ? "" : settings.class_name;
      if (!unguided) [this.guidance.value, this.interval] = [scale, interval];
    }
    this.images.value = settings.num_images;
    this.steps.value = settings.steps;
    this.sampler.set(settings.sampler);
    this.seed.set(settings.seed);
    this.setT(settings.t);
  }

  // Variations of an image that was made here, of a class or of none.
  async vary(image, name) {
    if (this.paired) this.pair(false);
    tell("tab", "forward");
    this.use({ image });
    if (this.class && name !== null) this.class.value = name;
    this.setT(this.halfWay);
    this.stop();
    this.submit();
  }

  stop() {
    this.stage.ended("stopped");
    wires.forward.stop();
  }

  describe() {
    const hint = this.mask && !this.paired ? "What is marked is made anew; the rest stays as it is." : "";
    this.status.textContent = this.complaint || hint;
    this.status.hidden = !this.status.textContent;
  }
}
