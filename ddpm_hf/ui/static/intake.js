// Pictures from the visitor: dropped, chosen or pasted, made small here before they travel.

import { make } from "./dom.js";

const MAX_SIDE = 512;

// A place to drop a file on or to choose one; given(file).
export function dropZone({ label, hint, given }) {
  const input = make("input", {
    type: "file",
    accept: "image/*",
    "aria-label": label,
    onchange: () => input.files[0] && given(input.files[0]).finally(() => (input.value = "")),
  });
  return make("label", { class: "drop" }, input, make("b", {}, label), make("span", {}, hint));
}

export function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("This file cannot be read."));
    reader.readAsDataURL(file);
  });
}

// A picture file as a small PNG, as a data URL: less to send, and nothing but its pixels.
export async function smallPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("This file is no picture that your browser can read: take a PNG or a JPEG.");
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(2, Math.round(side * scale)));
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas.toDataURL("image/png");
}

// Whether a file is a PNG with settings of a run in it, as far as can be told from its bytes.
export async function holdsSettings(file) {
  if (file.size > 5e6) return false;
  const text = new TextDecoder("latin1").decode(await file.arrayBuffer());
  return text.startsWith("PNG", 1) && text.includes("tEXtddpm_hf\0");
}

// Files dropped anywhere on the page go to the part that is shown: given(file, tab).
export function watchDrops(given) {
  const has = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const mark = (on) => document.documentElement.toggleAttribute("data-dropping", on);
  for (const name of ["dragenter", "dragover"]) {
    window.addEventListener(name, (event) => {
      if (!has(event)) return;
      event.preventDefault();
      mark(true);
    });
  }
  window.addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
  window.addEventListener("drop", (event) => {
    if (!has(event)) return;
    event.preventDefault();
    mark(false);
    const [file] = event.dataTransfer.files;
    if (file) given(file);
  });
}
