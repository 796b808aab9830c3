// What the components of page.py call, one function each, with what Gradio hands to js_on_load.

const parts = {};
const millions = (count) => `${(count / 1e6).toFixed(1)} million`;

function masthead(element, props) {
  const { title, description, panels } = props.masthead;
  const { model, parameters } = description;
  const bar = make("div", { class: "tabs-bar" });
  element.replaceChildren(
    make("header", {},
      make("h1", {}, title),
      make("p", {}, "A diffusion model makes pictures by taking noise away, step by step. Watch ", make("b", {}, model), ` do it live: ${millions(parameters)} parameters.`)),
    bar);
  parts.tabs = new Tabs(bar, panels);
}

function form(element, props, trigger) {
  parts.form = new SettingsForm(element, props.description, {
    submitted(settings) {
      if (document.documentElement.hasAttribute("data-busy")) return;
      props.value = { ...settings };
      parts.stage?.submitted();
      trigger("submit");
    },
    stopped() {
      parts.stage?.ended("stopped");
      trigger("stop");
    },
  });
  hear("restore", ({ settings, run }) => {
    parts.form.write(settings);
    if (run) parts.form.submit();
  });
}

function stage(element, props, watch) {
  const busy = (state) => ["waiting", "running"].includes(state);
  parts.stage = new Stage(element, {
    label: "Denoising stage",
    empty: ["Every picture starts as noise.", "Press Generate and watch it turn into something."],
    more(run, index) {
      const name = run.names[index];
      tell("restore", { settings: { seed: run.seeds[index], ...(name !== null && { class_name: name }) }, run: true });
    },
    picked({ state, run, film }) {
      document.documentElement.toggleAttribute("data-busy", busy(state));
      Object.assign(page, { run, film });
      tell("run", run);
    },
  });
  watch("value", () => parts.stage.receive(props.value));
  hear("failed", () => parts.stage.ended("failed"));
  parts.stage.receive(props.value);
}

return { masthead, form, stage, tell };
