// What the page asks of the server: runs, each a stream of values, and questions with one answer.

import { tell } from "./dom.js";

const SILENCE = 15_000; // ms; the server says something every second of a run
const LOST = "The connection to the server was lost.";
const BUSY = [429, 503]; // come again
const PATIENCE = [500, 1000, 2000]; // ms before a question is asked again

// of this tab, by which the server tells visitors of one address apart
const session = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function post(path, values, signal) {
  const headers = { "content-type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(values), signal });
}

// ---- runs

// A run at a time: send(values) starts one, stop() ends it. The callbacks get its values, each with new frames alone,
// and the line that tells why it failed and whether the connection is to blame.
export class Wire {
  constructor(what, { received, failed }) {
    Object.assign(this, { what, received, failed });
  }

  async send(values) {
    this.stop();
    tell("asked");
    this.values = values;
    const run = (this.run = new AbortController());
    let value = {};
    try {
      for await (const change of this.changes(values, run)) {
        if (run.signal.aborted) return;
        if (change.error) throw Object.assign(new Error(change.error), { told: true });
        value = { ...value, ...change };
        this.received(value);
      }
      if (!["done", "stopped"].includes(value.state)) throw new Error(LOST);
    } catch (error) {
      if (run === this.run) this.failed(error.told ? error.message : LOST, !error.told);
    }
    clearTimeout(run.watchdog);
  }

  stop() {
    this.run?.abort();
    this.run = null;
  }

  async *changes(values, run) {
    const alive = () => {
      clearTimeout(run.watchdog);
      run.watchdog = setTimeout(() => run.abort(), SILENCE);
    };
    run.signal.addEventListener("abort", () => clearTimeout(run.watchdog));
    alive();
    if (!Wire.zeroGpu) {
      const response = await checked(post("page/run", { what: this.what, values, session }, run.signal));
      for await (const event of events(response, alive)) yield JSON.parse(event.data);
      return;
    }
    // where a GPU is lent, the events of Gradio carry the visitor's token
    const call = await checked(post("gradio_api/call/page_run", { data: [this.what, values] }, run.signal));
    const { event_id } = await call.json();
    const answer = await checked(fetch(`gradio_api/call/page_run/${event_id}`, { signal: run.signal }));
    for await (const { event, data } of events(answer, alive)) {
      if (event === "error") yield { error: JSON.parse(data)?.error ?? LOST };
      if (event === "generating") yield JSON.parse(data)[0];
    }
  }
}

async function checked(asked) {
  const response = await asked;
  if (response.ok) return response;
  const { detail } = await response.json();
  throw Object.assign(new Error(detail), { told: true, status: response.status });
}

// The server-sent events of a response: { event, data }.
async function* events(response, alive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]);
      yield Object.fromEntries(lines);
    }
  }
}

// ---- questions

// The answer to one of the questions of server.py.
export async function ask(name, values = {}) {
  for (const wait of [...PATIENCE, null]) {
    try {
      const response = await checked(post(`page/${name}`, { ...values, session }));
      const answer = await response.json();
      if (answer.error) throw Object.assign(new Error(answer.error), { told: true });
      return answer;
    } catch (error) {
      if (!error.told) throw new Error("The server did not answer: try again.");
      if (!BUSY.includes(error.status) || wait === null) throw error;
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
  return null;
}

// ask() for a control that moves: one question at a time; of the questions that wait, only the last is asked.
export function askLatest(name, answered, failed) {
  let waiting = null;
  let busy = false;
  const next = async () => {
    while (waiting) {
      const values = waiting;
      waiting = null;
      try {
        answered(await ask(name, values), values);
      } catch (error) {
        failed(error);
      }
    }
    busy = false;
  };
  return (values) => {
    waiting = values;
    if (!busy) {
      busy = true;
      next();
    }
  };
}
