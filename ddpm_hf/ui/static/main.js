// The page: makes its parts, and connects them with each other and with the server.

import { Compare } from "./compare.js";
import { bringIntoView, hear, make, page, parts, tell, wires } from "./dom.js";
import { SettingsForm } from "./form.js";
import { Forward } from "./forward.js";
import { holdsSettings, watchDrops } from "./intake.js";
import { Masthead } from "./masthead.js";
import { Stage } from "./stage.js";
import { TakeAway, copyText } from "./takeaway.js";
import { Theory } from "./theory.js";
import { makeBackdrop } from "./tiles.js";
import { Wire, ask } from "./wire.js";

const element = (id) => document.getElementById(id);

const { name, zero_gpu, description } = JSON.parse(element("about").textContent);

function start() {
  page.description = description;
  Wire.zeroGpu = zero_gpu;
  parts.stage = makeStage();
  parts.form = new SettingsForm(element("settings"), description, { submitted, stopped });
  parts.compare = new Compare(element("compare"), description);
  parts.forward = new Forward(element("forward-settings"), element("forward"), description);
  parts.theory = new Theory(element("theory"), description, parts);
  parts.forward.setT(parts.forward.t); // told once more, for those who came later
  parts.takeAway = new TakeAway(element("take-away"), description, parts);
  parts.masthead = new Masthead(element("masthead"), { name, description });
  const again = {
    generate: () => submitted(wires.generate.values),
    compare: () => parts.compare.submit(),
    denoise: () => parts.forward.submit(),
  };
  for (const [what, part] of [["generate", "stage"], ["compare", "compare"], ["denoise", "forward"]]) {
    wires[what] = new Wire(what, {
      received: (value) => parts[part].receive(value),
      failed(words, lost) {
        parts[part].ended("failed");
        tell("notice", lost ? { words, action: { title: "Try again", run: again[what] } } : words);
      },
    });
  }
  hear("restore", restore);
  hear("model", (chosen) => {
    page.description = chosen;
    for (const part of ["form", "compare", "theory", "forward"]) parts[part].build(chosen);
    makeBackdrop(chosen);
  });
  watchDrops(dropped);
  followLink();
  makeBackdrop(description);
  document.documentElement.setAttribute("data-ready", "");
}

function submitted(settings) {
  if (parts.stage.busy) return;
  parts.stage.submitted();
  bringIntoView(parts.stage.root);
  wires.generate.send(settings);
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

const SETTINGS = [
  ...["num_images", "class_name", "sampler", "steps", "seed"],
  ...["guidance_scale", "guidance_interval", "model", "prompt"],
];

// The address carries the run that the stage shows, so that Reload and Back bring it back.
let following = false;

function carry(run) {
  if (!["running", "done"].includes(run?.state)) return;
  const query = queryOf(run.settings);
  if (query !== location.search) history[following ? "replaceState" : "pushState"](null, "", query + location.hash);
  following = false;
}

function queryOf(settings) {
  const known = SETTINGS.filter((key) => (settings[key] ?? null) !== null);
  return `?${new URLSearchParams(known.map((key) => [key, String(settings[key])]))}`;
}

window.addEventListener("popstate", () => {
  const { run } = parts.stage;
  if (!run || queryOf(run.settings) !== location.search) followLink();
});

// A link to a run: its settings are checked by the server, and run.
async function followLink() {
  const query = new URLSearchParams(location.search);
  if (!SETTINGS.some((key) => query.has(key))) return;
  try {
    const { settings } = await ask("restore", { query: location.search });
    following = true;
    tell("restore", { settings, run: true });
  } catch (error) {
    tell("notice", error.message);
  }
}

// A picture goes to Forward, where one is wanted; a PNG from here gives its settings back.
async function dropped(file) {
  if (parts.masthead.tabs.current === "forward") return parts.forward.take(file);
  if (await holdsSettings(file)) return parts.takeAway.restore(file);
  const run = () => {
    tell("tab", "forward");
    parts.forward.take(file);
  };
  return tell("notice", {
    words: "This picture holds no settings of a run.",
    action: { title: "Noise it on Forward", run },
  });
}

function makeStage() {
  const png = make("button", { type: "button", disabled: true, onclick: () => savePng(png) }, "Save PNG");
  const made = new Stage(element("stage"), {
    label: "Denoising stage",
    empty: ["Every picture starts as noise.", "Press Generate and watch it turn into something."],
    more: moreLike,
    picked({ busy, run }) {
      parts.form?.form.toggleAttribute("data-busy", busy);
      png.disabled = !run || png.ariaBusy === "true";
      tell("run", run);
      carry(run);
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

window.ddpm = { parts, page, tell }; // for a look from the console, and for the tests
start();
