// A short walk for those who are new: five steps on the real page, each of which does what it explains.

import { icon, make, page, parts, tell } from "./dom.js";
import { kept, keep } from "./memory.js";

const FEW_STEPS = 5;

export class Walk {
  constructor() {
    this.title = make("h2", {});
    this.words = make("p", { role: "status" });
    this.go = make("button", { type: "button", class: "primary", onclick: () => this.press() });
    const skip = make("button", { type: "button", class: "pill", onclick: () => this.end() }, "Leave the walk");
    const close = make(
      "button",
      { type: "button", class: "close", "aria-label": "Leave the walk", title: "Leave the walk", onclick: () => this.end() },
      icon("close"),
    );
    this.element = make(
      "section",
      { class: "walk card", role: "dialog", "aria-label": "A short walk", hidden: true },
      make("div", { class: "walk-top" }, this.title, close),
      this.words,
      make("div", { class: "actions" }, this.go, skip),
    );
    this.element.addEventListener("keydown", (event) => event.key === "Escape" && this.end());
    document.body.append(this.element);
  }

  // To be shown where nothing has been made yet, until it is taken, refused, or a run is made.
  offer() {
    if (kept("walked")) return null;
    const forget = () => keep("walked", true);
    const offer = make(
      "p",
      { class: "offer" },
      make("button", { type: "button", class: "pill", onclick: () => this.begin() }, "New here? Take a short walk"),
      make(
        "button",
        {
          type: "button",
          class: "pill",
          onclick: () => {
            forget();
            offer.remove();
          },
        },
        "No, thanks",
      ),
    );
    return offer;
  }

  begin() {
    keep("walked", true);
    document.querySelector(".offer")?.remove();
    tell("tab", "generate");
    this.steps = this.makeSteps();
    this.at = 0;
    this.done = false;
    this.element.hidden = false;
    this.tell();
    this.go.focus();
  }

  end() {
    this.element.hidden = true;
    this.mark(null);
    parts.form.go.focus({ preventScroll: true });
  }

  // ---- the steps: what is said before, what the button does, and what is said after it

  makeSteps() {
    const { stage, form } = parts;
    const { classes } = page.description;
    const other = classes.find(({ name }) => name !== form.fields.class_name?.value);
    const fresh = () => form.fields.seed.set((form.fields.seed.value + 1) % page.description.limits.max_seed);
    const run = async (change) => {
      if (stage.busy) return;
      change();
      form.changed();
      form.submit();
    };
    const ended = () => this.until(() => !stage.busy && stage.run);
    const kind = classes.length
      ? {
          title: "Class",
          before: "The network was told what each picture of its training shows. So you can ask for one kind.",
          does: `Make “${other?.name}”`,
          where: "#settings .class-field",
          act: () => run(() => form.fields.class_name.set(other.name)).then(ended),
          after: "Every image is of that class now. Guidance, below, sets how strictly.",
        }
      : {
          title: "Seed",
          before: "The noise decides what becomes of it. A seed is the number that the noise is made from.",
          does: "Another seed",
          where: "#settings .seed-field",
          act: () => run(fresh).then(ended),
          after: "Other noise, other pictures. The same seed always gives the same ones.",
        };
    return [
      {
        title: "Noise",
        before: "Everything starts as noise: a random number for every pixel.",
        does: "Make noise",
        where: "#stage .stage-screen",
        act: async () => {
          stage.setView("both");
          await run(() => {});
          await this.until(() => stage.film.count > 1);
          stage.transport.show(0);
        },
        after: "On the left is the noise. There is no picture in it yet.",
      },
      {
        title: "Guess",
        before: "The network looks at the noise and guesses the finished picture, at once.",
        does: "Show the first guess",
        where: "#stage .stage-screen",
        act: async () => {
          await ended();
          stage.setView("x_0");
          await stage.transport.show(0);
        },
        after: "Its first guess is vague: little more than the average of all pictures that it knows.",
      },
      {
        title: "Step",
        before: "So only a little noise is taken away towards that guess, and the network looks again. That is one step.",
        does: "Take all the steps",
        where: "#stage .transport",
        act: async () => {
          stage.setView("both");
          await stage.transport.show(0);
          stage.transport.toggle();
        },
        after: "With each step the guess on the right gets clearer, until there is no noise left. Drag the slider to any step.",
      },
      kind,
      {
        title: "Sampler",
        before: `A sampler decides how large the steps are. With ${FEW_STEPS} large ones a picture is made sooner.`,
        does: `Take ${FEW_STEPS} steps`,
        where: "#settings",
        act: () => run(() => form.fields.steps.set(FEW_STEPS)).then(ended),
        after: "Sooner, but often coarser. Compare sets samplers side by side; Forward starts at a picture of yours.",
      },
    ];
  }

  // Waits for something to be true, as long as the walk goes on.
  async until(holds) {
    while (!holds() && !this.element.hidden) await new Promise((resolve) => setTimeout(resolve, 50));
  }

  // ---- on the way

  async press() {
    const step = this.steps[this.at];
    if (this.done) {
      this.at += 1;
      this.done = false;
      return this.at < this.steps.length ? this.tell() : this.end();
    }
    this.go.disabled = true;
    await step.act();
    this.go.disabled = false;
    this.done = true;
    if (this.element.hidden) return null;
    this.tell();
    return this.go.focus({ preventScroll: true });
  }

  tell() {
    const { title, before, after, does, where } = this.steps[this.at];
    const last = this.at === this.steps.length - 1;
    this.title.textContent = `${this.at + 1} of ${this.steps.length}: ${title}`;
    this.words.textContent = this.done ? after : before;
    this.go.textContent = this.done ? (last ? "That is all" : "Next") : does;
    this.mark(document.querySelector(where));
  }

  mark(element) {
    for (const marked of document.querySelectorAll(".marked-by-walk")) marked.classList.remove("marked-by-walk");
    element?.classList.add("marked-by-walk");
  }
}
