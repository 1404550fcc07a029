"use strict";

// What the page knows, and which events it shows. Everything that comes from the server is set as text or parsed as an
// image, never as markup.

const byId = (id) => document.getElementById(id);
// `trail` holds the pages of events that were opened; the last one is shown, and "back" leaves it.
const state = { summary: null, view: "map", cluster: "", trail: [], events: [], reading: false };

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function attempt(action) {
  return async (...values) => {
    try { return await action(...values); } catch (error) { say(error.message, true); }
  };
}

function countOf(number, noun, many = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : many}`;
}

const loadSummary = attempt(async () => {
  state.summary = await ask("/api/summary");
  byId("workspace").textContent = state.summary.workspace;
  // A copy without a server is for reading alone.
  state.reading = Boolean(state.summary.export);
  document.body.classList.toggle("reading", state.reading);
  byId("export").textContent = state.summary.export ?? "";
  byId("command").textContent = state.summary.command ?? "";
  byId("paths").textContent = state.reading ? "" : `Labels are kept in ${state.summary.labels_path}, names in ${state.summary.names_path}.`;
  for (const site of state.summary.sites) byId("site").append(element("option", { value: site }, site));
  for (let hour = 0; hour < 24; hour += 1) byId("hour").append(element("option", { value: String(hour) }, hourWords(hour)));
  showSummary();
});

function clusterName(number) {
  const name = state.summary.clusters.find((cluster) => cluster.number === number)?.name;
  return `cluster ${number}${name ? ` · ${name}` : ""}`;
}

function showSummary() {
  const { clusters, labels, undo } = state.summary;
  const all = { number: "", events: clusters.reduce((sum, cluster) => sum + cluster.events, 0), colour: "transparent" };
  byId("clusters").replaceChildren(...[all, ...clusters].map(clusterRow));
  const chosen = byId("label").value;
  byId("label").replaceChildren(
    element("option", { value: "*" }, "any or none"),
    element("option", { value: "" }, "none yet"),
    ...Object.entries(labels).map(([label, count]) => element("option", { value: label }, `${label} (${count})`)),
  );
  byId("label").value = [...byId("label").options].some((option) => option.value === chosen) ? chosen : "*";
  byId("undo").disabled = !undo || state.reading;
  showBulk();
  sayCount();
}

function clusterRow(cluster) {
  const whole = cluster.number === "";
  const chip = element("span", { class: "chip" });
  chip.style.background = cluster.colour;
  const name = whole ? "all clusters" : `${cluster.number}${cluster.name ? ` · ${cluster.name}` : ""}`;
  const choose = element("button", {
    type: "button", class: "choose", "aria-pressed": String(state.cluster === cluster.number),
    onclick: () => { chooseCluster(cluster.number); bringEvents(); },
  }, chip, name, element("span", { class: "events" }, cluster.events.toLocaleString("en")));
  const item = element("li", { "data-number": cluster.number }, choose);
  if (!whole && !state.reading) {
    item.append(element("button", {
      type: "button", class: "rename", title: "Name this cluster", "aria-label": `Name cluster ${cluster.number}`,
      onclick: () => editName(cluster),
    }, "✎"));
  }
  return item;
}

const rowOf = (number) => document.querySelector(`#clusters li[data-number="${number}"]`);

// The other rows stay as they are: who leaves a field by a click on one of them must not find another one there.
function showRow(cluster) {
  rowOf(cluster.number).replaceWith(clusterRow(cluster));
}

// Who names a cluster sees its events.
function editName(cluster) {
  if (state.cluster !== cluster.number) chooseCluster(cluster.number);
  rowOf(cluster.number).replaceChildren(textField(`Name of cluster ${cluster.number}`, cluster.name, (name) => rename(cluster, name), () => showRow(cluster)));
}

