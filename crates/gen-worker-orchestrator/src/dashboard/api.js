// The orchestrator's API: with the token that the person gave, and one form of error.

const TOKEN = "gen-worker-token";

/** What the orchestrator refused, in its own words. */
export class Refused extends Error {
  constructor(status, { code, message, remedy } = {}) {
    super(message ?? `the orchestrator answered ${status}`);
    Object.assign(this, { status, code, remedy });
  }

  get sentence() {
    return this.remedy ? `${this.message}: ${this.remedy}` : this.message;
  }
}

/** Whoever wants to know that a token is needed, and whether the last one was wrong. */
let askForToken = async () => {};
export const onTokenNeeded = (ask) => { askForToken = ask; };
export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;
export const keepToken = (token) => sessionStorage.setItem(TOKEN, token);
export const forgetToken = () => sessionStorage.removeItem(TOKEN);

export const authorization = () => {
  const token = sessionStorage.getItem(TOKEN);
  return token === null ? {} : { Authorization: `Bearer ${token}` };
};

/** Calls a route and returns the answer once it is a success; asks for a token as often as one is needed. */
export async function call(path, { headers = {}, ...options } = {}) {
  for (;;) {
    const sent = authorization();
    const answer = await fetch(path, { ...options, headers: { ...headers, ...sent }, cache: "no-store" });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await askForToken(sent.Authorization);
      continue;
    }
    const told = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, told.error);
  }
}

export const get = async (path) => (await call(path)).json();

export async function post(path, body, headers = {}) {
  const json = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await call(path, { method: "POST", body: body && JSON.stringify(body), headers: { ...json, ...headers } });
  return answer.json();
}

/** A text that nobody else chooses. */
export const nonce = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Tells of a run's events until its end, from the beginning; a lost stream is taken up where it ended.
 * EventSource could send no token, so the stream is read by hand.
 */
export async function follow(runId, { onEvent, onLost, signal }) {
  let lastId = "0";
  for (let failures = 0; !signal.aborted; ) {
    try {
      const answer = await call(`/v1/runs/${encodeURIComponent(runId)}/events`, {
        headers: { "Last-Event-ID": lastId },
        signal,
      });
      for await (const event of events(answer.body)) {
        failures = 0;
        lastId = event.id || lastId;
        onEvent(event);
        if (event.type === "result") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused) throw error;
    }
    failures += 1;
    onLost(failures);
    await new Promise((resolve) => setTimeout(resolve, Math.min(250 * 2 ** failures, 5000)));
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      pieces.push(value);
      // A large event comes in many pieces, of which only the last ends a line.
      if (!value.includes("\n")) continue;
      const blocks = pieces.join("").split(/\r?\n\r?\n/);
      pieces = [blocks.pop()];
      for (const block of blocks) {
        const event = parse(block);
        if (event !== null) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One event of a stream; `null`: a comment that keeps the connection alive. */
function parse(block) {
  const event = { id: "", type: "", data: null };
  let data = "";
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "id") event.id = value;
    else if (field === "event") event.type = value;
    else if (field === "data") data += value;
  }
  if (event.type === "") return null;
  try {
    event.data = JSON.parse(data);
  } catch {
    event.data = data;
  }
  return event;
}

/** Stores a file and returns the asset that a payload names it by; `onShare` hears how much was sent. */
export function upload(file, onShare) {
  const { promise, resolve, reject } = Promise.withResolvers?.() ?? deferred();
  const request = new XMLHttpRequest();
  request.open("POST", `/v1/files?name=${encodeURIComponent(plainName(file.name))}`);
  for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
  request.responseType = "json";
  request.upload.onprogress = (event) => event.lengthComputable && onShare(event.loaded / event.total);
  request.onload = () => {
    const ok = request.status >= 200 && request.status < 300;
    if (ok) resolve(request.response);
    else reject(new Refused(request.status, request.response?.error));
  };
  request.onerror = () => reject(new Error("the file did not reach the orchestrator"));
  request.onabort = () => reject(new Error("the upload was stopped"));
  request.send(file);
  return { done: promise, stop: () => request.abort() };
}

function deferred() {
  let settle;
  const promise = new Promise((resolve, reject) => { settle = { resolve, reject }; });
  return { promise, ...settle };
}

/** A name that the orchestrator takes: no folder, no dot in front, not too long. */
function plainName(name) {
  const plain = name.replace(/[/\\\p{Cc}]/gu, "_").replace(/^\.+/, "");
  return (plain || "file").slice(-60);
}

/** The address of a stored file. */
export function fileAddress(asset) {
  const path = asset.ref.split("/").map(encodeURIComponent).join("/");
  const tenant = asset.tenant_id ? `?tenant_id=${encodeURIComponent(asset.tenant_id)}` : "";
  return `/v1/files/${path}${tenant}`;
}
