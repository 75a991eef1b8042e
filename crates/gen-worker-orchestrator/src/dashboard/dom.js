// Elements and words. Whatever is shown goes in as text: nothing here takes markup.

/** Makes an element. `null` and `false` are left out, of attributes and of children. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

let lastId = 0;
/** An id that no other element has. */
export const newId = (what) => `${what}-${++lastId}`;

/** Puts children in the place of what a node has, unless nothing has changed. */
export function show(node, key, make) {
  if (node.dataset.shown === key) return;
  node.dataset.shown = key;
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
  node.replaceChildren(...[make()].flat());
  if (focused) [...node.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focused)?.focus();
}

/** A state as a word with a shape and a colour beside it. */
export const badge = (state) => el("span", { class: "badge", "data-state": state }, state);

export function bytes(count) {
  if (!Number.isFinite(count)) return "?";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

export function duration(ms) {
  if (!Number.isFinite(ms)) return "";
  if (ms > 0 && ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const seconds = Math.round(ms / 1000);
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${seconds % 60} s`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** A moment: the time of day, and the day if it is another. */
export function moment(unixMs) {
  const date = new Date(unixMs);
  const today = new Date().toDateString() === date.toDateString();
  const text = today ? clock.format(date) : `${day.format(date)} ${clock.format(date)}`;
  return el("time", { datetime: date.toISOString(), title: date.toLocaleString() }, text);
}

/** A share from 0 to 1 as a bar that has a name. */
export function meter(name, share, { shown = null, level = null } = {}) {
  const known = Number.isFinite(share);
  const bar = el("progress", { max: "1", "aria-label": name, "data-level": level });
  if (known) bar.value = Math.min(Math.max(share, 0), 1);
  return el("div", { class: "meter" }, el("span", { class: "meter-name" }, name),
    shown === null ? null : el("span", { class: "meter-value" }, shown), bar);
}