// A field in the place of a button: Enter takes the text, and so does leaving the field once it has another text; Escape
// leaves all as it was.
function textField(words, value, take, leave) {
  const field = element("input", { type: "text", class: "typed", "aria-label": words, placeholder: words, list: "known", autocomplete: "off" });
  field.value = value ?? "";
  let done = false;
  const end = (action) => { if (!done) { done = true; action(); } };
  field.addEventListener("keydown", (press) => {
    if (press.key === "Enter") { press.preventDefault(); end(attempt(() => take(field.value.trim() || null))); }
    if (press.key === "Escape") end(leave);
    press.stopPropagation();
  });
  field.addEventListener("blur", () => {
    const typed = field.value.trim();
    end(typed && typed !== (value ?? "") ? attempt(() => take(typed)) : leave);
  });
  setTimeout(() => { field.focus(); field.select(); });
  return field;
}

// What else narrows the events: a station, an hour of the day.
function narrowed() {
  return { site: byId("site").value, hour: byId("hour").value };
}

function narrow(values) {
  for (const [name, value] of Object.entries(values)) byId(name).value = value;
  showNarrowed();
  restart();
}

// What narrows the events stands above every view, each with a button that takes it away.
function showNarrowed() {
  const words = {
    site: (value) => value, hour: hourWords, start: (value) => `from ${value}`, end: (value) => `until ${value}`,
    label: (value) => (value === "" ? "without a hand label" : `labelled ${value}`),
  };
  const none = (name) => (name === "label" ? "*" : "");
  byId("narrowed").replaceChildren(...Object.keys(words).filter((name) => byId(name).value !== none(name)).map((name) => element("button", {
    type: "button", title: "Show all again", onclick: () => narrow({ [name]: none(name) }),
  }, words[name](byId(name).value), " ✕")));
  byId("narrowed").parentElement.hidden = !byId("narrowed").children.length;
  drawPlaces();
  recolour();
}

function chooseCluster(number) {
  state.cluster = number;
  showSummary();
  drawPlaces();
  recolour();
  const { site, hour } = narrowed();
  if (state.view === "list" || state.view === "places" || number === "" || site || hour) restart();
  else {
    open_({
      title: `Typical of ${clusterName(number)}`,
      load: async () => ({ events: (await ask(`/api/typical?cluster=${number}`)).events }),
    }, true);
  }
}

function sayCount(saved = "") {
  const total = Object.values(state.summary.labels).reduce((sum, count) => sum + count, 0);
  say(`${total.toLocaleString("en")} labelled by hand${saved}`);
}

async function rename(cluster, name) {
  try {
    const answer = await ask("/api/names", { cluster: cluster.number, name });
    takeNames(answer.names, cluster.number);
    state.summary.undo = answer.undo;
    offerLabel(name);
  } finally {
    showRow(cluster);
    if (document.activeElement === document.body) rowOf(cluster.number).querySelector(".rename").focus();
    byId("undo").disabled = !state.summary.undo;
    showLabels();
  }
  say(`saved to ${state.summary.names_path}`);
}

// What was typed once has a button on every event.
function offerLabel(label) {
  if (label && !state.summary.label_names.includes(label)) state.summary.label_names.push(label);
}

function takeNames(names, changed) {
  for (const entry of state.summary.clusters) {
    if (entry.number in names) entry.name = names[entry.number];
    else if (entry.number === changed) entry.name = "";
  }
}

const undo = attempt(async () => {
  const answer = await ask("/api/undo", {});
  state.summary.labels = answer.labels;
  state.summary.undo = answer.undo;
  for (const event of state.events) if (event.event_id in answer.changed) event.label = answer.changed[event.event_id];
  if (answer.cluster !== null) takeNames(answer.names, answer.cluster);
  showSummary();
  showLabels();
  say(`undone: ${answer.said}`);
});

// Events: one page after the other. A page has a title, and `load` gives its events and perhaps the page after it.
function open_(page, fresh = false) {
  state.trail = fresh ? [page] : [...state.trail, page];
  return showPage();
}

