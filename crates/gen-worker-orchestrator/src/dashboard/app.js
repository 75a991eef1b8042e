// The page: what is asked of the orchestrator when, and where it is shown.

import { Refused, forgetToken, get, hasToken, keepToken, nonce, onTokenNeeded, post } from "./api.js";
import { badge, byId, duration, el, moment, show } from "./dom.js";
import { payloadForm, payloadText } from "./form.js";
import { RunPanel } from "./run.js";
import { showWorkers } from "./workers.js";

/** How often workers and runs are asked for, in milliseconds. */
const REFRESH = 1500;
/** Runs asked for at first, and with each "more". */
const PAGE = 50;
/** Payloads of this tab's runs that are kept for running them again, and the longest, in characters. */
const [MAX_PAYLOADS, MAX_PAYLOAD] = [30, 100_000];
const PAYLOADS = "gen-worker-payloads";

const functions = new Map();
let form = null;
let panel = null;
let limit = PAGE;

// The form.

function showFunctions(workers) {
  for (const [name, about] of functions) functions.set(name, { ...about, ready: 0, workers: 0 });
  for (const worker of workers) {
    // A function without a schema holds conversations; this page calls those that answer.
    for (const { name, ready, input_schema, output_schema } of worker.functions.filter((one) => one.input_schema !== null)) {
      const known = functions.get(name) ?? { ready: 0, workers: 0 };
      const count = { ready: known.ready + (ready ? 1 : 0), workers: known.workers + 1 };
      functions.set(name, { input: input_schema ?? known.input, output: output_schema ?? known.output, ...count });
    }
  }
  const select = byId("function");
  const names = [...functions.keys()].sort();
  const key = JSON.stringify(names);
  if (select.dataset.names !== key && names.length > 0) {
    const chosen = select.value || new URLSearchParams(location.hash.slice(1)).get("function") || sessionStorage.getItem("gen-worker-function");
    select.dataset.names = key;
    select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    select.value = names.includes(chosen) ? chosen : names[0];
    select.disabled = false;
  }
  about();
  if (select.value && form?.made !== schemaKey(select.value)) makeForm();
}

const schemaKey = (name) => name + JSON.stringify(functions.get(name)?.input ?? null);

function about() {
  const { ready, workers, input } = functions.get(byId("function").value) ?? {};
  const offered = ready > 0 ? `ready on ${ready} ${ready === 1 ? "worker" : "workers"}`
    : workers > 0 ? "its models are on their way" : "no worker offers it; a run waits for one";
  byId("function-about").textContent = ready === undefined ? "" : [input?.description, offered].filter(Boolean).join(" · ");
  byId("start").disabled = ready === undefined;
}

function makeForm(asText = false) {
  const name = byId("function").value;
  form = { made: schemaKey(name), name, asText, ...(asText ? payloadText() : payloadForm(functions.get(name).input)) };
  byId("fields").replaceChildren(form.node);
  byId("as-json").setAttribute("aria-pressed", String(asText));
  byId("call-error").hidden = true;
}

/** Turns the form into JSON, or back, with what is in it. */
function turnForm() {
  if (form === null || (form.asText && form.check())) return;
  const payload = form.get();
  makeForm(!form.asText);
  form.set(payload);
}

function fail(sentence) {
  byId("call-error").hidden = sentence === null;
  byId("call-error").textContent = sentence ?? "";
}

function deadline() {
  const input = byId("deadline");
  const seconds = input.value === "" ? 0 : Number(input.value);
  const wrong = input.validity.badInput || !(seconds >= 0);
  byId("deadline-error").hidden = !wrong;
  byId("deadline-error").textContent = wrong ? "must be 0 or more" : "";
  if (wrong) input.closest("details").open = true;
  return wrong ? null : Math.round(seconds * 1000);
}

async function submit() {
  fail(null);
  const wrong = form.check();
  const timeout = deadline();
  if (wrong || timeout === null) {
    (wrong ?? byId("deadline")).focus();
    return;
  }
  const button = byId("start");
  button.disabled = true;
  try {
    await start(form.name, form.get(), timeout);
  } finally {
    button.disabled = false;
  }
}

/** Asks for a run and shows it. The key makes asking twice safe when an answer is lost. */
async function start(name, payload, timeout) {
  const request = { function: name, payload, ...(timeout > 0 ? { timeout_ms: timeout } : {}) };
  const key = nonce();
  for (let tries = 1; ; tries += 1) {
    try {
      const { run_id } = await post("/v1/runs", request, { "Idempotency-Key": key });
      keepPayload(run_id, JSON.stringify(payload, null, 2));
      location.hash = `run=${run_id}`;
      refresh();
      return;
    } catch (error) {
      if (error instanceof Refused || tries === 3) {
        fail(error.sentence ?? "The orchestrator does not answer.");
        return;
      }
    }
  }
}

// Payloads of runs that this tab started: the orchestrator gives none back.

function payloads() {
  try {
    return JSON.parse(sessionStorage.getItem(PAYLOADS)) ?? [];
  } catch {
    return [];
  }
}

function keepPayload(runId, payload) {
  const kept = [[runId, payload], ...payloads().filter(([id]) => id !== runId)].slice(0, MAX_PAYLOADS);
  try {
    if (payload.length <= MAX_PAYLOAD) sessionStorage.setItem(PAYLOADS, JSON.stringify(kept));
  } catch {
    // The browser's store is full: the run cannot be run again from here, nothing else.
  }
}

const payloadOf = (runId) => payloads().find(([id]) => id === runId)?.[1] ?? null;

