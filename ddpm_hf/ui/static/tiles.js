// Pictures on a canvas: every pixel of a picture is the same whole number of device pixels wide, so all stay crisp.

const GAPS = [8, 4, 2]; // CSS pixels between pictures, the first with which they are largest
const WIDEST_GAP = 16; // where there is room

// Where `count` tiles of a size go on a canvas: the columns with which they are largest.
function arrange(canvas, count, [width, height]) {
  const ratio = window.devicePixelRatio || 1;
  const box = canvas.getBoundingClientRect();
  const room = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  let best = null;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    for (const gap of count > 1 ? GAPS.map((pixels) => Math.round(pixels * ratio)) : [0]) {
      const fit = Math.min(
        (room[0] - gap * (columns - 1)) / (columns * width),
        (room[1] - gap * (rows - 1)) / (rows * height),
      );
      const scale = fit >= 1 ? Math.floor(fit) : fit;
      if (!best || scale > best.scale) best = { columns, rows, gap, scale };
    }
  }
  const slack = (n, side, available) => (n > 1 ? Math.floor((available - n * side * best.scale) / (n - 1)) : Infinity);
  const widest = Math.min(slack(best.columns, width, room[0]), slack(best.rows, height, room[1]), WIDEST_GAP * ratio);
  best.gap = Math.max(best.gap, Number.isFinite(widest) ? widest : 0);
  const used = (n, side) => n * side * best.scale + (n - 1) * best.gap;
  const left = Math.floor((room[0] - used(best.columns, width)) / 2);
  const top = Math.floor((room[1] - used(best.rows, height)) / 2);
  return { ...best, room, left, top, ratio, width: width * best.scale, height: height * best.scale };
}

function place(layout, index) {
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
function drawTiles(canvas, sheet, tile, view, indices) {
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
function drawImage(canvas, sheet, tile, view, index) {
  [canvas.width, canvas.height] = tile;
  canvas.getContext("2d").drawImage(sheet, ...source(sheet, tile, view, index), ...tile, 0, 0, ...tile);
}

// Noise, always the same, for a stage without a run.
function drawNoise(canvas, count, tile = [16, 16]) {
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
  let state = 7;
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const normal = Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
    pixels.data.fill(127 + 64 * normal, i, i + 3);
    pixels.data[i + 3] = 255;
  }
  sheet.getContext("2d").putImageData(pixels, 0, 0);
  return sheet;
}
