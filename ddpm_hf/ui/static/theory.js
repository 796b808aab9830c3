// How it works: the original's equations beside pictures that they have just made, each linked to the controls.

import { clamp, hear, make, parts, set, tell } from "./dom.js";
import { EQUATIONS } from "./math.js";
import { drawImage } from "./tiles.js";

// What networks may predict: its letter in the equations, what the training asks for, and how the picture and the noise
// follow from it.
const PREDICTIONS = {
  epsilon: {
    letter: "eps",
    asked: null,
    target: () => [],
    guess: () => [EQUATIONS.guess()],
    words: "At every step the guess also says what the finished picture would be.",
  },
  v_prediction: {
    letter: "v",
    asked:
      "The network of this page is asked for v, a mix of noise and picture, and its loss is the same in v: that stays a fair question at every t. Picture and noise both follow from it.",
    target: () => [EQUATIONS.velocity()],
    guess: () => [EQUATIONS.guessFromVelocity(), EQUATIONS.noiseFromVelocity()],
    words: "This network guesses v; at every step that says both what the finished picture would be and what is noise.",
  },
  sample: {
    letter: "x",
    asked: "The network of this page is asked for the picture itself. The noise follows from it.",
    target: () => [],
    guess: () => [EQUATIONS.guessItself(), EQUATIONS.noiseFromPicture()],
    words: "This network guesses the finished picture; what is noise follows from it.",
  },
};

export class Theory {
  constructor(element, description, { forward, stage }) {
    Object.assign(this, { forward, stage });
    this.root = make("article", { class: "theory" });
    element.replaceChildren(this.root);
    this.root.toggleAttribute("data-plain", !hasMathFont(element));
    this.build(description);
    hear("noised", (answer) => this.showNoised(answer));
    hear("t", (facts) => this.showT(facts));
    hear("painted", (painted) => this.showStep(painted));
    hear("run", () => this.showRun());
  }

  build(description) {
    this.description = description;
    this.prediction = PREDICTIONS[description.prediction_type] ?? PREDICTIONS.epsilon;
    this.root.replaceChildren(
      ...[this.noising(), this.training(), this.denoising(), this.steering(), this.samplers(), this.card()].filter(
        Boolean,
      ),
    );
    if (this.lastT) this.showT(this.lastT);
    if (this.lastNoised) this.showNoised(this.lastNoised);
    this.showRun();
  }

  section(title, words, equations, ...figure) {
    return make(
      "section",
      {},
      make("div", { class: "words" }, make("h2", {}, title), ...words.map((text) => make("p", {}, text)), equations),
      make("div", { class: "figure" }, figure),
    );
  }

  noising() {
    this.sum = ["x_0", "noise", "x_t"].map((alt) => make("img", { alt, hidden: true }));
    this.weights = [make("output", {}), make("output", {})];
    const letter = (name, index) => make("i", {}, name, index && make("sub", {}, index));
    const term = (image, ...caption) => make("figure", {}, image, make("figcaption", {}, caption));
    this.slider = make("input", {
      type: "range",
      class: "range",
      min: 0,
      max: this.description.limits.max_steps - 1,
      "aria-label": "Timestep t",
      oninput: () => this.forward.setT(Number(this.slider.value)),
    });
    this.tWords = make("p", { class: "line" });
    return this.section(
      "Forward: a picture disappears",
      [
        "Every step keeps a little less of the picture and adds a little noise. All those small steps add up to one jump, so any x at any t can be had at once.",
      ],
      [EQUATIONS.step(), EQUATIONS.product(), EQUATIONS.jump()],
      make(
        "div",
        { class: "sum" },
        this.weights[0],
        term(this.sum[0], letter("x", "0")),
        make("b", {}, "+"),
        this.weights[1],
        term(this.sum[1], "noise ", letter("ε")),
        make("b", {}, "="),
        term(this.sum[2], letter("x", "t")),
      ),
      this.slider,
      this.tWords,
      this.link("Try it on a picture of yours", () => tell("tab", "forward")),
    );
  }

  training() {
    const { losses } = this.description.card;
    const { asked, target } = this.prediction;
    return this.section(
      "Training: guess the noise",
      [
        "Take a picture, noise it up to a random t, and ask the network which noise that was. How far it is off is the loss; the weight in front is mostly left out, which trains better pictures.",
        ...(asked ? [asked] : []),
      ],
      [EQUATIONS.loss(), ...target()],
      losses.length > 1
        ? lossChart(losses)
        : make("p", { class: "line" }, "This model brings no record of its training."),
    );
  }

