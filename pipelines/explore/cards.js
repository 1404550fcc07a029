"use strict";

// The cards of the events that are shown, their labels, and the keys.

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    observer.unobserve(entry.target);
    attempt(draw)(entry.target);
  }
}, { rootMargin: "400px" });

async function draw(node) {
  if (node.dataset.drawn === "no") return;
  const answer = await ask(`/api/figure?event_id=${encodeURIComponent(node.dataset.eventId)}`);
  node.querySelector(".drawing").replaceChildren(imageOf(answer.svg));
  node.querySelector(".details").textContent = answer.details.join(" · ");
}

function imageOf(svg) {
  return document.importNode(new DOMParser().parseFromString(svg, "text/html").querySelector("svg"), true);
}

function card(event) {
  const node = element("article", { class: "event", tabindex: "0", "aria-label": `${event.site} ${event.onset} UTC` },
    element("h2", {}, event.site, element("span", { class: "cluster" }, clusterName(event.cluster))),
    element("p", {}, `${event.onset} UTC`,
      ...(event.drawn === false ? [] : [element("button", { type: "button", class: "near", title: "key n", onclick: () => neighboursOf(event) }, "neighbours")])),
    ...(event.why ? [element("p", { class: "why" }, event.why)] : []),
    element("p", { class: "details" }, "\u00a0"),
    element("div", { class: "drawing" }, ...(event.drawn === false ? [element("p", { class: "nothing" }, "The waveform of this event is not in this copy.")] : [])),
    element("div", { class: "buttons", role: "group", "aria-label": "Label" }),
  );
  node.dataset.eventId = event.event_id;
  if (event.drawn === false) node.dataset.drawn = "no";
  node.style.setProperty("--cluster", state.summary.clusters.find((entry) => entry.number === event.cluster)?.colour ?? "gray");
  node.addEventListener("focusin", () => markEvents(event));
  showButtons(node, event);
  observer.observe(node);
  return node;
}

function showButtons(node, event) {
  const names = state.summary.label_names.slice(0, 9);
  if (event.label && !names.includes(event.label)) names.push(event.label);
  const box = node.querySelector(".buttons");
  if (state.reading) { box.replaceChildren(event.label ? `labelled by hand: ${event.label}` : ""); return; }
  box.replaceChildren(
    ...names.map((label, index) => element("button", {
      type: "button", "aria-pressed": String(event.label === label), title: index < 9 ? `key ${index + 1}` : "",
      onclick: attempt(() => setLabel([event], event.label === label ? null : label)),
    }, label)),
    element("button", {
      type: "button", class: "other",
      onclick: () => box.replaceChildren(textField("Label", event.label, (label) => setLabel([event], label), () => showButtons(node, event))),
    }, "other…"),
  );
}

function showLabels() {
  for (const node of document.querySelectorAll(".event")) {
    const event = state.events.find((entry) => entry.event_id === node.dataset.eventId);
    if (!event) continue;
    showButtons(node, event);
    node.querySelector(".cluster").textContent = clusterName(event.cluster);
  }
  recolour();
}

// The buttons that label many events at once: all that were chosen on the map, or those of the page.
function showBulk() {
  const chosen = state.trail.at(-1)?.points;
  const many = chosen && chosen.length > 1;
  byId("bulk-words").textContent = many ? `Label all ${chosen.length.toLocaleString("en")} chosen:` : "Label all on this page:";
  byId("bulk").replaceChildren(...state.summary.label_names.slice(0, 9).map((label) => element("button", {
    type: "button", onclick: attempt(() => (many ? setLabel(state.events, label, chosen) : setLabel(state.events, label))),
  }, label)));
  byId("bulk").parentElement.hidden = !state.events.length || state.reading;
}

async function setLabel(events, label, points = null) {
  if (!events.length) return;
  try {
    const answer = await ask("/api/labels", points ? { points, label } : { event_ids: events.map((event) => event.event_id), label });
    for (const event of events) event.label = label;
    state.summary.labels = answer.labels;
    state.summary.undo = answer.undo;
    offerLabel(label);
    showSummary();
    sayCount(`, saved to ${state.summary.labels_path}`);
  } finally {
    showLabels();
  }
}

function focusCard(step) {
  const nodes = [...document.querySelectorAll(".event")];
  const current = nodes.indexOf(document.activeElement?.closest(".event"));
  const node = nodes[Math.min(Math.max(current + step, 0), nodes.length - 1)];
  node?.focus();
  node?.scrollIntoView({ block: "center" });
}

document.addEventListener("keydown", (press) => {
  if (press.key === "z" && (press.ctrlKey || press.metaKey) && press.target.tagName !== "INPUT" && !state.reading) { press.preventDefault(); undo(); return; }
  if (press.ctrlKey || press.metaKey || press.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(press.target.tagName)) return;
  if (!state.summary || mapKey(press)) return;
  const node = document.activeElement?.closest(".event");
  const event = node && state.events.find((entry) => entry.event_id === node.dataset.eventId);
  if (press.key === "j") focusCard(1);
  else if (press.key === "k") focusCard(-1);
  else if (press.key === "u" && !byId("undo").disabled) undo();
  else if (press.key === "." && !byId("next").disabled) byId("next").click();
  else if (press.key === "," && !byId("back").disabled) byId("back").click();
  else if (press.key === "m") { if (state.view !== "map") showView("map"); byId("map").focus(); }
  else if (press.key === "n" && event && event.drawn !== false) neighboursOf(event);
  else if (/^[0-9]$/.test(press.key) && event && !state.reading) {
    const label = press.key === "0" ? null : state.summary.label_names[Number(press.key) - 1];
    if (label !== undefined) attempt(setLabel)([event], label);
  }
});
