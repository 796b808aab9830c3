// What the components of page.py call, one function each, with what Gradio hands to js_on_load. Those that build a part
// of the page only note where; start() comes last and builds all, so that the order in which Gradio shows them is no
// matter.

const parts = {};
const places = {};

function masthead(element, props, functions) {
  server = functions;
  places.masthead = { element, about: props.about };
}

const noted = (name) => (element, props, watch) => (places[name] = { element, props, watch });
const [form, stage, compare, forwardSettings, forward, theory, takeAway] = [
  "form",
  "stage",
  "compare",
  "forwardSettings",
  "forward",
  "theory",
  "takeAway",
].map(noted);

function start() {
  if (Object.keys(places).length < 8) return setTimeout(start, 20);
  const { description } = places.masthead.about;
  page.description = description;
  parts.stage = makeStage();
  parts.form = new SettingsForm(places.form.element, description, { submitted, stopped });
  parts.compare = new Compare(places.compare.element, description);
  parts.forward = new Forward(places.forwardSettings.element, places.forward.element, description);
  parts.theory = new Theory(places.theory.element, description, parts);
  parts.forward.setT(parts.forward.t); // told once more, for those who came later
  parts.takeAway = new TakeAway(places.takeAway.element, description, parts);
  parts.masthead = new Masthead(places.masthead.element, places.masthead.about);
  for (const name of ["stage", "compare", "forward"]) {
    const { props, watch } = places[name];
    watch("value", () => parts[name].receive(props.value));
  }
  hear("failed", (name) =>
    ({ generate: parts.stage, compare: parts.compare, denoise: parts.forward })[name].ended("failed"),
  );
  hear("restore", restore);
  hear("model", (chosen) => {
    page.description = chosen;
    for (const name of ["form", "compare", "theory", "forward"]) parts[name].build(chosen);
    makeBackdrop(chosen);
  });
  watchDrops((file) =>
    parts.masthead.tabs.current === "forward" ? parts.forward.take(file) : parts.takeAway.restore(file),
  );
  followLink();
  makeBackdrop(description);
  document.documentElement.setAttribute("data-ready", "");
  return null;
}

function submitted(settings) {
  if (parts.stage.busy) return;
  parts.stage.submitted();
  bringIntoView(parts.stage.root);
  wires.generate.send(settings);
}

// On a phone the stage is above the settings.
function bringIntoView(element) {
  if (element.getBoundingClientRect().top >= 0) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

function stopped() {
  parts.stage.ended("stopped");
  wires.generate.stop();
}

// Settings from elsewhere go into the form, of another model after its controls are there.
async function restore({ settings, run }) {
  if (settings.model && settings.model !== page.description.model) await parts.masthead.choose(settings.model);
  parts.form.write(settings);
  if (!run) return;
  if (parts.stage.busy) stopped();
  parts.form.submit();
}

// A link to a run: its settings are checked by the server, and run.
async function followLink() {
  const query = new URLSearchParams(location.search);
  if (
    !["num_images", "class_name", "sampler", "steps", "seed", "guidance_scale", "model"].some((key) => query.has(key))
  )
    return;
  try {
    const { settings } = await ask("restore", { query: location.search });
    tell("restore", { settings, run: true });
  } catch (error) {
    tell("notice", error.message);
  }
}

function makeStage() {
  const png = make("button", { type: "button", disabled: true, onclick: () => savePng(png) }, "Save PNG");
  const made = new Stage(places.stage.element, {
    label: "Denoising stage",
    empty: ["Every picture starts as noise.", "Press Generate and watch it turn into something."],
    more: moreLike,
    picked({ busy, run }) {
      parts.form?.form.toggleAttribute("data-busy", busy);
      png.disabled = !run || png.ariaBusy === "true";
      tell("run", run);
    },
    painted: (sheet, index) => tell("painted", { sheet, index }),
  });
  const link = make("button", { type: "button", onclick: () => copyLink(link) }, "Copy link");
  const more = make("button", { type: "button", onclick: () => tell("tab", "take-away") }, "More …");
  made.actions.append(link, png, more);
  return made;
}

// The settings of the run, the class of the image, and the seeds that follow those of the run: pictures not seen yet.
function moreLike(run, index) {
  const name = run.names[index];
  const next = run.seeds.at(-1) + 1;
  const seed = next > page.description.limits.max_seed ? 0 : next;
  parts.stage.lens.close();
  tell("restore", { settings: { ...run.settings, seed, ...(name !== null && { class_name: name }) }, run: true });
}

// Tells on the button itself how it goes.
async function savePng(button) {
  const say = (words, busy) => {
    button.textContent = words;
    button.disabled = busy;
    button.setAttribute("aria-busy", busy);
  };
  say("Saving …", true);
  try {
    await parts.takeAway.save("png");
    say("Saved", false);
  } catch (error) {
    say("Save PNG", false);
    tell("notice", error.message);
  }
  setTimeout(() => button.textContent === "Saved" && say("Save PNG", false), 1500);
}

async function copyLink(button) {
  try {
    const { link } = await ask("take_away", {
      settings: parts.stage.run?.settings ?? page.settings,
      url: location.origin + location.pathname,
    });
    await copyText(link);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy link"), 1500);
  } catch (error) {
    tell("notice", error.message);
  }
}

window.ddpm = { masthead, form, stage, compare, forwardSettings, forward, theory, takeAway, wire, wires, start, tell, parts };
