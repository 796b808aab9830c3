// The stage's script. Gradio calls it once with: element, trigger, props, server, upload, watch.
// It keeps every frame of the newest run, so that scrubbing and playing need no server.

const part = (name) => element.querySelector(`[data-part="${name}"]`);
const root = element.querySelector(".stage");
const canvas = part("canvas");
const scrubber = part("scrubber");
const play = part("play");
const PLAY_SECONDS = 4; // for all frames of a run
const QUIET_SECONDS = 10; // without news, after which the time left would be a lie
const GAP = 8; // CSS pixels between images, up to twice as many where there is room

let run = null; // the value of the newest run, without its frames
let frames = []; // by index: { t, at, src, image }
let view = "x_t";
let shown = -1; // index of the frame on the canvas, -1 for none of this run
let following = true; // new frames are shown as they come
let playing = false;
let animating = false;
let stopPressed = false;
let lastNews = 0; // when the newest value came, in ms
let beforeWaiting = "empty";
let pointedAt = ""; // words on the image under the pointer
let layout = null; // where the images are on the canvas, for pointing at them

const newest = () => frames.length - 1;
const running = () => root.dataset.state === "running";

// ---- what arrives

function receive(value) {
  if (!value || !value.run) return;
  if (!run || value.run !== run.run) begin(value);
  const { frames: arrived, ...head } = value;
  // what was on its way when Stop was pressed does not start the run again
  if (stopPressed && head.state === "running") head.state = "stopped";
  run = head;
  lastNews = performance.now();
  for (const [key, frame] of Object.entries(arrived)) frames[Number(key)] ??= { ...frame };
  setState(run.state);
  animate();
}

function begin(value) {
  frames = [];
  shown = -1;
  following = true;
  playing = false;
  scrubber.max = value.total;
}

function setState(state) {
  const changed = root.dataset.state !== state;
  root.dataset.state = state;
  describe();
  if (changed || state === "done") part("live").textContent = announcement(state);
}

function announcement(state) {
  if (state === "waiting") return "Waiting for the model";
  if (state === "running") return "Denoising";
  if (state === "done") return `Done: ${run.total} steps in ${seconds(run.seconds)}`;
  if (state === "stopped") return run ? `Stopped at step ${Math.max(0, newest())}` : "Stopped";
  return state === "failed" ? "Failed" : "";
}

// ---- drawing

function imageOf(frame) {
  if (!frame.image) {
    frame.image = new Image();
    frame.image.src = frame.src;
  }
  return frame.image;
}

async function paint(index) {
  const frame = frames[index];
  if (!frame) return;
  const image = imageOf(frame);
  try {
    await image.decode();
  } catch {
    return; // a later frame, or a new run, takes its place
  }
  if (frames[index] !== frame) return;
  shown = index;
  draw(image);
  describe();
}

// The largest whole number of device pixels for a pixel with which `count` tiles fit: every pixel is the same size.
function arrange(count, [width, height]) {
  const ratio = window.devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  const room = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  let best = null;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const fit = (gap) => Math.min((room[0] - gap * (columns - 1)) / (columns * width), (room[1] - gap * (rows - 1)) / (rows * height));
    const gap = Math.max(1, Math.round(Math.min(GAP * ratio, (fit(0) * width) / 10)));
    const scale = fit(gap) >= 1 ? Math.floor(fit(gap)) : fit(gap);
    if (!best || scale > best.scale) best = { columns, rows, gap, scale };
  }
  const slack = (n, side, available) => (n > 1 ? Math.floor((available - n * side * best.scale) / (n - 1)) : Infinity);
  const widest = Math.min(slack(best.columns, width, room[0]), slack(best.rows, height, room[1]), 2 * GAP * ratio);
  best.gap = Math.max(best.gap, widest);
  const used = (n, side) => n * side * best.scale + (n - 1) * best.gap;
  const left = Math.floor((room[0] - used(best.columns, width)) / 2);
  const top = Math.floor((room[1] - used(best.rows, height)) / 2);
  return { ...best, room, left, top, ratio, width: width * best.scale, height: height * best.scale };
}

function place(index) {
  const column = index % layout.columns;
  const row = Math.floor(index / layout.columns);
  return [layout.left + column * (layout.width + layout.gap), layout.top + row * (layout.height + layout.gap)];
}

function prepare(count, tile) {
  layout = arrange(count, tile);
  if (canvas.width !== layout.room[0] || canvas.height !== layout.room[1]) [canvas.width, canvas.height] = layout.room;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, canvas.width, canvas.height);
  return context;
}

function draw(image) {
  const [width, height] = run.tile;
  const context = prepare(run.seeds.length, run.tile);
  const columns = Math.round(image.naturalWidth / width);
  const lower = view === "x_0" ? image.naturalHeight / 2 : 0;
  run.seeds.forEach((_, i) => {
    const x = (i % columns) * width;
    const y = Math.floor(i / columns) * height + lower;
    context.drawImage(image, x, y, width, height, ...place(i), layout.width, layout.height);
  });
}

// Before the first run: noise, always the same.
function drawEmpty() {
  const tile = [16, 16];
  const context = prepare(16, tile);
  const sheet = document.createElement("canvas");
  sheet.width = tile[0];
  sheet.height = tile[1] * 16;
  const pixels = sheet.getContext("2d").createImageData(sheet.width, sheet.height);
  let state = 7;
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const normal = Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
    pixels.data.fill(127 + 64 * normal, i, i + 3);
    pixels.data[i + 3] = 255;
  }
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  for (let i = 0; i < 16; i++) context.drawImage(sheet, 0, i * tile[1], ...tile, ...place(i), layout.width, layout.height);
}

