"use strict";

// Which events are shown: one page after the other, each a step of the browser's history. A page is
//   title, load    what it is called, and how its events are asked for: `events` and perhaps the page after it
//   first, total   the number of its first event among all, and of all where that is known; `count` counts them
//   follows        whether it follows the chosen cluster; `filtered`: and what else narrows the events
//   before, from   the page before it; the page that it was opened from
//   points, lasso  its events by their numbers on the map; whether they were chosen there
//   purpose        what it is for, and what to do there, in words
//   heading        what stands above an event, where that differs from the event before it
//   error          why its events could not be had; they are asked for again when it is shown again

const isNarrow = () => window.matchMedia("(max-width: 52rem)").matches;
const FILTERS = ["site", "hour", "start", "end", "label", "order"];
const UNFILTERED = { site: "", hour: "", start: "", end: "", label: "*" };

// What else narrows the events: a station, an hour of the day.
function narrowed() {
  return { site: byId("site").value, hour: byId("hour").value };
}

const isNarrowed = () => Object.entries(UNFILTERED).some(([name, none]) => byId(name).value !== none);

function narrow(values) {
  for (const [name, value] of Object.entries(values)) byId(name).value = value;
  showNarrowed();
  restart();
}

// What narrows the events stands above every view that it holds for, each with a button that takes it away.
function showNarrowed() {
  const words = {
    site: (value) => value, hour: hourWords, start: (value) => `from ${value}`, end: (value) => `until ${value}`,
    label: (value) => (value === "" ? "without a hand label" : `labelled ${value}`),
  };
  byId("narrowed").replaceChildren(...Object.keys(words).filter((name) => byId(name).value !== UNFILTERED[name]).map((name) => element("button", {
    type: "button", title: "Show all again", onclick: () => narrow({ [name]: UNFILTERED[name] }),
  }, words[name](byId(name).value), " ✕")));
  sayNarrowed();
  drawPlaces();
  recolour();
}

function sayNarrowed() {
  const holds = state.page?.filtered || ["map", "places", "tree"].includes(state.view);
  byId("narrowed").parentElement.hidden = !byId("narrowed").children.length || !holds;
  measureTop();
}

// How high the header is, for what stands below it. What is drawn next needs it at once: with the old height the page
// would have a scroll bar, and so another width, for a moment.
function measureTop() {
  document.documentElement.style.setProperty("--top", `${byId("top").offsetHeight}px`);
}

// Of one cluster the typical events come first, unless another order was chosen by hand.
function chooseCluster(number) {
  takeCluster(number);
  if (state.view === "suggested") turnTo("list");
  drawPlaces();
  restart();
}

function takeCluster(number) {
  state.cluster = number;
  if (!state.ordered) byId("order").value = number === "" ? "time" : "typical";
  recolour();
}

// The browser's history. The pages themselves are in memory; the history has what a reload needs to show the like.
const steps = { all: [], at: -1 };

function filterValues() {
  return Object.fromEntries(FILTERS.map((name) => [name, byId(name).value]));
}

function takeStep(page) {
  keepPlace();
  const entry = { view: state.view, cluster: state.cluster, filter: filterValues(), ordered: state.ordered };
  const first = steps.at < 0;
  steps.at += 1;
  steps.all.length = steps.at;
  steps.all[steps.at] = { page };
  history[first ? "replaceState" : "pushState"]({ ...entry, at: steps.at }, "");
}

// How far the page was scrolled, and its current event, for when the step is shown again.
function keepPlace() {
  const step = steps.all[steps.at];
  if (step) Object.assign(step, { y: window.scrollY, inner: byId("events-view").scrollTop, event: document.activeElement?.closest(".event")?.dataset.eventId });
}

const showStep = attempt(async (entry) => {
  keepPlace();
  steps.at = entry.at;
  state.cluster = entry.cluster;
  state.ordered = entry.ordered;
  for (const name of FILTERS) byId(name).value = entry.filter[name];
  turnTo(entry.view);
  // A step of before a reload has no page in memory.
  const step = steps.all[entry.at] ??= { page: pageOf(entry.view) };
  map.chosen = step.page.lasso && step.page.points.length ? new Set(step.page.points) : null;
  state.page = step.page;
  showNarrowed();
  await showPage();
  if (step.y === undefined) return;
  const node = [...document.querySelectorAll(".event")].find((one) => one.dataset.eventId === step.event);
  node?.focus({ preventScroll: true });
  window.scrollTo(0, step.y);
  byId("events-view").scrollTo(0, step.inner);
});

