"use strict";

// Events by hour of the day and by station, and where the stations are. The counts are those of all events, whether they
// are on the map of the embedding or not; an hour or a station that is chosen narrows every view.

const places = { sites: [], clusters: [], positions: [], counts: null, asked: null };
const HOUR_ROW = 40;             // Height of a cluster's histogram (CSS pixels).
const NAMED_STATIONS = 40;       // Stations on their map that have their names beside them, at most.
const EARTH_KM = 6371;

const hourWords = (hour) => `${String(hour).padStart(2, "0")}–${String(Number(hour) + 1).padStart(2, "0")} UTC`;

function askPlaces() {
  places.asked ??= Promise.all([ask("/api/places"), askNumbers("/api/places/counts", Uint32Array)]).then(([found, counts]) => {
    Object.assign(places, found, { counts });
  }, (error) => { places.asked = null; throw error; });
  return places.asked;
}

// Events of all hours, or of one; of all stations and clusters, or of one.
function countEvents({ site = "", cluster = "", hour = "" }) {
  const [sites, clusters, hours] = [[places.sites, site], [places.clusters, cluster], [[...Array(24).keys()], hour === "" ? "" : Number(hour)]]
    .map(([names, one]) => (one === "" ? [...names.keys()] : [names.indexOf(one)].filter((at) => at >= 0)));
  let sum = 0;
  for (const at of sites) for (const own of clusters) for (const slot of hours) sum += places.counts[(at * places.clusters.length + own) * 24 + slot];
  return sum;
}

const showPlaces = attempt(async () => {
  byId("places-words").textContent = "Counting…";
  await askPlaces();
  drawPlaces();
});

function drawPlaces() {
  if (!places.counts || state.view !== "places") return;
  const { site, hour } = narrowed();
  byId("places-words").textContent = `${countOf(countEvents({ site, cluster: state.cluster, hour }), "event")}${site ? ` of ${site}` : ""}${state.cluster === "" ? "" : ` in ${clusterName(state.cluster)}`}${hour === "" ? "" : `, ${hourWords(hour)}`}. A click on an hour or a station chooses it for all views; a second click leaves it.`;
  drawHours(site, hour);
  drawStations(site, hour);
  drawStationMap(site, hour);
}

function drawHours(site, hour) {
  const svg = byId("hours");
  const shown = [{ number: "", colour: "var(--muted)" }, ...state.summary.clusters];
  const width = svg.parentElement.getBoundingClientRect().width;
  const height = shown.length * HOUR_ROW + 18;
  const left = Math.min(150, width / 3);
  const slot = (width - left - 4) / 24;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const drawn = [];
  if (hour !== "") drawn.push(svgNode("rect", { x: left + Number(hour) * slot, y: 0, width: slot, height: height - 16, class: "own" }));
  shown.forEach((cluster, row) => {
    const events = [...Array(24).keys()].map((at) => countEvents({ site, cluster: cluster.number, hour: at }));
    const most = Math.max(...events, 1);
    const base = (row + 1) * HOUR_ROW - 5;
    const name = svgNode("text", { x: left - 8, y: base - HOUR_ROW / 2 + 8, "text-anchor": "end", class: cluster.number === state.cluster ? "row chosen" : "row" });
    const words = cluster.number === "" ? "all clusters" : `${cluster.number}${cluster.name ? ` · ${cluster.name}` : ""}`;
    name.textContent = words.length > left / 7 ? `${words.slice(0, Math.floor(left / 7) - 1)}…` : words;
    name.addEventListener("click", () => chooseCluster(cluster.number));
    drawn.push(name, svgNode("line", { x1: left, x2: width - 4, y1: base, y2: base }));
    events.forEach((count, at) => {
      const tall = (count / most) * (HOUR_ROW - 12);
      const bar = svgNode("rect", { x: left + at * slot + 0.5, y: base - tall, width: Math.max(slot - 1, 1), height: tall });
      bar.style.fill = cluster.colour;
      const hit = svgNode("rect", { x: left + at * slot, y: base - HOUR_ROW + 5, width: slot, height: HOUR_ROW, class: "hit" });
      const title = svgNode("title", {});
      title.textContent = `${cluster.number === "" ? "all clusters" : clusterName(cluster.number)}, ${hourWords(at)}: ${countOf(count, "event")}`;
      hit.append(title);
      hit.addEventListener("click", () => narrow({ hour: String(at) === String(hour) ? "" : String(at) }));
      drawn.push(bar, hit);
    });
  });
  for (const at of [0, 6, 12, 18]) {
    const label = svgNode("text", { x: left + at * slot, y: height - 3 });
    label.textContent = at === 0 ? "0 h UTC" : String(at);
    drawn.push(label);
  }
  svg.replaceChildren(...drawn);
}

