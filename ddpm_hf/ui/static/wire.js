// What the page asks of the server: streams, each through a component without looks of its own, and single answers.

const wires = {};

// Called by the component of a stream: wires[name].send(values) starts it, wires[name].stop() ends it.
function wire(name, props, trigger) {
  wires[name] = {
    send(values) {
      props.value = { ...values };
      trigger("submit");
    },
    stop: () => trigger("stop"),
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
