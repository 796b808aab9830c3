// What the page asks of the server: streams, each through a component without looks of its own, and single answers.

const wires = {};

const LONGEST_STOP = 5000; // ms, after which a stream counts as stopped whatever Gradio says
const CROSSING = 300; // ms in which the end of a stream and its Stop may cross

// Called by the component of a stream: wires[name].send(values) starts it, wires[name].stop() ends it. Gradio takes a
// while to stop, ignores what is sent meanwhile, and then tells of a failure: both are kept from the page.
function wire(name, props, trigger) {
  let [running, stopping, next, timer] = [false, false, null, 0];
  const start = (values) => {
    running = true;
    props.value = { ...values };
    trigger("submit");
  };
  const free = () => {
    clearTimeout(timer);
    const values = next;
    [running, stopping, next] = [false, false, null];
    if (values) start(values);
  };
  wires[name] = {
    send(values) {
      if (stopping) next = values;
      else start(values);
    },
    stop() {
      next = null;
      if (running && !stopping) timer = setTimeout(free, LONGEST_STOP);
      stopping = running;
      trigger("stop");
    },
    // Gradio's word that the stream has come to its end; page.py connects it.
    over(well) {
      if (stopping && well) {
        clearTimeout(timer);
        timer = setTimeout(free, CROSSING);
      } else if (stopping) free();
      else {
        running = false;
        if (!well) tell("failed", name);
      }
    },
  };
}

let server = {};

// An answer of one of the functions of calls.py.
async function ask(name, values = {}) {
  let answer;
  try {
    answer = await server[name](values);
  } catch {
    throw new Error("The server did not answer: try again.");
  }
  if (answer?.error) throw new Error(answer.error);
  return answer;
}

// ask() for a control that moves: one question at a time, and of those that came meanwhile only the last.
function askLatest(name, answered, failed) {
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
