"use strict";

// The map of the embedding, drawn by deck.gl (of the package pydeck). Its events come in random order, so that the first
// of them are a sample of all: while the map moves, only as many are drawn as can be 30 times a second.

const DOT = 2.4;                 // Width of an event (CSS pixels).
const REACH = 14;                // From the pointer to the event that a click opens, at most (CSS pixels).
const SHADE = { faded: 28, plain: 170, chosen: 255 };
const GREY = [140, 150, 160];
const FRAME = 33;                // Milliseconds of a frame while the map moves.
const NAMED_BY = 20000;          // Events whose places say where the names of clusters stand.
const REST = 700;                // Milliseconds that drawing the whole map may take once it rests.

const map = {
  deck: null, layer: null, count: 0, xy: null, clusters: null, colours: null, hours: null, sites: null, layout: "", version: 0,
  view: { target: [0, 0, 0], zoom: 8 }, moving: 20000, drawn: 0, chosen: null, lasso: false, path: [], names: [], touched: false, sketch: false,
};

function loadDeck() {
  return new Promise((resolve, reject) => {
    const script = element("script", { src: "deck.js", onload: resolve, onerror: () => reject(new Error("deck.js was not found")) });
    document.head.append(script);
  });
}

const showMap = attempt(async () => {
  if (map.deck || map.loading) { moved(); return; }
  map.loading = true;
  if (!document.createElement("canvas").getContext("webgl2")) {
    byId("map-words").textContent = "The map needs WebGL 2, which this browser does not offer. The lists work without it.";
    return;
  }
  try {
    const [, sketch] = await Promise.all([loadDeck(), askNumbers("/api/map/sketch", Uint8Array)]);
    if (sketch.length) {
      const count = sketch.length / 12;
      map.sketch = true;
      takeEvents(new Float32Array(sketch.buffer, 0, 2 * count), new Int32Array(sketch.buffer, 8 * count, count));
    }
    const [plane, clusters] = await Promise.all([
      askNumbers("/api/map/plane?layout=components", Float32Array), askNumbers("/api/map/clusters", Int32Array),
    ]);
    map.sketch = false;
    takeEvents(plane, clusters);
    byId("layout").addEventListener("change", attempt(() => setLayout(byId("layout").value)));
    await followLayouts();
  } catch (error) {
    byId("map-words").textContent = error.message;
  }
});

function takeEvents(plane, clusters) {
  map.xy = plane;
  map.clusters = clusters;
  map.count = clusters.length;
  map.colours = new Uint8Array(4 * map.count);
  map.layout = "components";
  placeNames();
  if (!map.touched) map.view = { target: [0, 0, 0], zoom: wholeZoom() };
  if (!map.deck) startDeck();
  recolour();
}

