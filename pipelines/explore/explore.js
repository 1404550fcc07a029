"use strict";

// Everything that comes from the server is set as text or parsed as an image, never as markup.

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
const state = { summary: null, cluster: "", cursors: [""], following: "", events: [] };

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

async function ask(path, body) {
  if (!token) throw new Error("Open the address that firnline explore has printed: it holds the token.");
  const options = { headers: { Authorization: `Bearer ${token}` }, credentials: "omit" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  const text = await answer.text();
  if (!answer.ok) {
    let reason = text.trim();
    try { reason = JSON.parse(text).error; } catch { /* a plain sentence */ }
    throw new Error(reason);
  }
  return JSON.parse(text);
}

function attempt(action) {
  return async (...values) => {
    try { await action(...values); } catch (error) { say(error.message, true); }
  };
}

const loadSummary = attempt(async () => {
  state.summary = await ask("/api/summary");
  byId("workspace").textContent = state.summary.workspace;
  byId("paths").textContent = `Labels: ${state.summary.labels_path}. Names: ${state.summary.names_path}.`;
  for (const site of state.summary.sites) byId("site").append(element("option", { value: site }, site));
  showSummary();
});

function showSummary() {
  const { clusters, labels, label_names: names } = state.summary;
  const all = { number: "", name: "all clusters", events: clusters.reduce((sum, cluster) => sum + cluster.events, 0), colour: "transparent" };
  byId("clusters").replaceChildren(...[all, ...clusters].map((cluster) => {
    const chip = element("span", { class: "chip" });
    chip.style.background = cluster.colour;
    const name = cluster.number === "" ? cluster.name : `${cluster.number}${cluster.name ? ` · ${cluster.name}` : ""}`;
    const choose = element("button", {
      type: "button", class: "choose", "aria-pressed": String(state.cluster === String(cluster.number)),
      onclick: () => { state.cluster = String(cluster.number); showSummary(); restart(); },
    }, chip, name, element("span", { class: "events" }, cluster.events.toLocaleString("en")));
    const item = element("li", {}, choose);
    if (cluster.number !== "") {
      item.append(element("button", {
        type: "button", class: "rename", title: "Name this cluster", "aria-label": `Name cluster ${cluster.number}`,
        onclick: attempt(() => rename(cluster)),
      }, "✎"));
    }
    return item;
  }));
  const chosen = byId("label").value;
  byId("label").replaceChildren(
    element("option", { value: "*" }, "any or none"),
    element("option", { value: "" }, "none yet"),
    ...Object.entries(labels).map(([label, count]) => element("option", { value: label }, `${label} (${count})`)),
  );
  byId("label").value = [...byId("label").options].some((option) => option.value === chosen) ? chosen : "*";
  byId("bulk").replaceChildren(...names.slice(0, 9).map((label) => element("button", {
    type: "button", onclick: attempt(() => setLabel(state.events, label)),
  }, label)));
  sayCount();
}

function sayCount(saved = "") {
  const total = Object.values(state.summary.labels).reduce((sum, count) => sum + count, 0);
  say(`${total} labelled by hand${saved}`);
}

async function rename(cluster) {
  const name = window.prompt(`Name of cluster ${cluster.number} (empty: none)`, cluster.name);
  if (name === null) return;
  const answer = await ask("/api/names", { cluster: cluster.number, name: name.trim() || null });
  for (const entry of state.summary.clusters) entry.name = answer.names[entry.number] ?? (entry.number === cluster.number ? "" : entry.name);
  showSummary();
  say(`saved to ${state.summary.names_path}`);
}

function restart() {
  state.cursors = [""];
  loadEvents();
}

const loadEvents = attempt(async () => {
  byId("events").setAttribute("aria-busy", "true");
  const query = new URLSearchParams({ cursor: state.cursors.at(-1), order: byId("order").value, cluster: state.cluster });
  for (const name of ["site", "start", "end"]) if (byId(name).value) query.set(name, byId(name).value);
  if (byId("label").value !== "*") query.set("label", byId("label").value);
  const answer = await ask(`/api/events?${query}`);
  state.events = answer.events;
  state.following = answer.cursor;
  byId("next").disabled = !answer.cursor;
  byId("back").disabled = state.cursors.length < 2;
  byId("shown").textContent = `Page ${state.cursors.length}, ${answer.events.length} events`;
  byId("events").replaceChildren(...answer.events.map(card));
  if (!answer.events.length) byId("events").append(element("p", { class: "nothing" }, "No event matches the filter."));
  byId("events").setAttribute("aria-busy", "false");
  if (byId("status").classList.contains("error")) sayCount();
  window.scrollTo(0, 0);
});

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    observer.unobserve(entry.target);
    attempt(draw)(entry.target);
  }
}, { rootMargin: "400px" });

