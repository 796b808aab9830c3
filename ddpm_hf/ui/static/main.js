// The page: makes its parts, and connects them with each other and with the server.

import { Compare } from "./compare.js";
import { bringIntoView, hear, make, page, parts, tell, wires } from "./dom.js";
import { Earlier } from "./earlier.js";
import { SettingsForm } from "./form.js";
import { Forward } from "./forward.js";
import { helpButton } from "./help.js";
import { holdsSettings, watchDrops } from "./intake.js";
import { keep } from "./memory.js";
import { Masthead } from "./masthead.js";
import { Stage } from "./stage.js";
import { TakeAway, copyText } from "./takeaway.js";
import { Theory } from "./theory.js";
import { makeBackdrop } from "./tiles.js";
import { Walk } from "./walk.js";
import { Wire, ask } from "./wire.js";

const element = (id) => document.getElementById(id);

const { name, zero_gpu, description } = JSON.parse(element("about").textContent);

function start() {
  page.description = description;
  Wire.zeroGpu = zero_gpu;
  parts.stage = makeStage(element("stage"), {
    label: "Denoising stage",
    empty: ["Every picture starts as noise.", "Press Generate and watch it turn into something."],
    button: "Generate",
    isOld: ({ settings }) => Object.entries(page.settings ?? {}).some(([name, value]) => !same(settings[name], value)),
    changed({ busy, run }) {
      parts.form?.form.toggleAttribute("data-busy", busy);
      tell("run", run);
    },
    painted: (sheet, index) => tell("painted", { sheet, index }),
  });
  parts.form = new SettingsForm(element("settings"), description, { submitted, stopped });
  parts.compare = new Compare(element("compare"), description);
  parts.forward = new Forward(element("forward-settings"), element("forward"), description, makeStage);
  parts.theory = new Theory(element("theory"), description, parts);
  parts.forward.setT(parts.forward.t); // told once more, for those who came later
  parts.takeAway = new TakeAway(element("take-away"), description, parts);
  parts.masthead = new Masthead(element("masthead"), { name, description });
  parts.earlier = new Earlier(element("earlier"), { open: openRun });
  parts.walk = new Walk();
  element("masthead").querySelector(".title").append(helpButton(parts.walk));
  const offer = parts.walk.offer();
  if (offer) parts.stage.empty.append(offer);
  // name of the wire: what it asks for, what takes the answers, and what asks again
  const runs = {
    generate: ["generate", parts.stage, () => submitted(wires.generate.values)],
    compare: ["compare", parts.compare, () => parts.compare.submit()],
    forward: ["generate", parts.forward.stage, () => parts.forward.submit()],
  };
  for (const [name, [what, part, again]] of Object.entries(runs)) {
    wires[name] = new Wire(what, {
      received: (value) => part.receive(value),
      failed(words, lost) {
        part.ended("failed");
        tell("notice", lost ? { words, action: { title: "Try again", run: again } } : words);
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

const same = (one, other) => JSON.stringify(one ?? null) === JSON.stringify(other ?? null);

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
  const { t } = settings; // of a run from a picture
  const [form, stage, stop] = t === undefined ? [parts.form, parts.stage, stopped] : [parts.forward, parts.forward.stage, () => parts.forward.stop()];
  form.write(settings);
  tell("tab", t === undefined ? "generate" : "forward");
  if (!run) return;
  if (stage.busy) stop();
  form.submit();
}

// ---- the address carries the run that is shown, so that Reload and Back bring it back: one from noise as the query,
// one from a picture behind the tab's name, which no server has to take

const SETTINGS = [
  ...["num_images", "class_name", "guidance_scale", "sampler", "steps", "seed"],
  ...["guidance_interval", "model", "prompt"],
];
const START = ["t", "image", "example", "mask", "to_image", "to_example"];
let following = false;

function carry(stage) {
  const { run, state } = stage;
  if (!run || !["running", "done"].includes(state)) return; // of one that waits, the run before is still there
  const address = addressOf(run.settings);
  if (address !== here()) history[following ? "replaceState" : "pushState"](null, "", address);
  following = false;
  if (run.state !== "done" || run.run === stage.kept) return;
  stage.kept = run.run;
  keep("walked", true);
  const { num_images: count, seed, steps, t } = run.settings;
  const words = `${count} ${count === 1 ? "image" : "images"}, seed ${seed}, ${steps} steps${t === undefined ? "" : `, from t = ${t}`}`;
  parts.earlier.add(queryOf(run.settings), t === undefined ? "generate" : "forward", stage, words);
}

const here = () => location.search + location.hash;

function queryOf(settings) {
  const known = [...SETTINGS, ...START].filter((key) => (settings[key] ?? null) !== null);
  return `?${new URLSearchParams(known.map((key) => [key, String(settings[key])]))}`;
}

function addressOf(settings) {
  const query = queryOf(settings);
  if (settings.t !== undefined) return `${location.search}#forward${query}`;
  return query + (location.hash.includes("?") ? "" : location.hash);
}

function openRun(query, tab) {
  history.pushState(null, "", tab === "forward" ? `${location.search}#forward${query}` : location.pathname + query);
  followLink();
}

// A change of tab takes the run out of the address; back on Forward it is in it again.
hear("shown", (id) => {
  const run = id === "forward" && location.hash === "#forward" && parts.forward?.stage.run;
  if (run) history.replaceState(null, "", addressOf(run.settings));
});

window.addEventListener("popstate", () => {
  const shown = parts.masthead.tabs.current === "forward" ? parts.forward.stage.run : parts.stage.run;
  if (!shown || addressOf(shown.settings) !== here()) followLink();
});

// A link to a run: its settings are checked by the server, and run.
async function followLink() {
  const [, behind] = location.hash.split("?");
  const query = behind ? `?${behind}` : location.search;
  const keys = new URLSearchParams(query);
  if (![...SETTINGS, ...START].some((key) => keys.has(key))) return;
  try {
    const { settings } = await ask("restore", { query });
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

// A stage, with what can be done with its run; changed(stage) and painted() as the stage calls them.
function makeStage(root, { changed, ...options }) {
  const png = make("button", { type: "button", disabled: true, onclick: () => savePng(png, made.run) }, "Save PNG");
  const made = new Stage(root, {
    more: (run, index) => moreLike(made, run, index),
    painted() {},
    ...options,
    picked(stage) {
      const { run } = stage;
      png.disabled = !run || png.ariaBusy === "true";
      if (run && run.run !== stage.told) {
        stage.told = run.run;
        parts.takeAway?.use(stage); // what was made last
      }
      changed(stage);
      carry(stage);
    },
  });
  const link = make("button", { type: "button", onclick: () => copyLink(link, made.run) }, "Copy link");
  const more = make("button", { type: "button", onclick: () => takeAway(made) }, "More …");
  made.actions.append(link, png, more);
  return made;
}

function takeAway(stage) {
  parts.takeAway.use(stage);
  tell("tab", "take-away");
}

// Variations of an image: noised half-way and denoised again, on Forward.
async function moreLike(stage, run, index) {
  stage.lens.close();
  try {
    const { data, type } = await ask("export", { settings: run.settings, kind: "png", image: index });
    await parts.forward.vary(`data:${type};base64,${data}`, run.names[index]);
  } catch (error) {
    tell("notice", error.message);
  }
}

// Tells on the button itself how it goes.
async function savePng(button, run) {
  const say = (words, busy) => {
    button.textContent = words;
    button.disabled = busy;
    button.setAttribute("aria-busy", busy);
  };
  say("Saving …", true);
  try {
    await parts.takeAway.save("png", "", run.settings);
    say("Saved", false);
  } catch (error) {
    say("Save PNG", false);
    tell("notice", error.message);
  }
  setTimeout(() => button.textContent === "Saved" && say("Save PNG", false), 1500);
}

async function copyLink(button, run) {
  try {
    const { link } = await ask("take_away", {
      settings: run?.settings ?? page.settings,
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
