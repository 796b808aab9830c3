// Earlier runs: a strip of the last ones, kept in this browser alone; a press brings one back.

import { make } from "./dom.js";
import { drawTiles } from "./tiles.js";
import { kept, keep } from "./memory.js";

const RUNS = 12;
const LONGEST = 8000; // characters of an address that is kept
const SIDE = 72; // pixels of the picture of a run

export class Earlier {
  // open(query, tab): show the run of that address.
  constructor(element, { open }) {
    Object.assign(this, { element, open });
    this.strip = make("div", { class: "earlier-strip", role: "group", "aria-label": "Earlier runs" });
    const forget = make("button", { type: "button", class: "pill", onclick: () => this.write([]) }, "Forget them");
    element.className = "earlier";
    element.append(make("div", { class: "earlier-top" }, make("h2", {}, "Earlier runs"), make("span", {}, "in this browser only"), forget), this.strip);
    window.addEventListener("storage", () => this.draw()); // another tab
    this.draw();
  }

  get runs() {
    const runs = kept("runs");
    return Array.isArray(runs) ? runs.filter((run) => run?.query && run.src && run.words) : [];
  }

  // A run that has ended: its place in the address and its finished images.
  async add(query, tab, { run, film }, words) {
    const sheet = await film.picture(film.frames[film.total]);
    if (!sheet || query.length > LONGEST) return;
    const canvas = make("canvas", { class: "unseen" });
    Object.assign(canvas.style, { width: `${SIDE}px`, height: `${SIDE}px`, clipPath: "inset(50%)" });
    document.body.append(canvas); // for its size
    const some = run.seeds.length < 4 ? 1 : run.seeds.length < 9 ? 4 : 9;
    drawTiles(canvas, sheet, run.tile, "x_t", run.seeds.map((_, i) => i).slice(0, some));
    const src = canvas.toDataURL("image/webp", 0.8);
    canvas.remove();
    this.write([{ query, tab, words, src }, ...this.runs.filter((other) => other.query !== query)].slice(0, RUNS));
  }

  write(runs) {
    keep("runs", runs);
    this.draw();
  }

  draw() {
    const { runs } = this;
    this.element.hidden = !runs.length;
    this.strip.replaceChildren(
      ...runs.map(({ query, tab, words, src }) =>
        make(
          "button",
          { type: "button", title: words, "aria-label": `Again: ${words}`, onclick: () => this.open(query, tab) },
          make("img", { src, alt: "", width: SIDE, height: SIDE }),
        ),
      ),
    );
  }
}