function edit(view, payload) {
  const select = byId("function");
  if (![...select.options].some(({ value }) => value === view.function)) return;
  select.value = view.function;
  makeForm();
  about();
  form.set(JSON.parse(payload));
  byId("call").scrollIntoView({ block: "nearest" });
  byId("fields").querySelector("input, select, textarea")?.focus();
}

// The run that is shown, named by the address, so that it is still there after a reload.

async function showRun() {
  const runId = new URLSearchParams(location.hash.slice(1)).get("run");
  if (runId === null || runId === panel?.runId) return;
  panel?.stop();
  panel = null;
  try {
    const view = await get(`/v1/runs/${encodeURIComponent(runId)}`);
    panel = new RunPanel(view, {
      payloadOf,
      outputSchema: (name) => functions.get(name)?.output ?? null,
      onAgain: ({ function: name }, payload) => start(name, JSON.parse(payload), 0),
      onEdit: edit,
      onEnd: refresh,
    });
    if (matchMedia("(max-width: 60rem)").matches) byId("run").scrollIntoView();
  } catch (error) {
    byId("run-body").replaceChildren(el("p", { class: "notice" }, error.sentence ?? error.message));
  }
  markRun();
}

function markRun() {
  for (const row of byId("runs-body").querySelectorAll("tr[data-run]")) {
    row.toggleAttribute("aria-current", row.dataset.run === panel?.runId);
  }
}

// Runs and workers, asked for again and again while somebody looks.

function showRuns(runs) {
  const wanted = byId("runs-state").value;
  const isOpen = ({ state }) => state === "queued" || state === "running";
  const chosen = runs.filter((run) => wanted === "" || (wanted === "open" ? isOpen(run) : run.state === wanted));
  byId("runs-more").hidden = runs.length < limit;
  show(byId("runs-body"), JSON.stringify(chosen), () => (chosen.length === 0
    ? el("p", { class: "empty" }, "There are none.")
    : el("table", { class: "runs" },
      el("thead", {}, el("tr", {}, ["State", "Function", "Asked for", "Took", "Worker", "Run"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, chosen.map(row)))));
  markRun();
}

function row({ run_id, function: name, state, created_at_ms, started_at_ms, finished_at_ms, worker }) {
  const took = started_at_ms && finished_at_ms ? duration(finished_at_ms - started_at_ms) : "";
  return el("tr", { "data-run": run_id },
    el("td", {}, badge(state)),
    el("td", { class: "name" }, el("a", { href: `#run=${run_id}`, "data-focus": run_id }, name)),
    el("td", {}, moment(created_at_ms)),
    el("td", { class: "number" }, took),
    el("td", { class: "wide" }, el("code", {}, worker ?? "")),
    el("td", { class: "wide" }, el("code", {}, run_id)));
}

let refreshing = null;
let nextRefresh = null;

/** Asks for everything once, and then again after a while. */
function refresh() {
  refreshing ??= ask().finally(() => {
    refreshing = null;
    clearTimeout(nextRefresh);
    nextRefresh = setTimeout(() => (document.hidden ? null : refresh()), REFRESH);
  });
  return refreshing;
}

async function ask() {
  try {
    const [{ workers }, { runs }] = await Promise.all([get("/v1/workers"), get(`/v1/runs?limit=${limit}`)]);
    showWorkers(byId("workers-body"), workers);
    showFunctions(workers);
    showRuns(runs);
    link("connected", "connected");
  } catch (error) {
    link("lost", error instanceof Refused ? error.sentence : "no answer");
  }
  byId("sign-out").hidden = !hasToken();
}

function link(state, text) {
  const place = byId("link");
  if (place.textContent === text) return;
  place.dataset.state = state;
  place.textContent = text;
}

// The token, asked for once however many calls need it.

let asking = null;

onTokenNeeded((refused) => {
  const now = sessionStorage.getItem("gen-worker-token");
  // Another call has brought a newer one since.
  if (refused !== undefined && now !== null && refused !== `Bearer ${now}`) return Promise.resolve();
  asking ??= new Promise((resolve) => {
    const dialog = byId("sign-in");
    const input = byId("token");
    byId("token-error").hidden = refused === undefined;
    input.value = "";
    link("locked", "a token is needed");
    dialog.showModal();
    input.focus();
    dialog.addEventListener("close", () => {
      keepToken(input.value.trim());
      input.value = "";
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
});

byId("sign-in").addEventListener("cancel", (event) => event.preventDefault());
byId("sign-out").addEventListener("click", () => {
  forgetToken();
  location.reload();
});

byId("call-form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("call-form").addEventListener("reset", () => setTimeout(() => form && makeForm(form.asText)));
byId("as-json").addEventListener("click", turnForm);
byId("function").addEventListener("change", () => {
  sessionStorage.setItem("gen-worker-function", byId("function").value);
  makeForm();
  about();
});
byId("runs-state").addEventListener("change", refresh);
byId("runs-more").addEventListener("click", () => {
  limit += PAGE;
  refresh();
});
// The address names the run; a link to a section must not change that.
for (const anchor of document.querySelectorAll("nav a, .skip")) {
  anchor.addEventListener("click", (event) => {
    event.preventDefault();
    const section = document.querySelector(anchor.getAttribute("href"));
    section.scrollIntoView({ block: "start" });
    section.focus({ preventScroll: true });
  });
}
addEventListener("hashchange", showRun);
addEventListener("dragover", (event) => event.preventDefault());
// A file that misses its place must not take the page away.
addEventListener("drop", (event) => event.preventDefault());
document.addEventListener("visibilitychange", () => !document.hidden && refresh());

await refresh();
await showRun();