function redraw() {
  if (frames[shown]) paint(shown);
  else if (!run) drawEmpty();
}

// ---- moving through the frames

function nextFrame() {
  if (playing) {
    if (shown < newest()) return shown + 1;
    playing = false;
    following = running();
    return null;
  }
  // a little faster when behind, but no frame is jumped over without need
  if (following && shown < newest()) return Math.min(newest(), shown + Math.ceil((newest() - shown) / 8));
  return null;
}

async function animate() {
  if (animating) return;
  animating = true;
  for (let next = nextFrame(); next !== null; next = nextFrame()) {
    await paint(next);
    await new Promise((resolve) => (playing ? setTimeout(resolve, playDelay()) : requestAnimationFrame(resolve)));
  }
  animating = false;
  describe();
}

const playDelay = () => Math.min(400, Math.max(16, (1000 * PLAY_SECONDS) / frames.length));

function show(index) {
  playing = false;
  following = running() && index >= newest();
  paint(Math.min(Math.max(0, index), newest()));
}

function togglePlay() {
  playing = !playing;
  if (playing && shown >= newest()) shown = -1;
  animate();
  describe();
}

// ---- words

function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  return value < 90 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`;
}

function timeText(state) {
  if (state !== "running") {
    const word = { done: "in", stopped: "stopped after", failed: "failed after" }[state];
    return `${word} ${seconds(run.seconds)}`;
  }
  const quiet = (performance.now() - lastNews) / 1000;
  if (quiet > QUIET_SECONDS) return `no news for ${seconds(quiet)}`;
  // told from the steps after the first, which is slower than the rest
  const [first, last] = [frames[1], frames[newest()]];
  if (!first || newest() < 3) return "";
  const each = (last.at - first.at) / (newest() - 1);
  return `${seconds(each * (run.total - newest()))} left`;
}

function stepText(index) {
  // two network calls a step, where the sampler makes so many
  const word = run.total === run.steps ? "step" : "call";
  return index === 0 ? "noise" : `${word} ${index} of ${run.total}`;
}

function describe() {
  const state = root.dataset.state;
  part("empty").hidden = run !== null;
  if (state === "waiting") {
    part("progress").textContent = "waiting for the model …";
    part("time").textContent = "";
  } else if (run && pointedAt) {
    part("progress").textContent = pointedAt;
    part("time").textContent = "";
  } else if (run) {
    const index = Math.max(0, shown);
    const t = frames[index]?.t;
    part("progress").textContent = stepText(index) + (t === undefined ? "" : ` · t = ${Math.round(t)}`);
    part("time").textContent = timeText(state);
  } else {
    part("progress").textContent = "";
  }
  describeControls();
}

function describeControls() {
  const any = frames.length > 0;
  const total = run ? run.total : 0;
  const index = Math.max(0, shown);
  play.disabled = scrubber.disabled = !any;
  play.setAttribute("aria-label", playing ? "Pause" : "Play");
  play.dataset.playing = playing;
  if (run) scrubber.value = index;
  scrubber.setAttribute("aria-valuetext", run ? stepText(index) : "nothing yet");
  scrubber.style.setProperty("--shown", total ? index / total : 0);
  scrubber.style.setProperty("--loaded", total ? Math.max(0, newest()) / total : 0);
  part("step").textContent = `${index} / ${total}`;
  root.dataset.shown = index;
  root.dataset.frames = frames.filter(Boolean).length;
  if (run) {
    const what = view === "x_t" ? "noisy images" : "predicted images";
    canvas.setAttribute("aria-label", `${run.seeds.length} ${what}, ${stepText(index)}`);
  }
}

function pointed(event) {
  if (!run || !layout) return "";
  const box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) * layout.ratio;
  const y = (event.clientY - box.top) * layout.ratio;
  const hit = run.seeds.findIndex((_, i) => {
    const [left, top] = place(i);
    return x >= left && x < left + layout.width && y >= top && y < top + layout.height;
  });
  if (hit < 0) return "";
  return [`image ${hit + 1}`, run.names[hit], `seed ${run.seeds[hit]}`].filter(Boolean).join(" · ");
}

// ---- events

for (const button of element.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => {
    view = button.dataset.view;
    for (const other of element.querySelectorAll("[data-view]")) other.setAttribute("aria-pressed", other === button);
    root.dataset.view = view;
    redraw();
  });
}
play.addEventListener("click", togglePlay);
scrubber.addEventListener("input", () => show(Number(scrubber.value)));
for (const name of ["pointermove", "pointerdown", "pointerleave"]) {
  canvas.addEventListener(name, (event) => {
    pointedAt = name === "pointerleave" ? "" : pointed(event);
    describe();
  });
}
new ResizeObserver(redraw).observe(canvas);

// What the page does to the stage without the server: see page.py.
const signals = {
  submit() {
    stopPressed = false;
    beforeWaiting = root.dataset.state;
    setState("waiting");
  },
  stop() {
    stopPressed = true;
    end("stopped");
  },
  failure() {
    end("failed");
  },
};

function end(state) {
  if (root.dataset.state === "waiting") setState(beforeWaiting);
  if (running()) setState(state);
}
window.addEventListener("stage", (event) => signals[event.detail]?.());

// A connection that is lost says nothing.
const clock = setInterval(() => {
  if (!element.isConnected) clearInterval(clock);
  else if (running()) describe();
}, 1000);

watch("value", () => receive(props.value));
root.dataset.view = view;
receive(props.value);