  denoising() {
    this.pair = ["x_t", "x_0"].map(() => make("canvas", { role: "img", width: 1, height: 1 }));
    this.pairWords = make("p", { class: "line" });
    this.stepSlider = make("input", {
      type: "range",
      class: "range",
      min: 0,
      max: 1,
      value: 0,
      "aria-label": "Step of the run",
      disabled: true,
      oninput: () => this.stage.transport.show(Number(this.stepSlider.value)),
    });
    const figure = (canvas, words) => make("figure", {}, canvas, make("figcaption", {}, words));
    this.runButton = this.link("Generate and watch", () => parts.form.submit());
    return this.section(
      "Backward: take the noise away again",
      [
        "From pure noise, the network's guess points to where the picture may be. Go a small step there, add a little fresh noise, and look again.",
        this.prediction.words,
      ],
      [EQUATIONS.back(), EQUATIONS.mean(), ...this.prediction.guess()],
      make(
        "div",
        { class: "pair" },
        figure(this.pair[0], [make("i", {}, "x", make("sub", {}, "t")), " on its way"]),
        make("b", {}, "→"),
        figure(this.pair[1], [make("i", {}, "x̂", make("sub", {}, "0")), " guessed from it"]),
      ),
      this.stepSlider,
      this.pairWords,
      this.runButton,
    );
  }

  steering() {
    if (!this.description.classes.length) return null;
    const guide = (scale) =>
      this.link(scale === 1 ? "Guidance off" : `Guidance ${scale}`, () => {
        tell("restore", { settings: { guidance_scale: scale }, run: true });
        tell("tab", "generate");
      });
    return this.section(
      "Guidance: pull towards a class",
      [
        "The network has learned to guess with a class and without. Pushing the one guess away from the other pulls the picture towards what is typical of the class, at the price of variety and of a second call of the network.",
      ],
      [EQUATIONS.guidance(this.prediction.letter)],
      make("p", { class: "line" }, "The same seeds, pulled by different weights w:"),
      make("div", { class: "links" }, [1, 3, 6].map(guide)),
    );
  }

  samplers() {
    const { samplers } = this.description;
    const list = make(
      "dl",
      { class: "samplers" },
      samplers.map(({ value, title, about }) =>
        make(
          "div",
          {},
          make("dt", {}, make("button", { type: "button", onclick: () => this.trySampler(value) }, title)),
          make("dd", {}, about),
        ),
      ),
    );
    return make(
      "section",
      { class: "whole" },
      make(
        "div",
        { class: "words" },
        make("h2", {}, "Samplers: fewer, larger steps"),
        make(
          "p",
          {},
          "The original's sampler, DDPM, walks all the steps. Others follow the same path with a solver for differential equations and need a few dozen calls of the network.",
        ),
      ),
      list,
      make(
        "div",
        { class: "links" },
        this.link("Compare them side by side", () => tell("tab", "compare")),
      ),
    );
  }

  trySampler(sampler) {
    tell("restore", { settings: { sampler }, run: true });
    tell("tab", "generate");
  }

  card() {
    const { card, model } = this.description;
    const table = (caption, rows, columns = []) =>
      make(
        "table",
        {},
        make("caption", {}, caption),
        columns.length
          ? make(
              "thead",
              {},
              make(
                "tr",
                {},
                columns.map((name) => make("th", { scope: "col" }, name)),
              ),
            )
          : null,
        make(
          "tbody",
          {},
          rows.map(([name, ...values]) =>
            make(
              "tr",
              {},
              make("th", { scope: "row" }, name),
              values.map((value) => make("td", {}, String(value))),
            ),
          ),
        ),
      );
    const scores = () =>
      make(
        "div",
        {},
        table("Scores", card.scores, ["Score", "this model", "real images"]),
        card.judged && make("p", { class: "line" }, card.judged),
      );
    const page_ = card.url
      ? make("p", {}, make("a", { href: card.url, target: "_blank", rel: "noopener" }, "The model's page on the Hub"))
      : null;
    return make(
      "section",
      { class: "model-card" },
      make("h2", {}, `This model: ${model}`),
      page_,
      make(
        "div",
        { class: "tables" },
        table("Network and process", card.settings),
        card.scores.length
          ? scores()
          : make(
              "p",
              { class: "line" },
              "This model brings no scores: ",
              make("code", {}, "python -m ddpm_hf evaluate"),
              " makes them.",
            ),
      ),
    );
  }

