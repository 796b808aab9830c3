// Take away: the run on the stage as a file, as a link and as code, and the way back from such a file.

import { hear, make, page, parts, range, tell } from "./dom.js";
import { dataUrl, dropZone } from "./intake.js";
import { drawBackdrop, drawTiles } from "./tiles.js";
import { ask, askLatest } from "./wire.js";

const FORMATS = [
  ["png", "PNG", "the images, without loss, their settings inside"],
  ["gif", "GIF", "the denoising, plays everywhere"],
  ["webp", "WebP", "the denoising, smaller"],
  ["mp4", "MP4", "the denoising, as a video"],
];
const CODE = [
  ["diffusers", "diffusers"],
  ["gradio_client", "gradio_client"],
  ["curl", "curl"],
];

export class TakeAway {
  constructor(element, description, { stage }) {
    Object.assign(this, { stage, code: "diffusers", snippets: {} });
    this.canvas = make("canvas", { role: "img", "aria-label": "No run yet" });
    this.chips = make("p", { class: "chips" });
    this.which = make("select", { class: "select", "aria-label": "Which images", onchange: () => this.draw() });
    this.files = FORMATS.map(([kind, name, about]) =>
      make(
        "button",
        { type: "button", class: "file", "data-kind": kind, onclick: () => this.download(kind) },
        make("b", {}, name),
        make("span", {}, about),
      ),
    );
    this.status = make("p", { class: "line", role: "status" });
    this.link = make("input", {
      class: "search",
      readonly: true,
      "aria-label": "Link to this run",
      onfocus: () => this.link.select(),
    });
    this.codeButtons = CODE.map(([kind, name]) =>
      make(
        "button",
        { type: "button", "aria-pressed": String(kind === this.code), onclick: () => this.showCode(kind) },
        name,
      ),
    );
    this.pre = make("pre", { tabindex: 0, "aria-label": "Code" });
    const drop = dropZone({
      label: "Drop a PNG from here",
      hint: "or press to choose one: its settings come back",
      given: (file) => this.restore(file),
    });
    const copy = (what) =>
      make(
        "button",
        { type: "button", class: "pill", onclick: (event) => this.copy(what(), event.currentTarget) },
        "Copy",
      );
    element.replaceChildren(
      make(
        "div",
        { class: "takeaway" },
        make(
          "section",
          { class: "stage shelf", "aria-label": "What is on the stage" },
          make("div", { class: "shelf-screen" }, this.canvas),
          this.chips,
        ),
        make(
          "div",
          { class: "ways" },
          make(
            "section",
            { class: "card" },
            make("h2", {}, "A file"),
            make("div", {}, this.which),
            make("div", { class: "files" }, this.files),
            this.status,
          ),
          make(
            "section",
            { class: "card" },
            make("h2", {}, "A link"),
            make("p", { class: "line" }, "Opens this page and makes the same run again, to the byte."),
            make(
              "div",
              { class: "row" },
              this.link,
              copy(() => this.link.value),
            ),
          ),
          make(
            "section",
            { class: "card" },
            make(
              "div",
              { class: "code-top" },
              make("h2", {}, "Code"),
              make("div", { class: "segments", role: "group", "aria-label": "Language" }, this.codeButtons),
              copy(() => this.pre.textContent),
            ),
            this.pre,
          ),
          make("section", { class: "card" }, make("h2", {}, "And back"), drop),
        ),
      ),
    );
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.ask = askLatest(
      "take_away",
      (answer) => this.answered(answer),
      (error) => (this.status.textContent = error.message),
    );
    hear("run", () => this.refresh());
    hear("settings", () => this.refresh());
    hear("painted", () => this.draw());
    hear("shown", () => this.refresh());
    hear("backdrop", () => this.draw());
    this.refresh();
  }

  // The run that is taken away: of Generate or of Forward.
  use(stage) {
    this.stage = stage;
    this.refresh();
    this.draw();
  }

