// Pictures on a canvas: every pixel of a picture is the same whole number of device pixels wide, so all stay crisp.

import { make, tell } from "./dom.js";

const GAPS = [8, 4, 2, 1]; // CSS pixels between pictures, the first with which they are largest
const WIDEST_GAP = 16; // where there is room

// Columns, rows, gap and scale with which `count` tiles of a size are largest in some room, in device pixels.
export function largest(room, ratio, count, [width, height]) {
  let best = null;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    for (const gap of count > 1 ? GAPS.map((pixels) => Math.round(pixels * ratio)) : [0]) {
      const fit = Math.min(
        (room[0] - gap * (columns - 1)) / (columns * width),
        (room[1] - gap * (rows - 1)) / (rows * height),
      );
      const scale = fit >= 1 ? Math.floor(fit) : fit;
      const squarer = best && scale === best.scale && Math.abs(columns - rows) < Math.abs(best.columns - best.rows);
      if (!best || scale > best.scale || squarer) best = { columns, rows, gap, scale };
    }
  }
  return best;
}

// Where the tiles go on a canvas.
function arrange(canvas, count, [width, height]) {
  const ratio = window.devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  const room = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  const best = largest(room, ratio, count, [width, height]);
  const slack = (n, side, available) => (n > 1 ? Math.floor((available - n * side * best.scale) / (n - 1)) : Infinity);
  const widest = Math.min(slack(best.columns, width, room[0]), slack(best.rows, height, room[1]), WIDEST_GAP * ratio);
  best.gap = Math.max(best.gap, Number.isFinite(widest) ? widest : 0);
  const used = (n, side) => n * side * best.scale + (n - 1) * best.gap;
  const left = Math.floor((room[0] - used(best.columns, width)) / 2);
  const top = Math.floor((room[1] - used(best.rows, height)) / 2);
  return { ...best, room, left, top, ratio, width: width * best.scale, height: height * best.scale };
}

export function place(layout, index) {
  const column = index % layout.columns;
  const row = Math.floor(index / layout.columns);
  return [layout.left + column * (layout.width + layout.gap), layout.top + row * (layout.height + layout.gap)];
}

function clearFor(canvas, layout) {
  if (canvas.width !== layout.room[0] || canvas.height !== layout.room[1]) [canvas.width, canvas.height] = layout.room;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, canvas.width, canvas.height);
  return context;
}

// Where image `index` lies on a frame: as [x, y] in its pixels.
function source(sheet, tile, view, index) {
  const columns = Math.round(sheet.naturalWidth / tile[0]);
  const lower = view === "x_0" ? sheet.naturalHeight / 2 : 0;
  return [(index % columns) * tile[0], Math.floor(index / columns) * tile[1] + lower];
}

// Draws images of a frame; returns the layout.
export function drawTiles(canvas, sheet, tile, view, indices) {
  const layout = arrange(canvas, indices.length, tile);
  if (layout.room[0] < 2 || layout.room[1] < 2) return layout; // not on screen
  const context = clearFor(canvas, layout);
  indices.forEach((index, at) => {
    context.drawImage(
      sheet,
      ...source(sheet, tile, view, index),
      ...tile,
      ...place(layout, at),
      layout.width,
      layout.height,
    );
  });
  return layout;
}

// One image of a frame, a pixel for a pixel: the style sheet scales the canvas.
export function drawImage(canvas, sheet, tile, view, index) {
  [canvas.width, canvas.height] = tile;
  canvas.getContext("2d").drawImage(sheet, ...source(sheet, tile, view, index), ...tile, 0, 0, ...tile);
}

// Noise, always the same.
export function drawNoise(canvas, count, tile = [16, 16]) {
  const layout = arrange(canvas, count, tile);
  if (layout.room[0] < 2 || layout.room[1] < 2) return layout;
  const context = clearFor(canvas, layout);
  const sheet = noiseSheet(tile, count);
  for (let i = 0; i < count; i++) {
    context.drawImage(sheet, 0, i * tile[1], ...tile, ...place(layout, i), layout.width, layout.height);
  }
  return layout;
}

function noiseSheet([width, height], count) {
  const sheet = make("canvas", { width, height: height * count });
  const pixels = sheet.getContext("2d").createImageData(sheet.width, sheet.height);
  const normal = normals();
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data.fill(127 + 64 * normal(), i, i + 3);
    pixels.data[i + 3] = 255;
  }
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  return sheet;
}

// Normally distributed numbers, always the same.
function normals() {
  let state = 7;
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
  return () => Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
}

// ---- what a stage shows before its first run: pictures of the data set, from noise (the first tile) to clear (the last)

const BACKDROP = { tiles: 16, longest: 64, clear: 3 }; // longest: pixels of a side; clear: tiles without noise
export let backdrop = null; // { tile, sheet }: the tiles below each other

export async function makeBackdrop({ examples, schedule }) {
  backdrop = null;
  try {
    const images = await Promise.all(examples.map(({ src }) => loaded(src)));
    if (images.length) backdrop = noisedSheet(images, schedule.alpha_bar);
  } catch {
    // noise will do
  }
  tell("backdrop");
}

async function loaded(src) {
  const image = new Image();
  image.src = src;
  await image.decode();
  return image;
}

// x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon, t falling from tile to tile
function noisedSheet(images, alphaBar) {
  const { tiles, longest, clear } = BACKDROP;
  const { naturalWidth, naturalHeight } = images[0];
  const scale = Math.min(1, longest / Math.max(naturalWidth, naturalHeight));
  const tile = [naturalWidth, naturalHeight].map((side) => Math.max(1, Math.round(side * scale)));
  const sheet = make("canvas", { width: tile[0], height: tile[1] * tiles });
  const context = sheet.getContext("2d", { willReadFrequently: true });
  const normal = normals();
  for (let i = 0; i < tiles; i++) {
    context.drawImage(images[i % images.length], 0, i * tile[1], ...tile);
    const left = Math.max(0, 1 - i / (tiles - clear));
    if (!left) continue;
    const level = alphaBar[Math.round(0.65 * left * (alphaBar.length - 1))];
    const pixels = context.getImageData(0, i * tile[1], ...tile);
    const gray = Array.from(pixels.data).every((value, at) => at % 4 > 1 || value === pixels.data[at + 1]);
    for (let at = 0; at < pixels.data.length; at += 4) {
      let epsilon = normal();
      for (let channel = 0; channel < 3; channel++) {
        if (channel && !gray) epsilon = normal();
        const x = Math.sqrt(level) * (pixels.data[at + channel] / 127.5 - 1) + Math.sqrt(1 - level) * epsilon;
        pixels.data[at + channel] = (x + 1) * 127.5; // rounded and clamped
      }
    }
    context.putImageData(pixels, 0, i * tile[1]);
  }
  return { tile, sheet };
}

export function drawBackdrop(canvas) {
  if (!backdrop) return drawNoise(canvas, BACKDROP.tiles);
  const { tile, sheet } = backdrop;
  const layout = arrange(canvas, BACKDROP.tiles, tile);
  if (layout.room[0] < 2 || layout.room[1] < 2) return layout;
  const context = clearFor(canvas, layout);
  for (let i = 0; i < BACKDROP.tiles; i++) {
    context.drawImage(sheet, 0, i * tile[1], ...tile, ...place(layout, i), layout.width, layout.height);
  }
  return layout;
}