// The layouts are made one after the other; the last, in which the clusters lie apart, is shown when it is there.
async function followLayouts() {
  for (;;) {
    const found = await ask("/api/map");
    byId("layout").replaceChildren(...found.layouts.map((layout) => {
      const option = element("option", { value: layout.name }, layout.ready ? layout.words : `${layout.words}, in work…`);
      option.disabled = !layout.ready;
      return option;
    }));
    byId("layout").value = map.layout;
    map.total = found.total;
    sayMap();
    if (found.failure) throw new Error(found.failure);
    if (found.layouts.every((layout) => layout.ready)) break;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  if (!map.touched) await setLayout("neighbours");
}

async function setLayout(layout) {
  map.xy = await askNumbers(`/api/map/plane?layout=${layout}`, Float32Array);
  map.layout = layout;
  placeNames();
  byId("layout").value = layout;
  map.version += 1;
  fit();
  refresh();
}

function sayMap() {
  if (map.sketch) {
    byId("map-words").textContent = `A first look at ${countOf(map.count, "event")}; the map of all follows…`;
    return;
  }
  const part = map.total > map.count ? `${map.count.toLocaleString("en")} of ${map.total.toLocaleString("en")} events, drawn at random` : countOf(map.count, "event");
  const moving = map.drawn < map.count ? `; ${map.drawn.toLocaleString("en")} of them are drawn, as many as this machine can` : "";
  const layout = map.layout === "neighbours" ? "Near events are alike; distances between groups mean nothing." : "The two directions in which the events differ most.";
  byId("map-words").textContent = `${part}${moving}. ${layout} A click opens an event${state.reading ? ", first of those with a waveform here" : ""}; drag to move, or with Shift or “Lasso” to choose.`;
}

// One point for each event: plain points need a tenth of the work of deck.gl's circles where no graphics card helps.
function pointsLayer() {
  const vs = `#version 300 es
    #define SHADER_NAME events
    in vec2 positions;
    in vec4 colors;
    out vec4 colour;
    void main(void) {
      gl_Position = project_position_to_clipspace(vec3(positions, 0.0), vec3(0.0), vec3(0.0));
      gl_PointSize = dots.size;
      colour = colors;
    }`;
  const fs = `#version 300 es
    precision mediump float;
    in vec4 colour;
    out vec4 fragColor;
    void main(void) {
      vec2 from = gl_PointCoord - 0.5;
      if (dots.size > 3.0 && dot(from, from) > 0.25) discard;
      fragColor = colour;
    }`;
  const uniforms = "layout(std140) uniform dotsUniforms { float size; } dots;\n";
  const dots = { name: "dots", vs: uniforms, fs: uniforms, uniformTypes: { size: "f32" } };
  class EventsLayer extends deck.Layer {
    initializeState() {
      const device = this.context.device;
      const buffers = { positions: device.createBuffer({ data: this.props.xy }), colors: device.createBuffer({ data: this.props.colours }) };
      const model = new luma.Model(device, {
        ...super.getShaders({ vs, fs, modules: [deck.project32, dots] }),
        id: this.props.id, topology: "point-list", isInstanced: false, vertexCount: this.props.count,
        bufferLayout: [{ name: "positions", format: "float32x2" }, { name: "colors", format: "unorm8x4" }],
        attributes: buffers, parameters: { depthWriteEnabled: false, depthCompare: "always" },
      });
      this.setState({ model, buffers });
    }
    updateState({ props, oldProps }) {
      if (oldProps.version === undefined || props.version === oldProps.version) return;
      this.state.buffers.positions.write(props.xy);
      this.state.buffers.colors.write(props.colours);
    }
    draw() {
      const { model } = this.state;
      model.setVertexCount(this.props.count);
      model.shaderInputs.setProps({ dots: { size: this.props.size } });
      model.draw(this.context.renderPass);
    }
    finalizeState(context) {
      super.finalizeState(context);
      this.state.buffers.positions.destroy();
      this.state.buffers.colors.destroy();
    }
  }
  EventsLayer.layerName = "EventsLayer";
  return EventsLayer;
}

function startDeck() {
  const Layer = pointsLayer();
  map.layer = (count) => new Layer({
    id: `events${map.count}`, xy: map.xy, colours: map.colours, count, version: map.version,
    size: dotSize() * (window.devicePixelRatio || 1),
  });
  map.deck = new deck.Deck({
    parent: byId("map"), views: new deck.OrthographicView({ flipY: false }), controller: { keyboard: false, scrollZoom: { speed: 0.01, smooth: false } },
    viewState: map.view, layers: [], useDevicePixels: true, getCursor: () => (map.lasso ? "crosshair" : "default"),
    onViewStateChange: ({ viewState }) => { map.touched = true; setView(viewState); },
    onClick: (info) => { if (!map.lasso) pick(info.x, info.y); },
    onResize: () => { moved(); },
    onError: (error) => { byId("map-words").textContent = `The map cannot be drawn: ${error.message}`; },
  });
  moved();
}

// The closer the view, the larger the dots; few events have larger ones, too.
function dotSize() {
  const few = Math.min(Math.max(4e4 / Math.max(map.count, 1), 1), 3);
  return DOT * Math.sqrt(few) * Math.min(Math.max(2 ** ((map.view.zoom - wholeZoom()) / 4), 1), 3);
}

function box() { const { width, height } = byId("map").getBoundingClientRect(); return { width, height }; }
function wholeZoom() { const { width, height } = box(); return Math.log2(Math.max(Math.min(width, height), 40) / 2.35); }
function fit() { setView({ target: [0, 0, 0], zoom: wholeZoom() }); }
function setView(view) {
  map.view = { target: view.target, zoom: Math.min(Math.max(view.zoom, wholeZoom() - 2), wholeZoom() + 14) };
  moved();
}
function toScreen(x, y) {
  const { width, height } = box();
  const scale = 2 ** map.view.zoom;
  return [width / 2 + (x - map.view.target[0]) * scale, height / 2 - (y - map.view.target[1]) * scale];
}
function toMap(x, y) {
  const { width, height } = box();
  const scale = 2 ** map.view.zoom;
  return [map.view.target[0] + (x - width / 2) / scale, map.view.target[1] - (y - height / 2) / scale];
}

// While the map moves, the number of events that are drawn follows the time that a frame takes.
let lastFrame = 0;
let resting = 0;
function moved() {
  if (!map.deck) return;
  clearTimeout(resting);
  draw_(Math.min(map.moving, map.count));
  requestAnimationFrame((now) => {
    const took = now - lastFrame;
    lastFrame = now;
    if (took > 4 * FRAME && took > 400) return;
    if (took > 1.1 * FRAME) map.moving = Math.max(Math.round(map.moving * 0.8), 2000);
    else if (took < 0.7 * FRAME) map.moving = Math.min(Math.round(map.moving * 1.25), Math.max(map.count, 2000));
  });
  resting = setTimeout(rest, 180);
}
function rest() {
  draw_(Math.min(map.count, Math.round(map.moving * (REST / FRAME))));
  sayMap();
}
function draw_(count) {
  map.drawn = count;
  map.deck.setProps({ viewState: map.view, layers: [map.layer(count)] });
  markEvents();
}
function refresh() {
  map.version += 1;
  if (map.deck) moved();
}

// Colours: by cluster or by hand label; what is not of the chosen cluster, or not chosen, is faded.
const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

// Whether an event is of the chosen cluster, station and hour.
function isAmong(at, site, hour) {
  return (state.cluster === "" || map.clusters[at] === state.cluster)
    && (!map.hours || ((hour === "" || map.hours[at] === Number(hour)) && (site === "" || places.sites[map.sites[at]] === site)));
}

const recolour = attempt(async () => {
  if (!map.colours) return;
  const byLabel = byId("colouring").value === "label";
  const palette = state.summary.clusters.map((cluster) => cluster.colour);
  const colourOf = new Map(state.summary.clusters.map((cluster) => [cluster.number, rgb(cluster.colour)]));
  const chosen = map.chosen;
  const into = map.colours;
  const one = state.cluster;
  const { site, hour } = narrowed();
  if ((site || hour) && !map.sketch && !map.hours) {
    [, map.hours, map.sites] = await Promise.all([askPlaces(), askNumbers("/api/map/hours", Uint8Array), askNumbers("/api/map/sites", Int32Array)]);
    recolour();
    return;
  }
  const narrow_ = one !== "" || site !== "" || hour !== "";
  for (let at = 0; at < map.count; at += 1) {
    const cluster = map.clusters[at];
    const [red, green, blue] = byLabel ? GREY : colourOf.get(cluster) ?? GREY;
    into[4 * at] = red; into[4 * at + 1] = green; into[4 * at + 2] = blue;
    into[4 * at + 3] = chosen ? (chosen.has(at) ? SHADE.chosen : SHADE.faded) : narrow_ ? (isAmong(at, site, hour) ? SHADE.chosen : SHADE.faded) : byLabel ? SHADE.faded * 2 : SHADE.plain;
  }
  byId("legend").hidden = !byLabel;
  if (byLabel && !map.sketch) {
    const labelled = await ask("/api/map/labelled");
    byId("legend").replaceChildren(...Object.entries(labelled).map(([label, points], index) => {
      const colour = state.summary.label_colours[index % state.summary.label_colours.length];
      const [red, green, blue] = rgb(colour);
      for (const at of points) { into[4 * at] = red; into[4 * at + 1] = green; into[4 * at + 2] = blue; into[4 * at + 3] = SHADE.chosen; }
      const chip = element("span", { class: "chip" });
      chip.style.background = colour;
      return element("li", {}, chip, ` ${label} (${points.length.toLocaleString("en")})`);
    }));
    if (!Object.keys(labelled).length) byId("legend").replaceChildren(element("li", {}, "no event has a hand label yet"));
  }
  refresh();
});

// Where the name of each cluster stands: at its event nearest to the medians of its coordinates, of the first on the map.
function placeNames() {
  const members = new Map(state.summary.clusters.map((cluster) => [cluster.number, []]));
  for (let at = 0; at < Math.min(map.count, NAMED_BY); at += 1) members.get(map.clusters[at])?.push(at);
  const median = (values) => values.sort((one, other) => one - other)[values.length >> 1];
  map.names = [...members].filter(([, own]) => own.length).map(([number, own]) => {
    const [x, y] = [0, 1].map((axis) => median(own.map((at) => map.xy[2 * at + axis])));
    const far = (at) => (map.xy[2 * at] - x) ** 2 + (map.xy[2 * at + 1] - y) ** 2;
    return { number, at: own.reduce((best, at) => (far(at) < far(best) ? at : best)) };
  });
}

// Rings around the events whose cards are shown, a thicker one around the current.
let current = null;
function markEvents(event = current) {
  current = event;
  const over = byId("over");
  if (!map.deck || !map.xy) return;
  const shown = state.events.filter((entry) => entry.point !== undefined);
  const rings = shown.map((entry) => {
    const [x, y] = toScreen(map.xy[2 * entry.point], map.xy[2 * entry.point + 1]);
    const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of Object.entries({ cx: x, cy: y, r: entry === event ? 9 : 5, class: entry === event ? "current" : "ring" })) ring.setAttribute(name, value);
    return ring;
  });
  const names = byId("colouring").value === "label" ? [] : map.names.map(({ number, at }) => {
    const [x, y] = toScreen(map.xy[2 * at], map.xy[2 * at + 1]);
    const text = svgNode("text", { x, y });
    text.textContent = `${number}${clusterOf(number).name ? ` · ${clusterOf(number).name}` : ""}`;
    return text;
  });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", map.path.map((point) => point.join(",")).join(" "));
  over.replaceChildren(...rings, ...names, line);
}

