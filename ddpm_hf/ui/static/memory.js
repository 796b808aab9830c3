// What this browser remembers between two visits; nothing, where it is not allowed to.

const name = (key) => `ddpm_hf.${key}`;

export function kept(key) {
  try {
    return JSON.parse(localStorage.getItem(name(key)));
  } catch {
    return null;
  }
}

export function keep(key, value) {
  try {
    localStorage.setItem(name(key), JSON.stringify(value));
  } catch {
    // not allowed, or full
  }
}
