// The head of the page: what it is, which model, the tabs, and a line for what went wrong.

class Masthead {
  constructor(element, { title, name, panels, description }) {
    this.name = name;
    this.about = make("p", {});
    this.picker = make(
      "select",
      {
        class: "select",
        "aria-label": "Model",
        hidden: description.models.length < 2,
        onchange: () => this.choose(this.picker.value),
      },
      description.models.map((model) => make("option", { value: model }, model)),
    );
    this.notice = make("p", { class: "notice", role: "alert", hidden: true });
    const bar = make("div", { class: "tabs-bar" });
    element.replaceChildren(
      make("header", {}, make("div", { class: "title" }, make("h1", {}, title), this.picker), this.about),
      bar,
      this.notice,
    );
    this.tell(name);
    this.tabs = new Tabs(
      bar,
      Object.entries(panels).map(([id, words]) => ({ id, title: words })),
    );
    hear("notice", (words) => this.say(words));
  }

  tell(name) {
    this.about.replaceChildren(
      "A diffusion model makes pictures by taking noise away, step by step. Watch ",
      make("b", {}, name),
      " do it live.",
    );
  }

  say(words) {
    clearTimeout(this.timer);
    this.notice.textContent = words;
    this.notice.hidden = false;
    this.timer = setTimeout(() => (this.notice.hidden = true), 8000);
  }

  // Another of the allowed models: the server loads it and says what its controls are.
  async choose(model) {
    this.picker.disabled = true;
    try {
      const description = await ask("describe_model", { model });
      const first = description.models[0] === model;
      this.tell(first ? this.name : model);
      tell("model", description);
      this.picker.value = model;
    } catch (error) {
      this.picker.value = page.description.model;
      this.say(error.message);
    }
    this.picker.disabled = false;
  }
}
