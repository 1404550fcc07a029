"use strict";

// The merge tree as a dendrogram: branches by how far apart their two parts are, the leaves at the left.

const tree = { nodes: null, byId: new Map(), place: new Map(), chosen: "", own: [], cut: null };
const SHOWN_LEAVES = 60;

const showTree = attempt(async () => {
  if (!tree.nodes) {
    const found = await ask("/api/tree");
    tree.nodes = found.nodes;
    tree.top = found.nodes.at(-1);
    tree.byId = new Map(found.nodes.map((node) => [node.id, node]));
    tree.parts = found.clusters;
    const numbers = new Map();
    const spread = (id, number) => { numbers.set(id, number); for (const child of tree.byId.get(id).children) spread(child, number); };
    for (const [number, branches] of Object.entries(found.clusters)) for (const id of branches) spread(id, Number(number));
    tree.clusterOf = numbers;
    const named = tree.nodes.filter((node) => node.children.length).sort((one, other) => other.height - one.height).slice(0, 200);
    byId("branch").append(element("option", { value: "" }, "choose…"), ...named.map((node) => element("option", { value: node.id }, branchName(node))));
    byId("cut").max = String((tree.nodes.length + 1) / 2);
  }
  drawTree();
  sayCut();
});

function branchName(node) {
  const cluster = tree.clusterOf.get(node.id);
  return `${node.id}: ${countOf(node.events, "event")}${cluster === undefined ? "" : ` of ${clusterName(cluster)}`}`;
}

// What is drawn as one end: the leaves, or where they are many the branches that join last.
function ends() {
  let found = [tree.top.id];
  while (found.length < SHOWN_LEAVES) {
    const widest = found.filter((id) => tree.byId.get(id).children.length).sort((one, other) => tree.byId.get(other).height - tree.byId.get(one).height)[0];
    if (!widest) break;
    found = found.flatMap((id) => (id === widest ? tree.byId.get(id).children : [id]));
  }
  return found;
}