function begin() {
  history.scrollRestoration = "manual";
  window.addEventListener("popstate", ({ state: entry }) => { if (entry) showStep(entry); });
  if (history.state?.filter) showStep(history.state);
  else { turnTo("map"); restart(); }
}

// Opens a page beside what is shown, from which "back to the list" leads back; `fresh`: in its place.
function open_(page, fresh = false) {
  if (!fresh && !page.before) page.from = state.page;
  takeStep(page);
  state.page = page;
  return showPage();
}

const showPage = attempt(async () => {
  const { page } = state;
  byId("events").setAttribute("aria-busy", "true");
  document.body.dataset.filtered = String(Boolean(page.filtered));
  // Until the new events are there, no button may label the old ones as if they were these.
  byId("label-all").parentElement.hidden = true;
  const answer = await page.load().catch((error) => ({ events: [], error }));
  if (page !== state.page) return;
  state.events = answer.events;
  page.error = answer.error;
  page.following = answer.following;
  if (page.following) page.following.before = page;
  if (answer.total !== undefined) page.total = answer.total;
  byId("events").replaceChildren(...withHeadings(page, answer.events));
  if (page.error) byId("events").append(...failure(page.error));
  else if (!answer.events.length) byId("events").append(element("p", { class: "nothing" }, page.nothing ?? "No event matches."));
  byId("events").setAttribute("aria-busy", "false");
  sayPage();
  sayNarrowed();
  markCluster();
  showBulk();
  markEvents();
  if (byId("status").classList.contains("error")) sayCount();
  if (byId("start").placeholder === "" && answer.events.length) {
    const [day] = answer.events[0].onset.split(" ");
    byId("start").placeholder = `${day}T00:00`;
    byId("end").placeholder = `${day}T12:00`;
  }
  byId("events-view").scrollTo(0, 0);
  if (!isNarrow() && ["list", "suggested", "doubtful"].includes(state.view)) window.scrollTo(0, 0);
  if (isNarrow() && page.before) byId("events-view").scrollIntoView();
});

// In the place of the cards that could not be had: why, and a way to ask again.
function failure(error) {
  return [element("p", { class: "failure", role: "alert" }, error.message), element("p", {}, element("button", { type: "button", onclick: showPage }, "Try again"))];
}

function withHeadings(page, events) {
  if (!page.heading) return events.map(card);
  return events.flatMap((event, at) => {
    const words = page.heading(event);
    return at && words === page.heading(events[at - 1]) ? [card(event)] : [element("h2", { class: "heading" }, words), card(event)];
  });
}

// The title, which of how many events are shown, and what leads on and back.
function sayPage() {
  const { page, events } = state;
  const first = page.first ?? 0;
  const total = page.total ?? page.count?.() ?? (page.following ? null : first + events.length);
  const many = (number) => number.toLocaleString("en");
  const range = events.length ? `${many(first + 1)}–${many(first + events.length)}${total === null ? "" : ` of ${many(total)}`}` : "";
  const words = page.error ? "not read" : events.length < 2 || total === events.length ? countOf(events.length, "event") : range;
  byId("shown").textContent = `${page.title}: ${words}`;
  byId("shown-below").textContent = range;
  byId("purpose").textContent = page.purpose ?? "";
  byId("purpose").hidden = !page.purpose;
  for (const button of document.querySelectorAll(".next")) button.disabled = !page.following;
  for (const button of document.querySelectorAll(".back")) { button.disabled = !page.before; button.hidden = Boolean(page.from); }
  for (const button of document.querySelectorAll(".return")) {
    button.hidden = !page.from;
    button.textContent = page.from?.from ? "‹ back" : "‹ back to the list";
  }
  for (const pair of document.querySelectorAll(".pages")) pair.hidden = !page.following && !page.before;
  document.querySelector(".bar.below").hidden = !events.length || !(page.following || page.before || page.from);
}

const ORDER_WORDS = { typical: "typical first", far: "farthest first", uncertain: "smallest margin first", random: "in random order" };

const capital = (words) => words[0].toUpperCase() + words.slice(1);

