// Who is connected: what each worker can do, how full it is, and the models that it has.

import { badge, bytes, duration, el, meter, show } from "./dom.js";

/** A worker that has not said anything for this long may be gone, in milliseconds: three heartbeats. */
const SILENT = 30_000;

export function showWorkers(place, workers) {
  const seen = workers.map((worker) => ({ ...worker, last_heartbeat_ms: worker.last_heartbeat_ms > SILENT ? SILENT : 0 }));
  show(place, JSON.stringify(seen), () => (workers.length ? workers.map(card) : nobody()));
}

const nobody = () => el("div", { class: "empty" },
  el("p", {}, "No worker is connected."),
  el("p", {}, "Start one, and tell it where this orchestrator takes workers: ", el("code", {}, "SCHEDULER_ADDR=host:port")));

function card(worker) {
  const { worker_id, running, max_concurrency, functions, draining, last_heartbeat_ms } = worker;
  const state = draining ? "draining" : last_heartbeat_ms >= SILENT ? "silent" : running > 0 ? "busy" : "ready";
  return el("article", { class: "worker", "aria-label": `worker ${worker_id}` },
    el("p", { class: "worker-title" }, badge(state), el("code", {}, worker_id || "unnamed")),
    el("p", { class: "hint" }, machine(worker)),
    max_concurrency > 0
      ? meter("runs", running / max_concurrency, { shown: `${running} of ${max_concurrency}` })
      : el("p", { class: "hint" }, `${running} running, no limit of its own`),
    memory(worker),
    traffic(worker),
    el("ul", { class: "chips", "aria-label": "Functions" }, functions.map(({ name, ready }) =>
      el("li", { class: "chip", "data-ready": String(ready) }, name, ready ? null : " (loading)", slots(worker, name)))),
    models(worker));
}

function slots({ function_concurrency }, name) {
  const max = function_concurrency?.[name];
  return max > 0 ? el("span", { class: "hint" }, ` ×${max}`) : null;
}

function machine({ cpu_cores, memory_bytes, gpu, versions = {}, deployment_id }) {
  const parts = [
    cpu_cores > 0 && `${cpu_cores} cores`,
    memory_bytes > 0 && bytes(memory_bytes),
    gpu.count > 0 && `${gpu.count > 1 ? `${gpu.count} × ` : ""}${gpu.name || "GPU"}`,
    versions.onnxruntime && `ONNX Runtime ${versions.onnxruntime}`,
    deployment_id && `deployment ${deployment_id}`,
  ];
  return parts.filter(Boolean).join(" · ");
}

/** The memory that models are in: the device's where there is one, else what models take of main memory. */
function memory({ gpu, memory_bytes, models = [], model_memory }) {
  if (gpu.count > 0 && gpu.memory_bytes > 0) return share("GPU memory", gpu.memory_used_bytes, gpu.memory_bytes);
  const resident = models.filter(({ state }) => state === "resident");
  const held = model_memory?.used_bytes ?? resident.reduce((sum, { bytes = 0 }) => sum + bytes, 0);
  const most = model_memory?.budget_bytes || memory_bytes;
  return most > 0 && held > 0 ? share("models in memory", held, most) : null;
}

const share = (name, held, most) =>
  meter(name, held / most, { shown: `${bytes(held)} of ${bytes(most)}`, level: level(held / most) });

/** How often a model was there when it was wanted, and what came and went for it. */
function traffic({ model_memory }) {
  const { hits = 0, misses = 0, loads = 0, evictions = 0 } = model_memory ?? {};
  if (hits + misses === 0) return null;
  const rate = hits / (hits + misses);
  return el("div", { class: "model-traffic" },
    meter("model hits", rate, { shown: `${Math.round(rate * 100)} %, ${hits} of ${hits + misses}` }),
    el("p", { class: "hint" }, `${count(loads, "load")}, ${count(evictions, "eviction")}`));
}

const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;

const level = (share) => (share > 0.9 ? "high" : null);

function models({ models = [], models_in_memory, models_on_disk }) {
  const told = new Map(models.map((model) => [model.model_id, model]));
  const names = new Set([...models_in_memory, ...models_on_disk, ...told.keys()]);
  const rows = [...names].map((name) => {
    const model = told.get(name) ?? {};
    const state = models_in_memory.includes(name) ? "resident" : model.state && model.state !== "resident" ? model.state
      : models_on_disk.includes(name) ? "on_disk" : model.download?.state ?? "on_disk";
    return { name, state, ...model, state_shown: state.replace("_", " ") };
  });
  if (rows.length === 0) return null;
  const downloading = rows.filter(({ download }) => download?.state === "downloading");
  return el("div", { class: "models" },
    downloading.map(({ name, download }) => meter(name, download.bytes_done / download.bytes_total, { shown: said(download) })),
    el("ul", { class: "model-list", "aria-label": "Models" }, rows.filter(({ download }) => download?.state !== "downloading")
      .map(({ name, state, state_shown, bytes: size, download }) => el("li", {},
        el("span", { class: "dot", "data-state": state }),
        el("span", { class: "model-name" }, name),
        el("span", { class: "hint" }, download?.state === "failed" ? "download failed" : state_shown, size > 0 && state === "resident" ? `, ${bytes(size)}` : null)))));
}

function said({ bytes_done, bytes_total, bytes_per_second, eta_seconds }) {
  const of = `${bytes(bytes_done)} of ${bytes_total ? bytes(bytes_total) : "?"}`;
  const rate = bytes_per_second ? `, ${bytes(bytes_per_second)}/s` : "";
  const left = eta_seconds ? `, ${duration(eta_seconds * 1000)} left` : "";
  return of + rate + left;
}
