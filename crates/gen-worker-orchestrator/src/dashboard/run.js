// One run, as it goes: its state, what it says, how long its stages take, and what it gives.

import { Refused, follow, post } from "./api.js";
import { badge, byId, bytes, duration, el, meter, moment } from "./dom.js";
import { longText, showOutput, textOfDelta } from "./output.js";

/** Most lines of a log, and most items of a stream, that are shown. */
const MAX_LINES = 1000;

/** How often what has come in is drawn, in milliseconds. */
const DRAW_EVERY = 80;

const STAGES = [
  ["queue", "wait to start"], ["inputs", "fetch inputs"], ["model", "fetch model"], ["load", "load model"], ["gpu_wait", "wait for the GPU"],
  ["run", "run"], ["store", "store the output"], ["attached", "store what it attached"],
];

const open = (state) => state === "queued" || state === "running";

/** Shows a run and follows it to its end; `stop` ends that. */
export class RunPanel {
  #abort = new AbortController();
  #parts;
  #view;
  #hooks;
  #waiting = [];
  #timer = null;
  #text = "";
  #items = 0;
  #told = null;
  #spoken = { share: -1, state: "" };

  /** `hooks`: {payloadOf, onAgain, onEdit, outputSchema, onEnd}. */
  constructor(view, hooks) {
    this.#view = view;
    this.#hooks = hooks;
    this.#parts = this.#build();
    byId("run-body").replaceChildren(this.#parts.root);
    this.#head();
    this.#follow();
  }

  get runId() {
    return this.#view.run_id;
  }

  stop() {
    this.#abort.abort();
    clearTimeout(this.#timer);
  }

  #build() {
    const runId = this.#view.run_id;
    const payload = this.#hooks.payloadOf(runId);
    const parts = {
      facts: el("div", { class: "run-facts" }),
      cancel: el("button", { type: "button", class: "danger", onclick: () => this.#cancel() }, "Cancel"),
      again: el("button", { type: "button", onclick: () => this.#hooks.onAgain(this.#view, payload) }, "Run again"),
      edit: el("button", { type: "button", class: "quiet", onclick: () => this.#hooks.onEdit(this.#view, payload) }, "Edit"),
      note: el("p", { class: "notice", role: "status", hidden: true }),
      progress: el("div", { class: "progress", hidden: true }),
      downloads: el("div", { class: "downloads" }),
      output: el("div", { class: "output" }),
      stream: el("div", { class: "stream", hidden: true }),
      timings: el("div", { class: "timings", hidden: true }),
      log: el("ol", { class: "log", tabindex: "0", "aria-label": "Log" }),
      logBox: el("details", { hidden: true, open: true }, el("summary", {}, "Log")),
      payload: payload === null ? null : el("details", {}, el("summary", {}, "Payload"), longText(payload, "code")),
    };
    parts.logBox.append(parts.log);
    parts.root = el("article", { class: "run", "data-run": runId },
      parts.facts,
      el("p", { class: "buttons" }, parts.cancel, parts.again, parts.edit),
      parts.note, parts.progress, parts.downloads, parts.output, parts.stream, parts.timings, parts.logBox, parts.payload);
    return parts;
  }

  /** The facts about the run, as they stand. */
  #head() {
    const { facts, cancel, again, edit, payload } = this.#parts;
    const { run_id, function: name, state, attempt, worker, tenant_id, user_id, created_at_ms, started_at_ms, finished_at_ms } = this.#view;
    cancel.hidden = !open(state);
    again.hidden = edit.hidden = open(state) || payload === null;
    const took = finished_at_ms && started_at_ms ? duration(finished_at_ms - started_at_ms) : null;
    const waited = started_at_ms > created_at_ms ? duration(started_at_ms - created_at_ms) : null;
    facts.replaceChildren(
      el("p", { class: "run-title" }, badge(state), el("strong", { class: "function" }, name), took ? el("span", {}, took) : null),
      el("dl", { class: "facts" },
        [["run", el("code", {}, run_id)], ["worker", worker ? el("code", {}, worker) : "none yet"],
          ["asked for", moment(created_at_ms)], ["waited", waited], ["attempt", attempt > 1 ? String(attempt) : null],
          ["tenant", tenant_id ?? null], ["user", user_id ?? null]]
          .filter(([, value]) => value !== null)
          .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
    if (state !== this.#spoken.state) {
      this.#spoken.state = state;
      this.#say(`${name}: ${state}`);
    }
  }

  #say(sentence) {
    byId("said").textContent = sentence;
  }

  async #follow() {
    const signal = this.#abort.signal;
    try {
      await follow(this.runId, {
        signal,
        onEvent: (event) => this.#take(event),
        onLost: (times) => times > 1 && this.#note("The orchestrator does not answer; trying again."),
      });
    } catch (error) {
      if (!signal.aborted) this.#note(error instanceof Refused ? error.sentence : error.message);
    }
  }

  #note(sentence) {
    this.#parts.note.hidden = sentence === null;
    this.#parts.note.textContent = sentence ?? "";
  }

  #take(event) {
    this.#waiting.push(event);
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.#note(null);
      for (const each of this.#waiting.splice(0)) this.#show(each);
      this.#parts.log.scrollTop = this.#parts.log.scrollHeight;
    }, DRAW_EVERY);
  }

  /** One event that is not what it should be hides none of the others. */
  #show(event) {
    try {
      this.#draw(event);
    } catch (error) {
      this.#note(`An event of the kind ${event.type} could not be shown: ${error.message}`);
    }
  }

  #draw({ type, data }) {
    const given = typeof data === "object" && data !== null ? data : {};
    switch (type) {
      case "queued": return;
      case "started": return this.#change({ state: "running", attempt: given.attempt ?? 1, worker: given.worker ?? null });
      case "attempt_failed": return this.#failed(given);
      case "job.progress": return this.#progress(given);
      case "job.log": return this.#line(given.level ?? "info", given.message, given.timestamp);
      case "job.timings": return this.#timings(given);
      case "model.download": return this.#download(given);
      case "output.upload": return this.#uploading(given);
      case "output.delta": return this.#delta(data);
      case "output.completed": case "output.error": return;
      case "events.dropped": return this.#line("warning", `${given.count} older events are no longer kept`);
      case "result": return this.#end(given);
      default: {
        const { timestamp, ...rest } = given;
        return this.#line("event", `${type} ${JSON.stringify(rest)}`, timestamp);
      }
    }
  }

  #change(what) {
    Object.assign(this.#view, what);
    this.#head();
  }

  #failed({ attempt, error = {}, retry_in_ms }) {
    this.#line("warning", `attempt ${attempt} failed: ${error.message ?? "?"}; again in ${duration(retry_in_ms)}`);
    this.#change({ state: "queued" });
  }

