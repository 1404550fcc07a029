"use strict";

// How the page asks the server of `firnline explore`: `ask` for JSON, `askNumbers` for arrays.

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
