// The schedule's curves: alpha-bar over t, with a marker that can be dragged.

import { clamp, make, set } from "./dom.js";

const CHART = { width: 320, height: 130, left: 30, right: 6, top: 8, bottom: 20 };

export class ScheduleChart {
  constructor({ moved }) {
    const { width, height } = CHART;
    this.moved = moved;
    this.curve = make("polyline", { class: "curve" });
    this.rule = make("line", { class: "marker" });
    this.dot = make("circle", { class: "marker", r: 4.5 });
    this.axes = make("g", { class: "axes" });
    this.element = make(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img" },
      this.axes,
      this.curve,
      this.rule,
      this.dot,
    );
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      this.follow(event);
    });
    this.element.addEventListener("pointermove", (event) => event.buttons && this.follow(event));
  }

  follow(event) {
    if (!this.values) return;
    const box = this.element.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * CHART.width;
    const share = (x - CHART.left) / (CHART.width - CHART.left - CHART.right);
    this.moved(Math.round(clamp(share, 0, 1) * (this.values.length - 1)));
  }

  x(t) {
    return CHART.left + (t / Math.max(1, this.values.length - 1)) * (CHART.width - CHART.left - CHART.right);
  }

  y(value) {
    return CHART.top + (1 - value) * (CHART.height - CHART.top - CHART.bottom);
  }

  // values: alpha-bar by t.
  draw(values) {
    this.values = values;
    const last = values.length - 1;
    const some = Array.from({ length: 101 }, (_, i) => Math.round((i * last) / 100));
    this.curve.setAttribute(
      "points",
      some.map((t) => `${this.x(t).toFixed(1)},${this.y(values[t]).toFixed(1)}`).join(" "),
    );
    const floor = CHART.height - CHART.bottom;
    this.axes.replaceChildren(
      ...[0, 0.5, 1].flatMap((value) => [
        make("line", { x1: CHART.left, x2: CHART.width - CHART.right, y1: this.y(value), y2: this.y(value) }),
        make("text", { x: CHART.left - 5, y: this.y(value) + 4, "text-anchor": "end" }, String(value)),
      ]),
      ...[0, 0.25, 0.5, 0.75, 1].map((share) =>
        make(
          "text",
          {
            x: this.x(share * last),
            y: floor + 15,
            "text-anchor": share === 1 ? "end" : share ? "middle" : "start",
          },
          String(Math.round(share * (last + 1))),
        ),
      ),
    );
  }

  mark(t) {
    if (!this.values) return;
    const [x, y] = [this.x(t), this.y(this.values[t])];
    set(this.rule, { x1: x, x2: x, y1: CHART.top, y2: CHART.height - CHART.bottom });
    set(this.dot, { cx: x, cy: y });
    this.element.setAttribute(
      "aria-label",
      `The schedule: alpha-bar falls from 1 to 0 over ${this.values.length} timesteps; at t = ${t} it is ${this.values[t].toPrecision(3)}`,
    );
  }
}
