// Play, scrub, speed and loop over frames that may still be arriving.

import { clamp, icon, make } from "./dom.js";

const PLAY_SECONDS = 4; // for all frames, at speed 1
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const CALM_MS = 700; // between two frames of a run that is followed, for those who want little motion
const SPEEDS = [0.25, 0.5, 1, 2, 4];

export class Transport {
  // paint(index) draws a frame and tells whether it did; words(index) names it; changed() follows every change.
  constructor({ paint, words, changed }) {
    Object.assign(this, { paint, words, changed });
    this.play = make(
      "button",
      { type: "button", class: "round", disabled: true, onclick: () => this.toggle() },
      icon("play"),
      icon("pause"),
    );
    this.scrubber = make("input", {
      type: "range",
      class: "scrubber",
      min: 0,
      max: 1,
      step: 1,
      value: 0,
      "aria-label": "Step shown",
      disabled: true,
      oninput: () => this.show(Number(this.scrubber.value)),
    });
    this.counter = make("output", { class: "counter" });
    const speeds = SPEEDS.map((speed) => make("option", { value: speed, selected: speed === 1 }, `${speed}×`));
    this.speed = make("select", { class: "speed", "aria-label": "Speed", title: "Speed" }, speeds);
    this.loop = make(
      "button",
      {
        type: "button",
        class: "round small",
        "aria-pressed": "false",
        "aria-label": "Loop",
        title: "Loop",
        onclick: () => this.setLoop(!this.looping),
      },
      icon("loop"),
    );
    this.element = make("div", { class: "transport" }, this.play, this.scrubber, this.counter, this.speed, this.loop);
    this.reset(1);
    this.ready = true; // for whoever made it has to be, too
  }

  reset(total) {
    Object.assign(this, {
      total,
      newest: -1,
      shown: -1,
      following: true,
      playing: false,
      resets: (this.resets ?? 0) + 1,
    });
    this.scrubber.max = total;
    this.describe();
  }

  // Frames up to `newest` are there; `running` while more may come.
  arrived(newest, running) {
    Object.assign(this, { newest, running });
    this.animate();
    this.describe();
  }

  // All frames are there at once, from memory: they are played, and not rushed through.
  playOnce(newest) {
    if (this.shown < 0 && !CALM.matches) this.playing = true;
    this.arrived(newest, false);
  }

  toggle() {
    this.playing = !this.playing;
    if (this.playing && this.shown >= this.newest) this.shown = -1;
    this.animate();
    this.describe();
  }

  setLoop(on) {
    this.looping = on;
    this.loop.setAttribute("aria-pressed", on);
  }

  show(index) {
    this.playing = false;
    this.following = this.running && index >= this.newest;
    return this.go(clamp(index, 0, this.newest));
  }

  async go(index) {
    if (index < 0 || !(await this.paint(index))) return;
    this.shown = index;
    this.describe();
  }

  next() {
    if (this.playing) {
      if (this.shown < this.newest) return this.shown + 1;
      if (this.looping && this.newest > 0) return 0;
      this.playing = false;
      this.following = this.running;
      return null;
    }
    if (!this.following || this.shown >= this.newest) return null;
    if (CALM.matches) return this.newest;
    // the noise first; then a little faster when behind, but no frame is jumped over without need
    return this.shown < 0 ? 0 : this.shown + Math.ceil((this.newest - this.shown) / 8);
  }

  async animate() {
    if (this.animating) return;
    this.animating = true;
    for (let next = this.next(); next !== null; next = this.next()) {
      const { shown: before, resets } = this;
      await this.go(next);
      const ended = this.playing && this.looping && this.shown >= this.newest;
      const wait = ended ? 700 : this.delay();
      const paced = this.playing || CALM.matches;
      await new Promise((resolve) => (paced ? setTimeout(resolve, wait) : requestAnimationFrame(resolve)));
      // a frame that cannot be drawn holds nothing up
      if (this.shown === before && this.resets === resets && next !== before) this.shown = next;
    }
    this.animating = false;
    this.describe();
  }

  delay() {
    if (!this.playing) return CALM_MS;
    return clamp((1000 * PLAY_SECONDS) / (this.total + 1), 16, 400) / Number(this.speed.value);
  }

  describe() {
    const index = Math.max(0, this.shown);
    const any = this.newest >= 0;
    this.play.disabled = this.scrubber.disabled = !any;
    this.play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    this.play.dataset.playing = this.playing;
    this.scrubber.value = index;
    this.scrubber.setAttribute("aria-valuetext", any ? this.words(index) : "nothing yet");
    this.scrubber.style.setProperty("--shown", any ? index / this.total : 0);
    this.scrubber.style.setProperty("--loaded", any ? this.newest / this.total : 0);
    this.counter.textContent = any ? `${index} / ${this.total}` : "– / –";
    if (this.ready) this.changed();
  }
}
