// The frames of a run by their index, kept as they arrive: scrubbing and playing need no server.

export class Film {
  constructor(total) {
    this.total = total; // index of the last frame
    this.frames = []; // { t, at, src, image }: x_t of all images above the x_0 predicted from it
  }

  add(arrived) {
    for (const [key, frame] of Object.entries(arrived)) {
      const index = Number(key);
      // the start comes a second time, with its predicted x_0
      if (!this.frames[index] || (index === 0 && this.frames[0].src !== frame.src)) this.frames[index] = { ...frame };
    }
  }

  get newest() {
    return this.frames.length - 1;
  }

  get count() {
    return this.frames.filter(Boolean).length;
  }

  // the frame at an index or, where it was lost on the way, the one before
  nearest(index) {
    while (index > 0 && !this.frames[index]) index--;
    return this.frames[index];
  }

  // The decoded picture of a frame, or null where it cannot be decoded.
  async picture(frame) {
    if (!frame.image) {
      frame.image = new Image();
      frame.image.src = frame.src;
    }
    try {
      await frame.image.decode();
      return frame.image;
    } catch {
      return null;
    }
  }
}