// The event nearest to a place of the map, if one is within reach; in a copy first of those that have a waveform.
function pick(x, y) {
  if (map.sketch) return;
  const [there, up] = toMap(x, y);
  const among = (some) => {
    let best = -1;
    let least = (REACH / 2 ** map.view.zoom) ** 2;
    for (const at of some) {
      const distance = (map.xy[2 * at] - there) ** 2 + (map.xy[2 * at + 1] - up) ** 2;
      if (distance < least) { least = distance; best = at; }
    }
    return best;
  };
  const drawn = state.reading ? among(firnline.found.map.drawn) : -1;
  const best = drawn < 0 ? among(Array(map.count).keys()) : drawn;
  if (best < 0) { choose(null); return; }
  map.touched = true;
  current = null;
  open_(ofPoints("The event", [best])).then(() => { current = state.events[0]; markEvents(); bringEvents(); });
}

function choose(points, title = "chosen") {
  map.touched = true;
  map.chosen = points && points.length ? new Set(points) : null;
  recolour();
  if (points) open_(ofPoints(capital(title), points, { lasso: true, nothing: "No event lies there." }), true);
  else if (state.page.lasso) restart();
}

function inside(polygon) {
  if (map.sketch) return [];
  const corners = polygon.map(([x, y]) => toMap(x, y));
  const bounds = [0, 1].map((axis) => [Math.min(...corners.map((corner) => corner[axis])), Math.max(...corners.map((corner) => corner[axis]))]);
  const found = [];
  const { site, hour } = narrowed();
  for (let at = 0; at < map.count; at += 1) {
    const x = map.xy[2 * at];
    const y = map.xy[2 * at + 1];
    if (x < bounds[0][0] || x > bounds[0][1] || y < bounds[1][0] || y > bounds[1][1]) continue;
    if (!isAmong(at, site, hour)) continue;
    let within = false;
    for (let one = 0, other = corners.length - 1; one < corners.length; other = one, one += 1) {
      const [ax, ay] = corners[one];
      const [bx, by] = corners[other];
      if ((ay > y) !== (by > y) && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) within = !within;
    }
    if (within) found.push(at);
  }
  return found;
}