function drawStations(site, hour) {
  const total = (one) => countEvents({ site: one, cluster: state.cluster, hour });
  const most = Math.max(...places.sites.map(total), 1);
  const clusters = state.summary.clusters.filter((cluster) => state.cluster === "" || cluster.number === state.cluster);
  byId("stations").replaceChildren(...places.sites.map((one) => {
    const parts = clusters.map((cluster) => {
      const part = element("span", {});
      part.style.background = cluster.colour;
      part.style.width = `${(100 * countEvents({ site: one, cluster: cluster.number, hour })) / most}%`;
      return part;
    });
    const place = places.positions.find((position) => position.site === one);
    return element("li", {}, element("button", {
      type: "button", class: "choose", "aria-pressed": String(one === site), title: place ? placeWords(place) : "",
      onclick: () => narrow({ site: one === site ? "" : one }),
    }, element("span", {}, one), element("span", { class: "parts" }, ...parts), element("span", { class: "events" }, total(one).toLocaleString("en"))));
  }));
}

function placeWords(place) {
  const moved = place.places > 1 ? `; the last of ${place.places} places` : "";
  const degrees = (value, [above, below]) => `${Math.abs(value).toFixed(4)}° ${value < 0 ? below : above}`;
  return `${place.site}: ${degrees(place.latitude_deg, "NS")}, ${degrees(place.longitude_deg, "EW")}, ${place.elevation_m.toFixed(0)} m${moved}`;
}

// The stations about their middle: distances and directions from there are true (azimuthal equidistant).
function projection(positions) {
  const rad = Math.PI / 180;
  const vector = (latitude, longitude) => [Math.cos(latitude * rad) * Math.cos(longitude * rad), Math.cos(latitude * rad) * Math.sin(longitude * rad), Math.sin(latitude * rad)];
  const mean = [0, 1, 2].map((axis) => positions.reduce((sum, one) => sum + vector(one.latitude_deg, one.longitude_deg)[axis], 0));
  const latitude = Math.atan2(mean[2], Math.hypot(mean[0], mean[1])) / rad;
  const longitude = Math.atan2(mean[1], mean[0]) / rad;
  const [east, north, up] = [
    [-Math.sin(longitude * rad), Math.cos(longitude * rad), 0],
    [-Math.sin(latitude * rad) * Math.cos(longitude * rad), -Math.sin(latitude * rad) * Math.sin(longitude * rad), Math.cos(latitude * rad)],
    vector(latitude, longitude),
  ];
  const along = (one, other) => one[0] * other[0] + one[1] * other[1] + one[2] * other[2];
  const project = (lat, lon) => {
    const to = vector(lat, lon);
    const [x, y] = [along(to, east), along(to, north)];
    const flat = Math.hypot(x, y);
    const far = EARTH_KM * Math.atan2(flat, along(to, up));
    return flat < 1e-15 ? [0, 0] : [(far * x) / flat, (far * y) / flat];
  };
  return { project, latitude, longitude };
}

// The largest of 1, 2 or 5 times a power of ten up to a value.
function roundDown(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [5, 2, 1].find((step) => step * power <= value * (1 + 1e-9)) * power;
}

