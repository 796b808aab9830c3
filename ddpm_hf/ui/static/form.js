// The settings of a run. Their values go to the server as they are here, and are checked there.

import { Choice } from "./choice.js";
import { make, page, range, tell } from "./dom.js";
import { ClassField, IntervalField, NumberField, PromptField, SeedField } from "./fields.js";

export class SettingsForm {
  // description: see describe() of description.py; submitted(settings) and stopped() are the two buttons.
  constructor(element, description, { submitted, stopped }) {
    Object.assign(this, { submitted, stopped });
    this.form = make("form", { class: "form card", "aria-label": "Settings", novalidate: true });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submitted(this.read());
    });
    element.replaceChildren(this.form);
    this.build(description);
  }

  build(description) {
    const { limits, defaults, samplers, classes, prompts } = description;
    const guided = classes.length > 0 || prompts !== null;
    const changed = () => this.changed();
    this.description = description;
    this.fields = {
      ...(prompts && { prompt: new PromptField({ examples: prompts, longest: limits.max_prompt, changed }) }),
      ...(classes.length && { class_name: new ClassField({ classes, changed }) }),
      num_images: new NumberField({
        name: "images",
        label: "Images",
        low: 1,
        high: limits.max_images,
        value: defaults.num_images,
        stops: range(1, limits.max_images),
        changed,
      }),
      steps: new NumberField({
        name: "steps",
        label: "Steps",
        low: 1,
        high: limits.max_steps,
        value: defaults.steps,
        changed,
      }),
      ...(guided && {
        guidance_scale: new NumberField({
          name: "guidance",
          label: "Guidance",
          low: 0,
          high: limits.max_guidance,
          value: defaults.guidance_scale,
          whole: false,
          line: guidanceLine,
          changed,
        }),
        guidance_interval: new IntervalField({ high: limits.max_steps, value: defaults.guidance_interval, changed }),
      }),
      sampler: new Choice({ label: "Sampler", value: defaults.sampler, options: samplers, changed }),
      seed: new SeedField({ max: limits.max_seed, images: limits.max_images, value: 0, changed }),
    };
    const sampler = make(
      "div",
      { class: "field" },
      make("span", { class: "label", "aria-hidden": "true" }, "Sampler"),
      this.fields.sampler.element,
    );
    const { prompt, class_name, num_images, steps, guidance_scale, guidance_interval, seed } = this.fields;
    this.go = make("button", { type: "submit", class: "primary" }, "Generate");
    this.halt = make("button", { type: "button", class: "pill stop", onclick: () => this.stopped() }, "Stop");
    this.form.replaceChildren(
      make("div", { class: "actions dock" }, this.go, this.halt),
      prompt?.element ?? "",
      class_name?.element ?? "",
      make("div", { class: "two" }, num_images.element, steps.element),
      guidance_scale?.element ?? "",
      seed.element,
      sampler,
      guidance_interval?.element ?? "",
    );
    this.changed();
  }

  read() {
    const values = Object.fromEntries(Object.entries(this.fields).map(([name, field]) => [name, field.value]));
    return { model: this.description.model, ...values };
  }

  // Puts in those settings that this model has; what is unknown or out of range stays as it is.
  write(settings) {
    if ("class_name" in settings) this.fields.prompt?.set(""); // all settings of a run, which may have no prompt
    for (const [name, value] of Object.entries(settings)) this.fields[name]?.set(value);
    this.changed();
  }

  submit() {
    this.submitted(this.read());
  }

  changed() {
    page.settings = this.read();
    tell("settings", page.settings);
  }
}

function guidanceLine(scale) {
  if (scale === 1) return "Off: the class as the network learned it.";
  if (scale < 1) return "Towards the network's view without a class.";
  return `${scale.toFixed(1).replace(".0", "")} × towards the class, two network calls.`;
}