function setLasso(on) {
  map.lasso = on;
  byId("lasso").setAttribute("aria-pressed", String(on));
  byId("over").classList.toggle("active", on);
}

function chooseInView() {
  const { width, height } = box();
  choose(inside([[0, 0], [width, 0], [width, height], [0, height]]), "in view");
}

function zoomBy(steps) { map.touched = true; setView({ ...map.view, zoom: map.view.zoom + steps }); }
function moveBy(x, y) {
  map.touched = true;
  const step = 0.15 * Math.min(...Object.values(box())) / 2 ** map.view.zoom;
  setView({ ...map.view, target: [map.view.target[0] + x * step, map.view.target[1] + y * step, 0] });
}

const MAP_KEYS = {
  ArrowLeft: () => moveBy(-1, 0), ArrowRight: () => moveBy(1, 0), ArrowUp: () => moveBy(0, 1), ArrowDown: () => moveBy(0, -1),
  "+": () => zoomBy(0.5), "=": () => zoomBy(0.5), "-": () => zoomBy(-0.5), f: fit,
  Enter: () => { const { width, height } = box(); pick(width / 2, height / 2); },
  s: chooseInView, l: () => setLasso(!map.lasso), Escape: () => { setLasso(false); choose(null); },
};

// Whether a key was one of the map's, which has the focus.
function mapKey(press) {
  if (document.activeElement !== byId("map") || !map.deck || !(press.key in MAP_KEYS)) return false;
  press.preventDefault();
  MAP_KEYS[press.key]();
  return true;
}