  link(words, onclick) {
    return make("button", { type: "button", class: "pill", onclick }, words);
  }

  // ---- what it shows

  showT(facts) {
    this.lastT = facts;
    this.slider.value = facts.t;
    this.slider.style.setProperty("--at", facts.t / Math.max(1, this.description.limits.max_steps - 1));
    this.weights[0].textContent = `${facts.signal.toFixed(2)} ×`;
    this.weights[1].textContent = `${facts.noise.toFixed(2)} ×`;
    this.tWords.textContent = `t = ${facts.t}: ᾱ = ${facts.alphaBar.toPrecision(3)}, so √ᾱ = ${facts.signal.toFixed(2)} and √(1−ᾱ) = ${facts.noise.toFixed(2)}`;
  }

  showNoised(answer) {
    this.lastNoised = answer;
    [answer.original, answer.strip.at(-1), answer.x_t].forEach((src, i) => set(this.sum[i], { src, hidden: false }));
  }

  showRun() {
    const { run, film } = this.stage;
    const there = Boolean(run && film.newest >= 0);
    this.stepSlider.disabled = !there;
    this.runButton.hidden = there;
    if (there) this.stepSlider.max = film.total;
    else this.pairWords.textContent = "No run yet.";
  }

  showStep({ sheet, index }) {
    const { run, film } = this.stage;
    ["x_t", "x_0"].forEach((view, i) => {
      drawImage(this.pair[i], sheet, run.tile, view, 0);
      this.pair[i].setAttribute("aria-label", view === "x_t" ? "The noisy image" : "The finished image as predicted");
    });
    this.stepSlider.value = index;
    this.stepSlider.style.setProperty("--at", index / film.total);
    this.pairWords.textContent = `${this.stage.imageText(0)}: ${this.stage.stepText(index)}, ${this.whereText(film.nearest(index)?.t)}`;
  }

  // t of the x_t that is shown, and the weights of picture and noise in it, which are those of the equations.
  whereText(t) {
    if (t === null) return "finished";
    if (this.stage.run.settings.model !== this.description.model) return `t = ${Math.round(t)}`;
    const alphaBar = this.description.schedule.alpha_bar;
    const level = alphaBar[clamp(Math.round(t), 0, alphaBar.length - 1)];
    return `t = ${Math.round(t)}, √ᾱ = ${Math.sqrt(level).toFixed(2)}, √(1−ᾱ) = ${Math.sqrt(1 - level).toFixed(2)}`;
  }
}

// Whether an index is set lower than what it belongs to, as fonts for mathematics have it.
function hasMathFont(element) {
  const probe = make("div", { class: "equation" }, EQUATIONS.product());
  element.append(probe);
  const index = probe.querySelector("msub");
  const [base, low] = [...index.children].map((child) => child.getBoundingClientRect());
  probe.remove();
  return low.bottom - base.bottom > 0.12 * base.height;
}

// The loss of the training over the images seen.
function lossChart(losses) {
  const [width, height, left, bottom] = [320, 130, 34, 20];
  const most = losses.at(-1)[0];
  const logs = losses.map(([, loss]) => Math.log10(loss));
  const [low, high] = [Math.min(...logs), Math.max(...logs)];
  const x = (seen) => left + (seen / most) * (width - left - 6);
  const y = (log) => 8 + ((high - log) / Math.max(1e-9, high - low)) * (height - bottom - 8);
  const label = (log) => make("text", { x: left - 5, y: y(log) + 4, "text-anchor": "end" }, (10 ** log).toPrecision(2));
  const words = `The loss fell from ${losses[0][1].toPrecision(2)} to ${losses.at(-1)[1].toPrecision(2)} over ${most.toLocaleString("en")} images`;
  return make(
    "figure",
    { class: "loss" },
    make(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, class: "chart still", role: "img", "aria-label": words },
      make(
        "g",
        { class: "axes" },
        [low, high].map((log) => [make("line", { x1: left, x2: width - 6, y1: y(log), y2: y(log) }), label(log)]),
        make("text", { x: width - 6, y: height - 5, "text-anchor": "end" }, `${most.toLocaleString("en")} images`),
      ),
      make("polyline", {
        class: "curve",
        points: losses.map(([seen], i) => `${x(seen).toFixed(1)},${y(logs[i]).toFixed(1)}`).join(" "),
      }),
    ),
    make("figcaption", {}, words),
  );
}