const showPage = attempt(async () => {
  const page = state.trail.at(-1);
  byId("events").setAttribute("aria-busy", "true");
  // Until the new events are there, no button may label the old ones as if they were these.
  byId("bulk").parentElement.hidden = true;
  const answer = await page.load();
  if (page !== state.trail.at(-1)) return;
  state.events = answer.events;
  page.following = answer.following;
  byId("next").disabled = !answer.following;
  byId("back").disabled = state.trail.length < 2;
  byId("shown").textContent = `${page.title}: ${countOf(answer.events.length, "event")}${page.number ? `, page ${page.number}` : ""}`;
  byId("events").replaceChildren(...answer.events.map(card));
  if (!answer.events.length) byId("events").append(element("p", { class: "nothing" }, page.nothing ?? "No event matches."));
  byId("events").setAttribute("aria-busy", "false");
  showBulk();
  markEvents();
  if (byId("status").classList.contains("error")) sayCount();
  byId("events-view").scrollTo(0, 0);
  if (state.view === "list" || state.view === "suggested") window.scrollTo(0, 0);
});

function filtered(cursor = "", number = 1) {
  const { site, hour } = narrowed();
  const which = state.cluster === "" ? "All events" : clusterName(state.cluster)[0].toUpperCase() + clusterName(state.cluster).slice(1);
  return {
    title: [which, site, hour === "" ? "" : hourWords(hour)].filter(Boolean).join(", "), number,
    load: async () => {
      const query = new URLSearchParams({ cursor, order: byId("order").value, cluster: state.cluster });
      for (const name of ["site", "hour", "start", "end"]) if (byId(name).value) query.set(name, byId(name).value);
      if (byId("label").value !== "*") query.set("label", byId("label").value);
      const answer = await ask(`/api/events?${query}`);
      return { events: answer.events, following: answer.cursor ? filtered(answer.cursor, number + 1) : null };
    },
  };
}

// Events of the map by their numbers there, `state.summary.page_events` on a page.
function ofPoints(title, points, first = 0) {
  const size = state.summary.page_events;
  return {
    title, points, number: points.length > size ? first / size + 1 : 0,
    load: async () => ({
      events: points.length ? (await ask(`/api/points?points=${points.slice(first, first + size).join(",")}`)).events : [],
      following: first + size < points.length ? ofPoints(title, points, first + size) : null,
    }),
  };
}

function neighboursOf(event) {
  return open_({
    title: `Nearest to ${event.site} ${event.onset}`,
    load: async () => ({ events: [event, ...(await ask(`/api/neighbours?event_id=${encodeURIComponent(event.event_id)}`)).events] }),
  });
}

// On a narrow screen the events lie below what they were chosen on.
function bringEvents() {
  if (window.matchMedia("(max-width: 52rem)").matches) byId("events-view").scrollIntoView();
}

function restart() {
  return open_(filtered(), true);
}

function showView(view) {
  state.view = view;
  document.querySelector("main").dataset.view = view;
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("#views button")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  if (view === "map") showMap();
  if (view === "tree") showTree();
  if (view === "places") { showPlaces(); restart(); }
  if (view === "list") restart();
  if (view === "suggested") {
    open_({
      title: "To label next", nothing: "No event without a label is left to suggest.",
      load: async () => ({ events: (await ask("/api/suggestions")).events }),
    }, true);
  }
}

document.addEventListener("DOMContentLoaded", async () => {
  byId("filter").addEventListener("change", () => narrow({}));
  byId("filter").addEventListener("submit", (submit) => { submit.preventDefault(); narrow({}); });
  byId("next").addEventListener("click", () => open_(state.trail.at(-1).following));
  byId("back").addEventListener("click", () => { state.trail.pop(); showPage(); });
  byId("undo").addEventListener("click", undo);
  for (const button of document.querySelectorAll("#views button")) button.addEventListener("click", () => showView(button.dataset.view));
  if (window.matchMedia("(max-width: 52rem)").matches) byId("clusters-box").open = false;
  document.body.dataset.view = "map";
  await loadSummary();
  if (!state.summary) return;
  document.body.append(element("datalist", { id: "known" }, ...state.summary.label_names.map((name) => element("option", { value: name }))));
  showMap();
  restart();
});
