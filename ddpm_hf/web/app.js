// The page of export-web: pictures follow every control; the newest setting wins, and nothing queues up.
import { denoise, normalNumbers, slerp } from "./sampler.js";

const COUNT = 16;
const COLUMNS = 4;
const SCALE = 4; // canvas pixels of a picture's pixel
const element = (id) => document.getElementById(id);

/** onnxruntime-web with WebGPU where the browser has it, else WebAssembly, from this folder. */
async function openNetwork(settings) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const ort = await import(adapter ? "./runtime/ort.webgpu.min.mjs" : "./runtime/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency ?? 1) : 1;
  const options = { executionProviders: adapter ? ["webgpu", "wasm"] : ["wasm"] };
  const session = await ort.InferenceSession.create("./model.onnx", options);
  return async (x, timestep, labels) => {
    const count = x.length / (settings.channels * settings.sample_size ** 2);
    const shape = [count, settings.channels, settings.sample_size, settings.sample_size];
    const feeds = {
      sample: new ort.Tensor("float32", x, shape),
      timestep: new ort.Tensor("float32", new Float32Array(count).fill(timestep), [count]),
    };
    if (labels) feeds.class_labels = new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [count]);
    const results = await session.run(feeds);
    return new Float32Array(results[session.outputNames[0]].data);
  };
}

/** The noise of every picture: picture i depends on its seed, seed + i, alone. */
function startNoise(settings, seed, share) {
  const length = settings.channels * settings.sample_size ** 2;
  const noiseOf = (of) => Float32Array.from({ length }, normalNumbers(of));
  const all = new Float32Array(COUNT * length);
  for (let i = 0; i < COUNT; i++) {
    all.set(share ? slerp(noiseOf(seed + i), noiseOf(seed + i + COUNT), share) : noiseOf(seed + i), i * length);
  }
  return all;
}

/** Draw pictures x, in [-1, 1], as a grid; cropped or scaled to the model's output size. */
function draw(settings, x) {
  const { channels, sample_size: size, height, width, resize } = settings;
  const canvas = element("pictures");
  const rows = Math.ceil(COUNT / COLUMNS);
  if (canvas.width !== COLUMNS * width * SCALE) {
    [canvas.width, canvas.height] = [COLUMNS * width * SCALE, rows * height * SCALE];
  }
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const one = new OffscreenCanvas(size, size);
  const own = one.getContext("2d");
  for (let n = 0; n < COUNT; n++) {
    const pixels = own.createImageData(size, size);
    for (let p = 0; p < size * size; p++) {
      for (let c = 0; c < 3; c++) {
        const value = x[(n * channels + (channels === 1 ? 0 : c)) * size * size + p];
        pixels.data[4 * p + c] = Math.round((Math.min(1, Math.max(-1, value)) + 1) * 127.5);
      }
      pixels.data[4 * p + 3] = 255;
    }
    own.putImageData(pixels, 0, 0);
    const cut = resize ? [0, 0, size, size] : [(size - width) >> 1, (size - height) >> 1, width, height];
    const place = [(n % COLUMNS) * width, Math.floor(n / COLUMNS) * height, width, height].map((v) => v * SCALE);
    context.drawImage(one, ...cut, ...place);
  }
}

/** What the controls say. */
function choose(settings) {
  const chosen = document.querySelector("input[name=class]:checked")?.value ?? "all";
  const label = (i) => (chosen === "all" ? i % settings.classes.length : Number(chosen));
  return {
    sampler: settings.sampler,
    steps: Number(element("steps").value),
    guidance: settings.guided ? Number(element("guidance").value) : 1,
    interval: settings.guidance_interval,
    labels: settings.classes.length ? Array.from({ length: COUNT }, (_, i) => label(i)) : null,
    seed: Number(element("seed").value) || 0,
    share: Number(element("wander").value),
  };
}

function buildControls(settings, changed) {
  element("title").textContent = settings.title;
  document.title = settings.title;
  element("steps").value = settings.steps;
  element("steps").max = Math.max(settings.steps, Math.min(50, settings.alphas_cumprod.length));
  element("guidance").value = settings.guidance_scale;
  element("guidance").max = Math.max(6, settings.guidance_scale);
  element("guided").hidden = !settings.guided;
  if (settings.classes.length) {
    element("classes").hidden = false;
    for (const [value, name] of [["all", "one of each"], ...settings.classes.map((name, i) => [i, name])]) {
      const [label, input] = [document.createElement("label"), document.createElement("input")];
      Object.assign(input, { type: "radio", name: "class", value, checked: value === "all" });
      label.append(input, String(name));
      element("classes").append(label);
    }
  }
  const show = () => {
    for (const output of document.querySelectorAll("output")) output.value = element(output.htmlFor.value).value;
  };
  show();
  element("controls").addEventListener("input", () => (show(), changed()));
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  element("dice").addEventListener("click", () => {
    element("seed").value = Math.floor(Math.random() * 1e6);
    element("wander").value = 0;
    show();
    changed();
  });
  element("controls").hidden = false;
}

async function start() {
  const settings = await (await fetch("./model.json")).json();
  const network = await openNetwork(settings);
  let [wanted, working] = [0, false];
  async function changed() {
    wanted += 1;
    if (working) return; // the run that goes on sees that it is out of date
    working = true;
    for (let run = 0; run !== wanted; ) {
      run = wanted;
      const [choice, began] = [choose(settings), performance.now()];
      const normal = normalNumbers(choice.seed + 0x5eed);
      const noise = (length) => Float32Array.from({ length }, normal);
      const x = startNoise(settings, choice.seed, choice.share);
      for await (const step of denoise(settings, choice, x, network, noise)) {
        draw(settings, step.index === choice.steps - 1 ? step.x : step.image);
        element("status").textContent = `Step ${step.index + 1} of ${choice.steps}`;
        await new Promise(requestAnimationFrame);
        if (run !== wanted) break;
      }
      if (run === wanted) {
        const seconds = ((performance.now() - began) / 1000).toFixed(2);
        element("status").textContent = `${COUNT} pictures in ${seconds} s`;
      }
    }
    working = false;
  }
  buildControls(settings, changed);
  globalThis.sampleFrom = async (x, choice, noise) => { // for tests and the curious: x as numbers, the image back
    let last = null;
    for await (const step of denoise(settings, choice, Float32Array.from(x), network, noise)) last = step.x;
    return Array.from(last);
  };
  await changed();
}

start().catch((error) => {
  element("status").textContent = `The model cannot be shown here: ${error.message}`;
  console.error(error);
});