function svgNode(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function drawTree() {
  const svg = byId("tree");
  const { width, height } = svg.getBoundingClientRect();
  if (!width || !tree.nodes) return;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const [left, right, top, bottom] = [14, width - 26, 12, height - 26];
  tree.across = (value) => left + (right - left) * (value / Math.max(tree.top.height, 1e-12));
  tree.back = (x) => ((x - left) / (right - left)) * tree.top.height;
  const shown = ends();
  const at = new Map(shown.map((id, index) => [id, top + (bottom - top) * ((index + 0.5) / shown.length)]));
  const drawn = [];
  const isEnd = new Set(shown);
  const climb = (id) => {
    const node = tree.byId.get(id);
    if (isEnd.has(id)) return { x: tree.across(node.height), y: at.get(id) };
    const [one, other] = node.children.map(climb);
    const x = tree.across(node.height);
    for (const [child, place] of [[node.children[0], one], [node.children[1], other]]) drawn.push({ id: child, d: `M${place.x},${place.y}H${x}` });
    drawn.push({ id, d: `M${x},${one.y}V${other.y}` });
    return { x, y: (one.y + other.y) / 2 };
  };
  const end = climb(tree.top.id);
  drawn.push({ id: tree.top.id, d: `M${end.x},${end.y}h14` });
  const below = (id) => [id, ...tree.byId.get(id).children.flatMap(below)];
  const chosen = new Set(tree.chosen ? below(tree.chosen) : []);
  const lines = drawn.flatMap(({ id, d }) => {
    const cluster = tree.clusterOf.get(id);
    const line = svgNode("path", { d, class: chosen.has(id) ? "chosen" : "" });
    line.style.stroke = state.summary.clusters.find((entry) => entry.number === cluster)?.colour ?? "var(--muted)";
    const hit = svgNode("path", { d, class: "hit" });
    hit.addEventListener("click", (click) => { click.stopPropagation(); chooseBranch(id); });
    const title = svgNode("title", {});
    title.textContent = branchName(tree.byId.get(id));
    hit.append(title);
    return [line, hit];
  });
  const words = svgNode("text", { x: left, y: height - 8 });
  words.textContent = "alike";
  const far = svgNode("text", { x: right, y: height - 8, "text-anchor": "end" });
  far.textContent = `far apart (height ${tree.top.height.toFixed(2)})`;
  const cut = tree.cut === null ? [] : [svgNode("line", { class: "cut", x1: tree.across(tree.cut), x2: tree.across(tree.cut), y1: 0, y2: height - 22 })];
  svg.replaceChildren(...lines, words, far, ...cut);
}

const chooseBranch = attempt(async (id) => {
  tree.chosen = id;
  byId("branch").value = [...byId("branch").options].some((option) => option.value === id) ? id : "";
  byId("own-cluster").setAttribute("aria-pressed", String(tree.own.includes(id)));
  drawTree();
  byId("branch-words").textContent = "Averaging…";
  byId("branch-figure").replaceChildren();
  const found = await ask(`/api/branch?id=${id}`).catch((error) => {
    byId("branch-words").textContent = `${branchName(tree.byId.get(id))}. ${error.message}`;
    throw error;
  });
  if (tree.chosen !== id) return;
  byId("branch-figure").replaceChildren(imageOf(found.svg));
  byId("branch-words").textContent = `${branchName(tree.byId.get(id))}. ${found.words}`;
  open_(ofPoints("Events of the branch", found.points), true);
});

// How many branches are left where the tree is cut at a height: those above it join no more.
function clustersAt(height) {
  return 1 + tree.nodes.filter((node) => node.children.length && node.height > height).length;
}

function sayCut() {
  const command = (value) => `firnline label ${state.summary.workspace} --replace --label.cut ${value}`;
  if (tree.own.length) {
    byId("cut-words").textContent = `${countOf(tree.own.length, "branch", "branches")} as clusters of their own, the rest as it is:`;
    byId("cut-command").textContent = command(`'[${tree.own.join(", ")}]'`);
  } else if (tree.cut !== null) {
    byId("cut-words").textContent = `This cut gives ${countOf(clustersAt(tree.cut), "cluster")}; to label with it, ${state.reading ? "" : "stop the explorer and "}run:`;
    byId("cut-command").textContent = command(clustersAt(tree.cut));
  } else {
    byId("cut-words").textContent = "Now: the clusters at the left of this page.";
    byId("cut-command").textContent = "";
  }
  byId("cut").value = tree.cut === null ? "" : clustersAt(tree.cut);
}

function cutAt(height) {
  tree.own = [];
  tree.cut = Math.min(Math.max(height, 0), tree.top.height * 0.9999);
  drawTree();
  sayCut();
}

document.addEventListener("DOMContentLoaded", () => {
  byId("tree").addEventListener("click", (click) => {
    if (tree.nodes) cutAt(tree.back(click.clientX - byId("tree").getBoundingClientRect().left));
  });
  byId("branch").addEventListener("change", () => { if (byId("branch").value) chooseBranch(byId("branch").value); });
  byId("cut").addEventListener("change", () => {
    const wanted = Number(byId("cut").value);
    const heights = tree.nodes.filter((node) => node.children.length).map((node) => node.height).sort((one, other) => other - one);
    if (wanted >= 2 && wanted <= heights.length + 1) cutAt(wanted > heights.length ? 0 : (heights[wanted - 2] + (heights[wanted - 1] ?? 0)) / 2);
  });
  byId("own-cluster").addEventListener("click", () => {
    if (!tree.chosen) return;
    const on = !tree.own.includes(tree.chosen);
    tree.own = on ? [...tree.own, tree.chosen] : tree.own.filter((id) => id !== tree.chosen);
    byId("own-cluster").setAttribute("aria-pressed", String(on));
    sayCut();
  });
  window.addEventListener("resize", drawTree);
});
