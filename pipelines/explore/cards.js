"use strict";

// The cards of the events that are shown, their labels, and the keys.

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    observer.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "400px" });

async function draw(node) {
  if (node.dataset.drawn === "no") return;
  const { seconds } = state;
  const box = node.querySelector(".drawing");
  try {
    const answer = await ask(`/api/figure?${new URLSearchParams({ event_id: node.dataset.eventId, seconds })}`);
    // Another stretch of time may have been asked for meanwhile.
    if (seconds !== state.seconds) return;
    box.replaceChildren(imageOf(answer.svg));
    node.querySelector(".details").textContent = answer.details.join(" · ");
  } catch (error) {
    if (seconds === state.seconds) box.replaceChildren(element("p", { class: "nothing" }, error.message));
  }
}

// How much time the figures show: the whole window (""), or so many seconds about the onset. A figure stays until the
// next one is there; those out of sight are drawn when they come into view.
function showSeconds(seconds) {
  state.seconds = seconds;
  for (const button of document.querySelectorAll("#seconds button")) button.setAttribute("aria-pressed", String(button.value === seconds));
  for (const node of document.querySelectorAll(".event")) {
    observer.unobserve(node);
    observer.observe(node);
  }
}

function nextSeconds() {
  const all = [...document.querySelectorAll("#seconds button")].map((button) => button.value);
  showSeconds(all[(all.indexOf(state.seconds) + 1) % all.length]);
}

function imageOf(svg) {
  return document.importNode(new DOMParser().parseFromString(svg, "text/html").querySelector("svg"), true);
}

function card(event) {
  const node = element("article", { class: "event", tabindex: "0", "aria-label": `${event.site} ${event.onset} UTC` },
    element("h2", {}, event.site, element("span", { class: "time" }, `${event.onset} UTC`)),
    element("p", { class: "own" }, element("span", { class: "cluster" }),
      ...(event.drawn === false ? [] : [element("button", { type: "button", class: "near", title: "The events nearest to this one (key n)", onclick: () => neighboursOf(event) }, "neighbours")])),
    ...(event.why ? [element("p", { class: "why" }, event.why)] : []),
    element("p", { class: "details" }, "\u00a0"),
    element("div", { class: "drawing" }, element("p", { class: "nothing" }, event.drawn === false ? "The waveform of this event is not in this copy." : "Drawing…")),
    ...(event.other === undefined ? [] : [element("div", { class: "verdicts", role: "group", "aria-label": "Right or wrong" })]),
    element("div", { class: "buttons", role: "group", "aria-label": "Label" }),
  );
  node.dataset.eventId = event.event_id;
  if (event.drawn === false) node.dataset.drawn = "no";
  node.style.setProperty("--cluster", clusterOf(event.cluster)?.colour ?? "gray");
  node.addEventListener("focusin", () => markEvents(event));
  showLabel(node, event);
  observer.observe(node);
  return node;
}

// An event's own label goes before the name of its cluster.
function showLabel(node, event) {
  const cluster = clusterOf(event.cluster);
  const words = !event.label ? clusterName(event.cluster)
    : `labelled ${event.label} (cluster ${event.cluster}${cluster?.name && cluster.name !== event.label ? ` · ${cluster.name}` : ""})`;
  node.classList.toggle("labelled", Boolean(event.label));
  node.querySelector(".cluster").replaceChildren(chipOf(cluster), words);
  node.querySelector(".cluster").title = words;
  showButtons(node, event);
}

// What may be wrong keeps its name or gets that of its neighbours: either becomes its own label. By key.
function verdicts(event) {
  return { y: { words: "keep", label: clusterOf(event.cluster)?.name }, c: { words: "change to", label: event.other } };
}

function showVerdicts(node, event) {
  node.querySelector(".verdicts")?.replaceChildren(...Object.entries(verdicts(event)).map(([key, { words, label }]) => {
    const button = element("button", {
      type: "button", "aria-pressed": String(Boolean(label) && event.label === label), title: label ? `key ${key}` : "The cluster has no name yet: name it first (✎)",
      onclick: attempt(() => setLabel([event], event.label === label ? null : label)),
    }, `${words} ${label || "…"} `, element("kbd", {}, key));
    button.disabled = !label;
    return button;
  }));
}

function showButtons(node, event) {
  showVerdicts(node, event);
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
      type: "button", class: "other", title: "Another label, typed", "aria-label": "Another label",
      onclick: () => box.replaceChildren(textField("Label", event.label, (label) => setLabel([event], label), () => showButtons(node, event))),
    }, "+"),
  );
}

function showLabels() {
  for (const node of document.querySelectorAll(".event")) {
    const event = state.events.find((entry) => entry.event_id === node.dataset.eventId);
    if (!event) continue;
    showLabel(node, event);
  }
  recolour();
}

// The buttons that label many events at once, all that were chosen on the map or those of the page, once they are asked for.
function showBulk(asked = false) {
  const chosen = state.page?.lasso ? state.page.points : null;
  const count = (chosen ?? state.events).length;
  const words = `Label all ${count.toLocaleString("en")} ${chosen ? "chosen" : "on this page"}`;
  byId("label-all").textContent = `${words}…`;
  byId("label-all").parentElement.hidden = !state.events.length || state.reading;
  byId("label-all").hidden = asked;
  byId("bulk").hidden = !asked;
  byId("bulk").replaceChildren(`${words} as`, ...state.summary.label_names.slice(0, 9).map((label) => element("button", {
    type: "button", onclick: attempt(() => setLabel(state.events, label, chosen)),
  }, label)), element("button", { type: "button", class: "other", onclick: () => { showBulk(); byId("label-all").focus(); } }, "cancel"));
  if (asked) byId("bulk").lastChild.focus();
}

async function setLabel(events, label, points = null) {
  if (!events.length) return;
  try {
    const answer = await ask("/api/labels", points ? { points, label } : { event_ids: events.map((event) => event.event_id), label });
    for (const event of events) event.label = label;
    state.summary.labels = answer.labels;
    state.summary.undo = answer.undo;
    state.saved = true;
    offerLabel(label);
    showSummary();
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
  else if (press.key === "." && state.page.following) open_(state.page.following);
  else if (press.key === "," && (state.page.before || state.page.from)) history.back();
  else if (press.key === "t") nextSeconds();
  else if (press.key === "m") { if (state.view !== "map") showView("map"); byId("map").focus(); }
  else if (press.key === "n" && event && event.drawn !== false) neighboursOf(event);
  else if ("yc".includes(press.key) && event && event.other !== undefined) {
    const { label } = verdicts(event)[press.key];
    if (label) attempt(setLabel)([event], label);
  } else if (/^[0-9]$/.test(press.key) && event && !state.reading) {
    const label = press.key === "0" ? null : state.summary.label_names[Number(press.key) - 1];
    if (label !== undefined) attempt(setLabel)([event], label);
  }
});
