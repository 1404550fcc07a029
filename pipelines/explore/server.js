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
  const answer = await fetch(path, options).catch(() => { throw new Error("The explorer does not answer; does firnline explore still run?"); });
  if (answer.ok) return answer;
  let reason = (await answer.text()).trim();
  try { reason = JSON.parse(reason).error; } catch { /* a plain sentence */ }
  throw new Error(reason);
}

// Changes reach the server in the order in which they were made, so that undo takes back the latest; and the answer to
// one is read before the next is sent, so that the last count that is shown is the last that holds.
let lastChange = Promise.resolve();

async function ask(path, body) {
  const answer = async () => (await fetchAnswer(path, body)).json();
  if (body === undefined) return answer();
  const change = lastChange.then(answer);
  lastChange = change.catch(() => {});
  return change;
}

async function askNumbers(path, Kind) {
  return new Kind(await (await fetchAnswer(path)).arrayBuffer());
}