document.addEventListener("DOMContentLoaded", () => {
  const over = byId("over");
  const place = (event) => { const { left, top } = byId("map").getBoundingClientRect(); return [event.clientX - left, event.clientY - top]; };
  // With Shift the map gives the pointer to the lasso before deck.gl sees it.
  byId("map").addEventListener("pointerdown", (event) => {
    if (!map.deck || event.button !== 0 || !(map.lasso || event.shiftKey)) return;
    event.stopPropagation();
    event.preventDefault();
    over.setPointerCapture(event.pointerId);
    map.path = [place(event)];
  }, true);
  over.addEventListener("pointermove", (event) => {
    if (!map.path.length) return;
    map.path.push(place(event));
    markEvents();
  });
  const end = () => {
    const path = map.path;
    map.path = [];
    markEvents();
    if (path.length > 2) choose(inside(path), "chosen");
  };
  over.addEventListener("pointerup", end);
  over.addEventListener("pointercancel", () => { map.path = []; markEvents(); });
  byId("lasso").addEventListener("click", () => setLasso(!map.lasso));
  byId("in-view").addEventListener("click", chooseInView);
  byId("zoom-in").addEventListener("click", () => zoomBy(1));
  byId("zoom-out").addEventListener("click", () => zoomBy(-1));
  byId("fit").addEventListener("click", fit);
  byId("colouring").addEventListener("change", recolour);
});