async function draw(node) {
  const answer = await ask(`/api/figure?event_id=${encodeURIComponent(node.dataset.eventId)}`);
  const image = new DOMParser().parseFromString(answer.svg, "text/html").querySelector("svg");
  node.querySelector(".drawing").replaceChildren(document.importNode(image, true));
  node.querySelector(".details").textContent = answer.details.join(" · ");
}

function card(event) {
  const cluster = state.summary.clusters.find((entry) => entry.number === event.cluster);
  const node = element("article", { class: "event", tabindex: "0", "aria-label": `${event.site} ${event.onset} UTC` },
    element("h2", {}, event.site, element("span", { class: "cluster" }, `cluster ${event.cluster}${cluster?.name ? ` · ${cluster.name}` : ""}`)),
    element("p", {}, `${event.onset} UTC`),
    element("p", { class: "details" }, "\u00a0"),
    element("div", { class: "drawing" }),
    element("div", { class: "buttons", role: "group", "aria-label": "Label" }),
  );
  node.dataset.eventId = event.event_id;
  node.style.setProperty("--cluster", cluster?.colour ?? "gray");
  showButtons(node, event);
  observer.observe(node);
  return node;
}

function showButtons(node, event) {
  const names = state.summary.label_names.slice(0, 9);
  if (event.label && !names.includes(event.label)) names.push(event.label);
  node.querySelector(".buttons").replaceChildren(
    ...names.map((label, index) => element("button", {
      type: "button", "aria-pressed": String(event.label === label), title: index < 9 ? `key ${index + 1}` : "",
      onclick: attempt(() => setLabel([event], event.label === label ? null : label)),
    }, label)),
    element("button", {
      type: "button", class: "other", onclick: attempt(() => {
        const label = window.prompt("Label", event.label ?? "");
        return label === null ? undefined : setLabel([event], label.trim() || null);
      }),
    }, "other…"),
  );
}

async function setLabel(events, label) {
  if (!events.length) return;
  const answer = await ask("/api/labels", { event_ids: events.map((event) => event.event_id), label });
  for (const event of events) event.label = label;
  state.summary.labels = answer.labels;
  if (label && !state.summary.label_names.includes(label)) state.summary.label_names.push(label);
  showSummary();
  for (const node of document.querySelectorAll(".event")) {
    const event = state.events.find((entry) => entry.event_id === node.dataset.eventId);
    if (event) showButtons(node, event);
  }
  sayCount(`, saved to ${state.summary.labels_path}`);
}

document.addEventListener("keydown", (press) => {
  if (press.ctrlKey || press.metaKey || press.altKey || ["INPUT", "SELECT", "TEXTAREA"].includes(press.target.tagName)) return;
  const nodes = [...document.querySelectorAll(".event")];
  const current = nodes.indexOf(document.activeElement?.closest(".event"));
  if (press.key === "j" || press.key === "k") {
    const node = nodes[Math.min(Math.max(current + (press.key === "j" ? 1 : -1), 0), nodes.length - 1)];
    node?.focus();
    node?.scrollIntoView({ block: "center" });
  } else if (/^[0-9]$/.test(press.key) && current >= 0) {
    const label = press.key === "0" ? null : state.summary.label_names[Number(press.key) - 1];
    if (label !== undefined) attempt(setLabel)([state.events[current]], label);
  }
});

byId("filter").addEventListener("change", restart);
byId("filter").addEventListener("submit", (submit) => { submit.preventDefault(); restart(); });
byId("next").addEventListener("click", () => { state.cursors.push(state.following); loadEvents(); });
byId("back").addEventListener("click", () => { state.cursors.pop(); loadEvents(); });

loadSummary().then(loadEvents);
