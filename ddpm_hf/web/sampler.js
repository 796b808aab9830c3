// Sampling in the browser: the deterministic and stochastic solvers that a model can carry, for x in [-1, 1].
// DPM-Solver++ 2M and its SDE (Lu et al. 2022), as diffusers' DPMSolverMultistepScheduler takes them with trailing
// timesteps; DDIM (Song et al. 2020) is the first-order one.

/** The timesteps of `steps` steps, falling, spaced from the last one: whole numbers in [0, T - 1]. */
export function timestepsOf(total, steps) {
  return Array.from({ length: steps }, (_, i) => Math.round(total - (i * total) / steps) - 1);
}

/** alpha, sigma and lambda = log(alpha / sigma) of a timestep; of the finished image where it is below 0. */
function level(alphasCumprod, timestep) {
  if (timestep < 0) return { alpha: 1, sigma: 0, lambda: Infinity };
  const alphaBar = alphasCumprod[timestep];
  const [alpha, sigma] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
  return { alpha, sigma, lambda: Math.log(alpha / sigma) };
}

/** x_0 from what the network predicts at x. */
function predictedImage(kind, prediction, x, { alpha, sigma }) {
  if (kind === "sample") return prediction;
  const of = kind === "epsilon" ? (p, v) => (v - sigma * p) / alpha : (p, v) => alpha * v - sigma * p;
  return prediction.map((p, i) => of(p, x[i]));
}

/**
 * Denoise `x`, a Float32Array of all images, in place of the model's scheduler.
 *
 * settings: model.json. choice: {sampler, steps, guidance, interval, labels}, labels null without classes.
 * network(x, timestep, labels) resolves to the prediction, a Float32Array. noise(length) gives fresh normal numbers.
 * Yields {index, timestep, x, image}: x after the step, and the x_0 that was predicted before it.
 */
export async function* denoise(settings, choice, x, network, noise) {
  const { alphas_cumprod: alphasCumprod, prediction_type: kind, null_label: nullLabel } = settings;
  const times = timestepsOf(alphasCumprod.length, choice.steps);
  const [secondOrder, sde] = [choice.sampler !== "ddim", choice.sampler === "dpm-sde"];
  const [low, high] = choice.interval ?? [0, alphasCumprod.length];
  let before = null; // {image, lambda} of the step before
  for (const [index, timestep] of times.entries()) {
    let prediction = await network(x, timestep, choice.labels);
    if (choice.labels && choice.guidance !== 1 && low <= timestep && timestep <= high) {
      const plain = await network(x, timestep, choice.labels.map(() => nullLabel));
      prediction = prediction.map((p, i) => plain[i] + choice.guidance * (p - plain[i]));
    }
    const from = level(alphasCumprod, timestep);
    const to = level(alphasCumprod, times[index + 1] ?? -1);
    let image = predictedImage(kind, prediction, x, from);
    if (secondOrder) image = image.map((value) => Math.min(1, Math.max(-1, value)));
    const h = to.lambda - from.lambda;
    const decay = Math.exp(-h) * (sde ? Math.exp(-h) : 1);
    const keep = (to.sigma / from.sigma) * (sde ? Math.exp(-h) : 1);
    const take = to.alpha * (1 - decay);
    let target = image;
    if (secondOrder && before && to.sigma > 0) {
      const ratio = (from.lambda - before.lambda) / h;
      target = image.map((value, i) => value + (value - before.image[i]) / (2 * ratio));
    }
    const fresh = sde && to.sigma > 0 ? noise(x.length) : null;
    const spread = to.sigma * Math.sqrt(1 - decay);
    x = x.map((value, i) => (to.sigma > 0 ? keep * value : 0) + take * target[i] + (fresh ? spread * fresh[i] : 0));
    before = { image, lambda: from.lambda };
    yield { index, timestep, x, image };
  }
}

/** A source of normal numbers that depends on its seed alone (mulberry32, Box and Muller 1958). */
export function normalNumbers(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** Noise on the way from `a` to `b`, on the sphere (Shoemake 1985): share 0 is a, share 1 is b. */
export function slerp(a, b, share) {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) [dot, aa, bb] = [dot + a[i] * b[i], aa + a[i] * a[i], bb + b[i] * b[i]];
  const angle = Math.acos(Math.min(1, Math.max(-1, dot / Math.sqrt(aa * bb))));
  if (angle < 1e-6) return a.slice();
  const [u, v] = [Math.sin((1 - share) * angle), Math.sin(share * angle)].map((s) => s / Math.sin(angle));
  return a.map((value, i) => u * value + v * b[i]);
}
