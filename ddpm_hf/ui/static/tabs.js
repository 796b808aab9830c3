// The tabs: buttons of the masthead that show one panel of the page each. The panels are all there from the start.

import { hear, make, set, tell } from "./dom.js";

// The name of a panel in the address; a run may stand behind it.
const named = () => location.hash.slice(1).split("?")[0];

export class Tabs {
  // panels: [{ id, title }], the element of a panel being #panel-<id>.
  constructor(element, panels) {
    this.panels = panels;
    this.buttons = panels.map(({ id, title }) =>
      make(
        "button",
        { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, onclick: () => this.show(id) },
        title,
      ),
    );
    element.replaceChildren(make("div", { class: "tabs", role: "tablist", "aria-label": "What to do" }, this.buttons));
    element.addEventListener("keydown", (event) => this.key(event));
    hear("tab", (id) => this.show(id));
    window.addEventListener("hashchange", () => this.show(named(), false));
    const asked = named();
    this.show(panels.some(({ id }) => id === asked) ? asked : panels[0].id, false);
  }

  show(id, remember = true) {
    if (!this.panels.some((panel) => panel.id === id)) return;
    this.current = id;
    document.documentElement.dataset.tab = id; // page.css shows its panel
    this.panels.forEach((panel, i) => {
      const current = panel.id === id;
      set(this.buttons[i], { "aria-selected": String(current), tabindex: current ? 0 : -1 });
      const element = document.getElementById(`panel-${panel.id}`);
      if (element) set(element, { role: "tabpanel", "aria-labelledby": `tab-${panel.id}` });
    });
    if (remember && named() !== id)
      history.replaceState(null, "", id === this.panels[0].id ? location.pathname + location.search : `#${id}`);
    tell("shown", id);
  }

  key(event) {
    const at = this.panels.findIndex(({ id }) => id === this.current);
    const last = this.panels.length - 1;
    const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[
      event.key
    ];
    if (to === undefined) return;
    event.preventDefault();
    this.show(this.panels[to].id);
    this.buttons[to].focus();
  }
}