  // The settings of what is on the stage or, before a run, of the form.
  get settings() {
    return this.stage.run?.settings ?? page.settings;
  }

  // Asks for link and code only while it is seen.
  refresh() {
    const key = JSON.stringify(this.settings);
    if (parts.masthead?.tabs?.current !== "take-away" || !this.settings || key === this.key) return;
    this.key = key;
    this.draw();
    const count = this.settings.num_images;
    this.which.replaceChildren(
      make("option", { value: "" }, count === 1 ? "The image" : `All ${count} images`),
      ...(count > 1 ? range(1, count).map((i) => make("option", { value: i - 1 }, `Image ${i}`)) : []),
    );
    this.ask({ settings: this.settings, url: location.origin + location.pathname });
  }

  answered({ link, snippets, settings }) {
    this.link.value = link;
    this.snippets = snippets;
    this.codeButtons.forEach((button, i) => (button.hidden = !snippets[CODE[i][0]]));
    this.showCode(snippets[this.code] ? this.code : Object.keys(snippets)[0]);
    const { prompt, class_name, num_images, sampler, steps, seed, guidance_scale, guidance_interval, t } = settings;
    const words = [
      `${num_images} ${num_images === 1 ? "image" : "images"}`,
      class_name === "any" ? null : class_name,
      prompt ? `“${prompt}”` : null,
      page.description.samplers.find(({ value }) => value === sampler)?.title ?? sampler,
      `${steps} steps`,
      guidance_scale === 1 ? null : `guidance ${guidance_scale}`,
      guidance_scale === 1 || !guidance_interval ? null : `guided timesteps ${guidance_interval.join(" to ")}`,
      `seed ${seed}`,
      t === undefined ? null : `from t = ${t}`,
    ];
    this.chips.replaceChildren(...words.filter(Boolean).map((word) => make("span", {}, word)));
  }

  showCode(kind) {
    this.code = kind;
    this.pre.textContent = this.snippets[kind] ?? "";
    this.codeButtons.forEach((button, i) => button.setAttribute("aria-pressed", CODE[i][0] === kind));
  }

  draw() {
    const { run, film, sheet } = this.stage;
    if (!run || !sheet) return drawBackdrop(this.canvas);
    drawTiles(
      this.canvas,
      sheet,
      run.tile,
      this.stage.view,
      this.which.value ? [Number(this.which.value)] : run.seeds.map((_, i) => i),
    );
    this.canvas.setAttribute(
      "aria-label",
      `${this.which.value ? `image ${Number(this.which.value) + 1} of ` : ""}${run.seeds.length} images, ${this.stage.stepText(Math.min(film.total, this.stage.drawn))}`,
    );
    return null;
  }

  async download(kind, image = this.which.value) {
    const button = this.files.find((file) => file.dataset.kind === kind);
    this.files.forEach((file) => (file.disabled = true));
    this.status.textContent = `Making the ${kind.toUpperCase()} …`;
    try {
      this.status.textContent = await this.save(kind, image);
    } catch (error) {
      this.status.textContent = error.message;
    }
    this.files.forEach((file) => (file.disabled = false));
    button.focus({ preventScroll: true });
  }

  // Hands a file to the browser and tells its name and size; image: number of one, "" for all.
  async save(kind, image = "", settings = this.settings) {
    const { name, type, data } = await ask("export", {
      settings,
      kind,
      ...(image !== "" && { image: Number(image) }),
    });
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
    save(new Blob([bytes], { type }), name);
    return `${name}: ${size(bytes.length)}`;
  }

  async copy(text, button) {
    await copyText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }

  async restore(file) {
    try {
      const { settings } = await ask("restore", { file: await dataUrl(file) });
      tell("restore", { settings, run: true });
    } catch (error) {
      this.status.textContent = error.message;
      tell("notice", error.message);
    }
  }
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // not allowed here, such as in a frame: the old way
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