function drawStationMap(site, hour) {
  const svg = byId("station-map");
  const { positions } = places;
  const without = places.sites.filter((one) => !positions.some((position) => position.site === one));
  svg.toggleAttribute("hidden", !positions.length);
  byId("station-words").textContent = !positions.length
    ? "Where the stations are is not known: the archive was detected without archive.stationxml."
    : `The larger a circle, the more events. North is up.${without.length ? ` Not in the StationXML: ${without.slice(0, 20).join(", ")}${without.length > 20 ? `, and ${without.length - 20} more` : ""}.` : ""}`;
  if (!positions.length) return;
  const { width, height } = svg.getBoundingClientRect();
  if (!width) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const { project, latitude, longitude } = projection(positions);
  const placed = positions.map((one) => project(one.latitude_deg, one.longitude_deg));
  const bounds = [0, 1].map((axis) => [Math.min(...placed.map((one) => one[axis])), Math.max(...placed.map((one) => one[axis]))]);
  const spans = bounds.map(([low, high]) => Math.max(high - low, 0.02));
  const scale = Math.min((width - 130) / spans[0], (height - 90) / spans[1]);
  const middle = bounds.map(([low, high]) => (low + high) / 2);
  const toScreen_ = ([x, y]) => [width / 2 + (x - middle[0]) * scale, height / 2 - (y - middle[1]) * scale];
  // Lines of latitude and longitude, some four across the picture.
  const half = [width / 2 / scale, height / 2 / scale];
  const degree = (EARTH_KM * Math.PI) / 180;
  const lines = [];
  const grid = (isLatitude) => {
    const span = (isLatitude ? half[1] : half[0] / Math.max(Math.cos((latitude * Math.PI) / 180), 0.02)) / degree;
    const step = roundDown(Math.min(span / 2, 30));
    const centre = isLatitude ? latitude : longitude;
    for (let at = Math.ceil((centre - span * 1.6) / step); at * step <= centre + span * 1.6; at += 1) {
      const value = at * step;
      if (isLatitude && Math.abs(value) > 90) continue;
      const other = isLatitude ? longitude : latitude;
      const reach = 2 * (isLatitude ? half[0] / Math.max(Math.cos((latitude * Math.PI) / 180), 0.02) : half[1]) / degree;
      const points = [...Array(41).keys()].map((number) => {
        const along = other + ((number - 20) / 20) * Math.min(reach, isLatitude ? 179 : 90);
        return toScreen_(isLatitude ? project(value, along) : project(Math.max(-90, Math.min(90, along)), value));
      });
      lines.push(svgNode("polyline", { points: points.map((point) => point.join(",")).join(" ") }));
      const inside = points.filter(([x, y]) => x >= 0 && x <= width && y >= 0 && y <= height);
      if (!inside.length) continue;
      const [x, y] = isLatitude ? inside[0] : inside.reduce((lowest, one) => (one[1] > lowest[1] ? one : lowest));
      const label = svgNode("text", isLatitude ? { x: Math.max(x, 0) + 3, y: y - 3 } : { x: x + 3, y: Math.min(y, height) - 4 });
      const wrapped = isLatitude ? value : ((value + 540) % 360) - 180;
      label.textContent = `${Number(Math.abs(wrapped).toPrecision(8))}°${isLatitude ? (value < 0 ? "S" : "N") : wrapped < 0 ? "W" : "E"}`;
      lines.push(label);
    }
  };
  grid(true);
  grid(false);
  const counts = positions.map((one) => countEvents({ site: one.site, cluster: state.cluster, hour }));
  const most = Math.max(...counts, 1);
  const colour = state.summary.clusters.find((cluster) => cluster.number === state.cluster)?.colour ?? "var(--accent)";
  const stations = positions.flatMap((one, at) => {
    const [cx, cy] = toScreen_(placed[at]);
    const r = 4 + 14 * Math.sqrt(counts[at] / most);
    const circle = svgNode("circle", { cx, cy, r, class: one.site === site ? "station chosen" : "station" });
    circle.style.fill = colour;
    const title = svgNode("title", {});
    title.textContent = `${placeWords(one)}; ${countOf(counts[at], "event")}`;
    circle.append(title);
    circle.addEventListener("click", () => narrow({ site: one.site === site ? "" : one.site }));
    if (positions.length > NAMED_STATIONS) return [circle];
    const name = svgNode("text", { x: cx, y: cy - r - 3, "text-anchor": "middle", class: "name" });
    name.textContent = one.site;
    return [circle, name];
  });
  const kilometres = roundDown((width * 0.3) / scale);
  const [right, low] = [width - 12, 22];
  const bar = svgNode("path", { d: `M${right - kilometres * scale},${low}v5H${right}v-5`, class: "scale" });
  const words = svgNode("text", { x: right, y: low - 3, "text-anchor": "end", class: "name" });
  words.textContent = kilometres >= 1 ? `${kilometres} km` : `${Math.round(kilometres * 1000)} m`;
  svg.replaceChildren(...lines, ...stations, bar, words);
}

document.addEventListener("DOMContentLoaded", () => window.addEventListener("resize", drawPlaces));