  #progress({ progress, stage }) {
    const { progress: place } = this.#parts;
    place.hidden = false;
    const share = Number(progress);
    const percent = `${Math.round(share * 100)} %`;
    place.replaceChildren(meter(typeof stage === "string" ? stage : "progress", share, { shown: percent }));
    if (share - this.#spoken.share >= 0.25 || (share >= 1 && this.#spoken.share < 1)) {
      this.#spoken.share = share;
      this.#say(`${this.#view.function}: ${percent}`);
    }
  }

  #download({ model_id, state, bytes_done, bytes_total, bytes_per_second }) {
    const { downloads } = this.#parts;
    const known = [...downloads.children].find((one) => one.dataset.model === model_id);
    if (state === "already_present") return;
    const share = state === "completed" ? 1 : bytes_total ? bytes_done / bytes_total : NaN;
    const rate = bytes_per_second ? `, ${bytes(bytes_per_second)}/s` : "";
    const shown = state === "downloading" ? `${bytes(bytes_done)} of ${bytes_total ? bytes(bytes_total) : "?"}${rate}` : state;
    const bar = el("div", { "data-model": model_id }, meter(`model ${model_id}`, share, { shown }));
    if (known) known.replaceWith(bar);
    else downloads.append(bar);
  }

  #uploading({ bytes_done, bytes_total }) {
    if (bytes_total) this.#parts.progress.replaceChildren(meter("storing the output", bytes_done / bytes_total, { shown: `${bytes(bytes_done)} of ${bytes(bytes_total)}` }));
    this.#parts.progress.hidden = false;
  }

  #delta(delta) {
    const { stream } = this.#parts;
    if (stream.hidden) {
      stream.hidden = false;
      stream.append(el("h3", {}, "Stream"), el("pre", { class: "text", tabindex: "0", "aria-label": "Stream" }), el("p", { class: "hint" }));
    }
    const [, pre, count] = stream.children;
    const text = textOfDelta(delta);
    const near = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 40;
    this.#items += 1;
    pre.append(text ?? `${JSON.stringify(delta)}\n`);
    while (pre.childNodes.length > MAX_LINES * 5) pre.firstChild.remove();
    if (near) pre.scrollTop = pre.scrollHeight;
    count.textContent = this.#items === 1 ? "1 item" : `${this.#items} items`;
  }

  #line(level, message, timestamp) {
    const { log, logBox } = this.#parts;
    logBox.hidden = false;
    const at = Number.isFinite(timestamp) ? moment(timestamp * 1000) : null;
    log.append(el("li", { "data-level": level }, at, el("span", { class: "level" }, level), el("span", { class: "message" }, String(message ?? ""))));
    if (log.children.length > MAX_LINES) log.firstElementChild.remove();
  }

  /** Where the time went: each stage begins where the one before it ended. */
  #timings(timings) {
    this.#told = timings;
    const { timings: place } = this.#parts;
    const { created_at_ms, started_at_ms } = this.#view;
    const waited = started_at_ms ? Math.max(started_at_ms - created_at_ms, 0) : 0;
    const stages = STAGES.map(([key, name]) => [name, timings[`${key}_ms`]]).filter(([, took]) => Number.isFinite(took));
    const rows = [["wait in the queue", waited], ...stages].filter(([, took]) => took > 0);
    const whole = Math.max(rows.reduce((sum, [, took]) => sum + took, 0), 0.001);
    let from = 0;
    const lines = rows.map(([name, took]) => {
      const bar = el("span", { class: "span" });
      bar.style.marginInlineStart = `${(from / whole) * 100}%`;
      bar.style.width = `max(2px, ${(took / whole) * 100}%)`;
      from += took;
      return el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "track" }, bar), el("td", { class: "number" }, duration(took)));
    });
    place.hidden = false;
    place.replaceChildren(el("h3", {}, "Timings"), el("table", { class: "waterfall" },
      el("caption", { class: "sr" }, "How long each stage took"),
      el("tbody", {}, lines),
      el("tfoot", {}, el("tr", {}, el("th", { scope: "row" }, "in all"), el("td", {}), el("td", { class: "number" }, duration(whole))))));
  }

  #end(view) {
    this.#change(view);
    // When it began is known with its end.
    if (this.#told) this.#timings(this.#told);
    const { output, progress, downloads, note } = this.#parts;
    progress.hidden = true;
    downloads.replaceChildren();
    note.hidden = true;
    const parts = view.error ? [errorBox(view.error)] : [];
    const streamed = this.#items > 0 && (view.output === null || view.output === undefined);
    if (view.state === "succeeded" && !streamed) parts.push(el("h3", {}, "Output"), ...showOutput(view.output ?? null, this.#hooks.outputSchema(view.function)));
    output.replaceChildren(...parts);
    this.#hooks.onEnd(view);
  }

  async #cancel() {
    const { cancel } = this.#parts;
    cancel.disabled = true;
    try {
      await post(`/v1/runs/${encodeURIComponent(this.runId)}/cancel`);
      this.#say("asked to stop");
    } catch (error) {
      this.#note(error.sentence ?? error.message);
    } finally {
      cancel.disabled = false;
    }
  }
}

function errorBox({ kind, message, retryable, detail }) {
  return el("div", { class: "failure", role: "alert" },
    el("p", {}, el("strong", {}, kind), " ", message),
    el("p", { class: "hint" }, retryable ? "Another try may help." : "Another try will not help."),
    detail ? el("details", {}, el("summary", {}, "For whoever runs the worker"), longText(detail, "code")) : null);
}