// All events that the cluster and the filters leave, in their order.
function filtered() {
  const { site, hour } = narrowed();
  const cluster = state.cluster;
  const order = byId("order").value;
  const query = new URLSearchParams({ order, cluster });
  for (const name of ["site", "hour", "start", "end"]) if (byId(name).value) query.set(name, byId(name).value);
  if (byId("label").value !== "*") query.set("label", byId("label").value);
  const counted = !["start", "end", "label"].some((name) => query.has(name));
  const count = () => {
    if (!counted) return null;
    if (site || hour) return places.counts ? countEvents({ site, cluster, hour }) : null;
    return state.summary.clusters.reduce((sum, one) => sum + (cluster === "" || one.number === cluster ? one.events : 0), 0);
  };
  const title = [capital(cluster === "" ? "all events" : clusterName(cluster)), site, hour === "" ? "" : hourWords(hour), ORDER_WORDS[order]];
  const from = (cursor, first) => ({
    title: title.filter(Boolean).join(", "), first, count, follows: true, filtered: true,
    load: async () => {
      const answer = await ask(`/api/events?${new URLSearchParams([...query, ["cursor", cursor]])}`);
      if (counted && (site || hour) && !places.counts) askPlaces().then(sayPage, () => {});
      return { ...answer, following: answer.cursor ? from(answer.cursor, first + answer.events.length) : null };
    },
  });
  return from("", 0);
}

// The events of a cluster on the map in the order that a list has, too: those nearest to a centroid first.
function typicalOf(cluster, first = 0) {
  return {
    title: `${capital(clusterName(cluster))}, ${ORDER_WORDS.typical}`, first, follows: true,
    load: async () => {
      const answer = await ask(`/api/typical?cluster=${cluster}&first=${first}`);
      const next = first + answer.events.length;
      return { ...answer, following: next < answer.total ? typicalOf(cluster, next) : null };
    },
  };
}

// Events of the map by their numbers there, `state.summary.page_events` on a page; `more` is what else the page has.
function ofPoints(title, points, more = {}, first = 0) {
  const next = first + state.summary.page_events;
  return {
    title, points, first, total: points.length, ...more,
    load: async () => ({
      events: points.length ? (await ask(`/api/points?points=${points.slice(first, next).join(",")}`)).events : [],
      following: next < points.length ? ofPoints(title, points, more, next) : null,
    }),
  };
}

// Events many of whose neighbours have another name, of all clusters or of the chosen one.
function doubtful() {
  const cluster = state.cluster;
  const size = state.summary.page_events;
  let found = null;
  const from = (first) => ({
    title: `Probably wrong${cluster === "" ? "" : ` in ${clusterName(cluster)}`}`, first, follows: true,
    nothing: "No event has many neighbours of another name.",
    purpose: "“keep” says that an event's present name is right, “change to” that its neighbours' is: either labels this event alone, by hand. What has a label is left out at the next look.",
    load: async () => {
      found ??= (await ask(`/api/doubtful?cluster=${cluster}`)).events;
      const some = found.slice(first, first + size);
      const { events } = some.length ? await ask(`/api/points?points=${some.map(({ point }) => point).join(",")}`) : { events: [] };
      events.forEach((event, at) => Object.assign(event, some[at]));
      return { events, total: found.length, following: first + size < found.length ? from(first + size) : null };
    },
  });
  return from(0);
}

function suggested() {
  return {
    title: "Suggested, to name clusters by and to label next",
    purpose: "First one typical event of each cluster, then of its parts: name the cluster by them (✎), or label an event that is of another kind (1–9). Those at the end are uncertain; label each. What has a label is left out at the next look.",
    nothing: "No event without a label is left to suggest.", heading: (event) => event.heading,
    load: async () => ({ events: (await ask("/api/suggestions")).events }),
  };
}

function neighboursOf(event) {
  return open_({
    title: `Nearest to ${event.site} ${event.onset}`,
    load: async () => ({ events: [event, ...(await ask(`/api/neighbours?event_id=${encodeURIComponent(event.event_id)}`)).events] }),
  });
}

// What a view begins with.
function pageOf(view) {
  if (view === "suggested") return suggested();
  if (view === "doubtful") return doubtful();
  const typical = byId("order").value === "typical" && state.cluster !== "" && !isNarrowed();
  return typical && (view === "map" || view === "tree") ? typicalOf(state.cluster) : filtered();
}

function restart() {
  return open_(pageOf(state.view), true);
}

// On a narrow screen the events lie below what they were chosen on.
function bringEvents() {
  if (isNarrow()) byId("events-view").scrollIntoView();
}

function turnTo(view) {
  state.view = view;
  document.querySelector("main").dataset.view = view;
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("#views button")) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  if (view === "map") showMap();
  if (view === "tree") showTree();
  if (view === "places") showPlaces();
}

// The map and the tree leave the events as they are; the other views begin anew, those that name events with all clusters.
function showView(view) {
  if (view === "suggested" || view === "doubtful") takeCluster("");
  turnTo(view);
  if (view !== "map" && view !== "tree") { restart(); return; }
  takeStep(state.page);
  sayNarrowed();
  window.scrollTo(0, 0);
}
