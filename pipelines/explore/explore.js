"use strict";

// What the page knows, and which events it shows. Everything that comes from the server is set as text or parsed as an
// image, never as markup.

const byId = (id) => document.getElementById(id);
// `page` is what the cards show, see pages.js; `ordered`: the order of the list was chosen by hand; `seconds` of the
// figures' time, "" for the whole window.
const state = { summary: null, view: "map", cluster: "", page: null, events: [], seconds: "", reading: false, saved: false, ordered: false };

// A message at the top of the page; `more` is shown while the pointer rests on it.
function say(text, isError = false, more = "") {
  byId("status").textContent = text;
  byId("status").title = more;
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

const clusterOf = (number) => state.summary.clusters.find((cluster) => cluster.number === number);

function clusterName(number) {
  const name = clusterOf(number)?.name;
  return `cluster ${number}${name ? ` · ${name}` : ""}`;
}

function showSummary() {
  const { clusters, labels } = state.summary;
  const all = { number: "", events: clusters.reduce((sum, cluster) => sum + cluster.events, 0), colour: "transparent" };
  for (const cluster of [all, ...clusters]) {
    const row = rowOf(cluster.number);
    // A row whose name is being typed stays as it is.
    if (!row) byId("clusters").append(clusterRow(cluster));
    else if (!row.querySelector(".typed")) row.replaceWith(clusterRow(cluster));
  }
  const chosen = byId("label").value;
  byId("label").replaceChildren(
    element("option", { value: "*" }, "any or none"),
    element("option", { value: "" }, "none yet"),
    ...Object.entries(labels).map(([label, count]) => element("option", { value: label }, `${label} (${count})`)),
  );
  byId("label").value = [...byId("label").options].some((option) => option.value === chosen) ? chosen : "*";
  showUndo();
  showBulk();
  sayCount();
}

function showUndo() {
  const { undo: words } = state.summary;
  byId("undo").disabled = !words || state.reading;
  byId("undo-words").textContent = words ? `: ${words}` : "";
}

// Clusters of one colour differ in the form of the chip.
function chipOf(cluster) {
  const chip = element("span", { class: "chip", "data-form": cluster?.form ?? 0 });
  chip.style.background = cluster?.colour ?? "gray";
  return chip;
}

function clusterRow(cluster) {
  const whole = cluster.number === "";
  const chip = chipOf(cluster);
  const name = whole ? "all clusters" : `${cluster.number}${cluster.name ? ` · ${cluster.name}` : ""}`;
  const choose = element("button", {
    type: "button", class: "choose", "aria-pressed": String(Boolean(state.page?.follows) && state.cluster === cluster.number),
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

function markCluster() {
  for (const row of document.querySelectorAll("#clusters li")) {
    const pressed = state.page.follows && row.dataset.number === String(state.cluster);
    row.querySelector(".choose")?.setAttribute("aria-pressed", String(Boolean(pressed)));
  }
}

const rowOf = (number) => document.querySelector(`#clusters li[data-number="${number}"]`);

// The other rows stay as they are: who leaves a field by a click on one of them must not find another one there.
function showRow(cluster) {
  rowOf(cluster.number).replaceWith(clusterRow(cluster));
}

// Who names a cluster sees its events. The field stays until it is used, left with Escape, or another one is opened.
function editName(cluster) {
  if (state.cluster !== cluster.number || !state.page.follows) chooseCluster(cluster.number);
  for (const other of state.summary.clusters) if (rowOf(other.number).querySelector(".typed")) showRow(other);
  rowOf(cluster.number).replaceChildren(textField(`Name of cluster ${cluster.number}`, cluster.name, (name) => rename(cluster, name), () => showRow(cluster), true));
}

// A field in the place of a button: Enter takes the text, and so does leaving the field once it has another text; Escape
// leaves all as it was, and so does leaving the field as it was, unless it `stays`.
function textField(words, value, take, leave, stays = false) {
  const field = element("input", { type: "text", class: "typed", "aria-label": words, title: words, placeholder: "name, Enter saves", list: "known", autocomplete: "off" });
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
    if (typed && typed !== (value ?? "")) end(attempt(() => take(typed)));
    else if (!stays) end(leave);
  });
  setTimeout(() => { field.focus(); field.select(); });
  return field;
}

// What was saved stays said until there is something else to say.
function sayCount() {
  const total = Object.values(state.summary.labels).reduce((sum, count) => sum + count, 0);
  say(`${total.toLocaleString("en")} labelled by hand${state.saved ? ", saved" : ""}`, false, state.summary.labels_path);
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
    showUndo();
    showLabels();
  }
  say(`cluster ${cluster.number} ${name ? `is ${name}` : "has no name"}, saved`, false, state.summary.names_path);
}

// What was typed once has a button on every event.
function offerLabel(label) {
  if (!label || state.summary.label_names.includes(label)) return;
  state.summary.label_names.push(label);
  byId("known").append(element("option", { value: label }));
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

document.addEventListener("DOMContentLoaded", async () => {
  byId("filter").addEventListener("change", () => narrow({}));
  byId("filter").addEventListener("submit", (submit) => { submit.preventDefault(); narrow({}); });
  byId("order").addEventListener("change", () => { state.ordered = true; });
  for (const button of document.querySelectorAll(".next")) button.addEventListener("click", () => open_(state.page.following));
  for (const button of document.querySelectorAll(".back, .return")) button.addEventListener("click", () => history.back());
  byId("label-all").addEventListener("click", () => showBulk(byId("bulk").hidden));
  byId("undo").addEventListener("click", undo);
  for (const button of document.querySelectorAll("#seconds button")) button.addEventListener("click", () => showSeconds(button.value));
  for (const button of document.querySelectorAll("#views button")) button.addEventListener("click", () => showView(button.dataset.view));
  if (window.matchMedia("(max-width: 52rem)").matches) for (const id of ["clusters-box", "filter-box"]) byId(id).open = false;
  new ResizeObserver(measureTop).observe(byId("top"));
  await loadSummary();
  if (!state.summary) return;
  document.body.append(element("datalist", { id: "known" }, ...state.summary.label_names.map((name) => element("option", { value: name }))));
  begin();
});
