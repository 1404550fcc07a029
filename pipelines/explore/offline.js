"use strict";

// In the place of the server: a copy of the explorer for reading has its data in scripts beside the page, since a
// browser reads nothing else from a disk. `ask` and `askNumbers` answer as the server does, from these data.

const firnline = {
  found: {},
  take(name, value) { firnline.found[name] = value; },
};

function load(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => reject(new Error(`${path} is not beside this page; was the copy moved in part?`));
    document.head.append(script);
  });
}

// What another script of the copy holds; `error` where the explorer had nothing to show.
async function loaded(name, path) {
  if (!(name in firnline.found)) await load(path);
  const found = firnline.found[name];
  if (found.error) throw new Error(found.error);
  return found;
}

function numbersOf(text, Kind) {
  const bytes = atob(text);
  const found = new Uint8Array(bytes.length);
  for (let at = 0; at < bytes.length; at += 1) found[at] = bytes.charCodeAt(at);
  return new Kind(found.buffer);
}

// The events of the map as arrays, made of the text when they are first asked for.
let unpacked = null;
function eventsOf() {
  if (unpacked) return unpacked;
  const { map: data } = firnline.found;
  const ids = data.ids.split("\n");
  const labels = new Array(ids.length).fill(null);
  for (const [label, points] of Object.entries(data.labels)) for (const at of points) labels[at] = label;
  unpacked = {
    ids, labels, drawn: new Set(data.drawn), byEvent: new Map(ids.map((id, at) => [id, at])),
    clusters: numbersOf(data.clusters, Int32Array), sites: numbersOf(data.sites, Int32Array), onsets: numbersOf(data.onsets_ms, Float64Array),
    distances: numbersOf(data.distances, Float32Array), margins: numbersOf(data.margins, Float32Array),
  };
  unpacked.hours = Uint8Array.from(unpacked.onsets, (onset) => ((Math.floor(onset / 3600000) % 24) + 24) % 24);
  return unpacked;
}

function eventAt(at) {
  const all = eventsOf();
  const number = (value) => (Number.isFinite(value) ? value : null);
  return {
    event_id: all.ids[at], point: at, site: firnline.found.page.places.sites[all.sites[at]], cluster: all.clusters[at], label: all.labels[at],
    onset: new Date(all.onsets[at]).toISOString().slice(0, 19).replace("T", " "), margin: number(all.margins[at]), distance: number(all.distances[at]),
    drawn: all.drawn.has(at),
  };
}

function instant(text) {
  const time = Date.parse(/[zZ]$|[+-]\d\d:?\d\d$/.test(text) || !text.includes("T") ? text : `${text}Z`);
  if (Number.isNaN(time)) throw new Error(`${text} must be a UTC time such as 2009-01-21T04:00`);
  return time;
}

// A page of the events that a query asks for; the cursor is where it begins among them.
function listed(query) {
  const all = eventsOf();
  const value = (name) => query.get(name) ?? "";
  const { sites } = firnline.found.page.places;
  const [start, end] = ["start", "end"].map((name) => (value(name) ? instant(value(name)) : null));
  const kept = [...all.ids.keys()].filter((at) => (value("cluster") === "" || all.clusters[at] === Number(value("cluster")))
    && (value("site") === "" || sites[all.sites[at]] === value("site")) && (value("hour") === "" || all.hours[at] === Number(value("hour")))
    && (start === null || all.onsets[at] >= start) && (end === null || all.onsets[at] < end)
    && (!query.has("label") || (all.labels[at] ?? "") === value("label")));
  const least = { typical: all.distances, far: all.distances.map((distance) => -distance), uncertain: all.margins }[value("order")];
  const last = (at) => (Number.isFinite(least[at]) ? least[at] : Infinity);
  if (least) kept.sort((one, other) => (last(one) === last(other) ? 0 : last(one) - last(other)));
  else if (value("order") !== "random") kept.sort((one, other) => all.sites[one] - all.sites[other] || all.onsets[one] - all.onsets[other]);
  const first = Number(value("cursor") || 0);
  const size = firnline.found.page.summary.page_events;
  return { events: kept.slice(first, first + size).map(eventAt), total: kept.length, cursor: first + size < kept.length ? String(first + size) : "" };
}

const ANSWERS = {
  "/api/summary": () => firnline.found.page.summary,
  "/api/places": () => firnline.found.page.places,
  "/api/events": listed,
  "/api/points": (query) => ({ events: query.get("points").split(",").map((at) => eventAt(Number(at))) }),
  "/api/typical": (query) => {
    const { clusters, distances } = eventsOf();
    const own = firnline.found.map.drawn.filter((at) => clusters[at] === Number(query.get("cluster"))).sort((one, other) => distances[one] - distances[other]);
    const first = Number(query.get("first") || 0);
    return { events: own.slice(first, first + firnline.found.page.summary.page_events).map(eventAt), total: own.length };
  },
  "/api/neighbours": (query) => ({ events: firnline.found.map.nearest[eventsOf().byEvent.get(query.get("event_id"))].map(eventAt) }),
  "/api/figure": async (query) => {
    const seconds = query.get("seconds");
    const name = `${eventsOf().byEvent.get(query.get("event_id"))}${seconds ? `-${seconds}` : ""}`;
    return loaded(`figure/${name}`, `figures/${name}.js`);
  },
  "/api/map": () => ({
    events: eventsOf().ids.length, total: firnline.found.map.total, failure: "",
    layouts: [{ name: "components", words: "principal components", ready: true }, { name: "neighbours", words: "neighbourhoods (t-SNE)", ready: true }],
  }),
  "/api/map/labelled": () => firnline.found.map.labels,
  "/api/tree": () => loaded("tree", "data/tree.js"),
  "/api/branch": async (query) => {
    const id = query.get("id");
    if (!firnline.found.tree.drawn.includes(id)) throw new Error("This branch has no figure in this copy; those that join last, and those of the clusters, have one.");
    return loaded(`branch/${id}`, `branches/${id}.js`);
  },
};

async function ask(path) {
  const { pathname, searchParams } = new URL(path, "http://copy");
  return ANSWERS[pathname](searchParams);
}

async function askNumbers(path, Kind) {
  const { pathname, searchParams } = new URL(path, "http://copy");
  const all = eventsOf();
  const name = pathname.split("/").at(-1);
  if (name === "sketch") return new Kind(0);
  if (name === "plane") return numbersOf(firnline.found.map.planes[searchParams.get("layout")], Kind);
  return name === "counts" ? numbersOf(firnline.found.page.counts, Kind) : all[name];
}
