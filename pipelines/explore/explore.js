"use strict";

// What the page knows, how it asks the server, and which events it shows. Everything that comes from the server is set
// as text or parsed as an image, never as markup.

// The token comes in the fragment of the address, which a browser never sends. It is kept for this tab and this
// origin (scheme, host and port) only, and sent in a header: a cookie would go to other servers on this machine, too.
const TOKEN_KEY = "firnline-token";
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return sessionStorage.getItem(TOKEN_KEY);
  sessionStorage.setItem(TOKEN_KEY, given);
  history.replaceState(null, "", location.pathname);
  return given;
}
const token = takeToken();
window.addEventListener("hashchange", () => { takeToken(); location.reload(); });

const byId = (id) => document.getElementById(id);
// `trail` holds the pages of events that were opened; the last one is shown, and "back" leaves it.
const state = { summary: null, view: "map", cluster: "", trail: [], events: [] };

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

async function fetchAnswer(path, body) {
  if (!token) throw new Error("Open the address that firnline explore has printed: it holds the token.");
  const options = { headers: { Authorization: `Bearer ${token}` }, credentials: "omit" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  let reason = (await answer.text()).trim();
  try { reason = JSON.parse(reason).error; } catch { /* a plain sentence */ }
  throw new Error(reason);
}

// Changes reach the server in the order in which they were made, so that undo takes back the latest.
let lastChange = Promise.resolve();

async function ask(path, body) {
  if (body === undefined) return (await fetchAnswer(path)).json();
  const change = lastChange.then(() => fetchAnswer(path, body));
  lastChange = change.catch(() => {});
  return (await change).json();
}

async function askNumbers(path, Kind) {
  return new Kind(await (await fetchAnswer(path)).arrayBuffer());
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
  byId("paths").textContent = `Labels are kept in ${state.summary.labels_path}, names in ${state.summary.names_path}.`;
  for (const site of state.summary.sites) byId("site").append(element("option", { value: site }, site));
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
  byId("undo").disabled = !undo;
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
    onclick: () => chooseCluster(cluster.number),
  }, chip, name, element("span", { class: "events" }, cluster.events.toLocaleString("en")));
  const item = element("li", {}, choose);
  if (!whole) {
    item.append(element("button", {
      type: "button", class: "rename", title: "Name this cluster", "aria-label": `Name cluster ${cluster.number}`,
      onclick: () => item.replaceChildren(textField(`Name of cluster ${cluster.number}`, cluster.name, (name) => rename(cluster, name), showSummary)),
    }, "✎"));
  }
  return item;
}

// A field in the place of a button: Enter takes the text, Escape leaves all as it was.
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
  field.addEventListener("blur", () => end(leave));
  setTimeout(() => { field.focus(); field.select(); });
  return field;
}

function chooseCluster(number) {
  state.cluster = number;
  showSummary();
  recolour();
  if (state.view === "list" || number === "") restart();
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
  } finally {
    showSummary();
  }
  say(`saved to ${state.summary.names_path}`);
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
  if (state.view !== "map") window.scrollTo(0, 0);
});

function filtered(cursor = "", number = 1) {
  return {
    title: state.cluster === "" ? "All events" : clusterName(state.cluster)[0].toUpperCase() + clusterName(state.cluster).slice(1), number,
    load: async () => {
      const query = new URLSearchParams({ cursor, order: byId("order").value, cluster: state.cluster });
      for (const name of ["site", "start", "end"]) if (byId(name).value) query.set(name, byId(name).value);
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
  if (view === "list") restart();
  if (view === "suggested") {
    open_({
      title: "To label next", nothing: "No event without a label is left to suggest.",
      load: async () => ({ events: (await ask("/api/suggestions")).events }),
    }, true);
  }
}

document.addEventListener("DOMContentLoaded", async () => {
  byId("filter").addEventListener("change", restart);
  byId("filter").addEventListener("submit", (submit) => { submit.preventDefault(); restart(); });
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
