// Use via API: the endpoints as the server describes them at gradio_api/info.

import { make } from "./dom.js";

const CODE = { python: "Python", javascript: "JavaScript", bash: "curl" };

function endpoint(name, { description, parameters, returns, code_snippets }) {
  const words = description.replace(/\s+Args:[\s\S]*?(?=\s+Returns:|$)/, "");
  const about = Object.fromEntries(
    [...description.matchAll(/^\s*(\w+): (.+)$/gm)].map(([, parameter, text]) => [parameter, text]),
  );
  const row = (one) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("code", {}, one.parameter_name)),
      make("td", {}, make("code", {}, one.python_type.type)),
      make("td", {}, one.parameter_has_default ? JSON.stringify(one.parameter_default) : "required"),
      make("td", {}, about[one.parameter_name] ?? ""),
    );
  const head = ["Argument", "Type", "Default", ""].map((title) => make("th", { scope: "col" }, title));
  return make(
    "section",
    { class: "card" },
    make("h2", {}, name),
    make("p", { class: "line" }, words.trim()),
    make("table", {}, make("thead", {}, make("tr", {}, head)), make("tbody", {}, parameters.map(row))),
    make("h3", {}, "Answer"),
    make("pre", { tabindex: 0 }, returns.map(({ python_type }) => python_type.type).join("\n")),
    Object.entries(CODE).map(([kind, title]) => [
      make("h3", {}, title),
      make("pre", { tabindex: 0 }, code_snippets[kind]),
    ]),
  );
}

const info = await (await fetch("gradio_api/info")).json();
document
  .getElementById("endpoints")
  .replaceChildren(...Object.entries(info.named_endpoints).map(([name, about]) => endpoint(name, about)));
document.documentElement.setAttribute("data-ready", "");
