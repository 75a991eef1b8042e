// What a run gave, shown as what it is. None of it is trusted: text goes in as text, and files only where they cannot
// run: as the source of a picture, a sound or a film, or as a download.

import { call, fileAddress, hasToken } from "./api.js";
import { bytes, el } from "./dom.js";

/** Longest text shown whole, in characters. */
const MAX_TEXT = 200_000;

/** Most items of a list, or fields of an object, that are looked through for files. */
const MAX_ITEMS = 500;

/** A result: its files first, then all of it as JSON. */
export function showOutput(output, schema) {
  if (output === null || output === undefined) return [el("p", { class: "hint" }, "It gave nothing.")];
  if (typeof output === "string") return [textOutput(output, schema)];
  if (isRaw(output)) return [inlineFile(output)];
  if (typeof output !== "object") return [longText(String(output), "text")];
  const files = assetsIn(output).map(fileFigure);
  const { data, ...rest } = isRaw(output) ? output : { ...output };
  const plain = plainFields(output);
  const json = JSON.stringify(Array.isArray(output) ? output : { ...rest, ...(data === undefined ? {} : { data }) }, null, 2);
  return [
    files.length ? el("div", { class: "files" }, files) : null,
    plain,
    el("details", { open: files.length === 0 && plain === null }, el("summary", {}, "JSON"), longText(json, "code")),
  ].filter(Boolean);
}

/** The fields of a flat result as a table of names and values; `null`: it is none. */
function plainFields(output) {
  if (Array.isArray(output) || typeof output !== "object") return null;
  const plain = Object.entries(output).filter(([, value]) => ["string", "number", "boolean"].includes(typeof value));
  if (plain.length === 0 || plain.length > 24) return null;
  return el("dl", { class: "facts" }, plain.map(([name, value]) => [
    el("dt", {}, name),
    el("dd", {}, typeof value === "string" ? longText(value, "text") : String(value)),
  ]));
}

function textOutput(text, schema) {
  if (schema?.contentEncoding === "base64") return downloadOf(text, "application/octet-stream", "output.bin");
  return longText(text, "text");
}

export function longText(text, kind) {
  const shown = text.length > MAX_TEXT ? text.slice(0, MAX_TEXT) : text;
  const pre = el("pre", { class: kind, tabindex: text.length > 2000 ? "0" : null }, shown);
  if (shown === text) return pre;
  return el("div", {}, pre, el("p", { class: "hint" }, `${text.length - MAX_TEXT} more characters are not shown.`));
}

const isAsset = (value) => typeof value.ref === "string" && ("mime_type" in value || "size_bytes" in value);
const isRaw = (value) => typeof value.data === "string" && typeof value.content_type === "string";

function assetsIn(value, found = [], depth = 0) {
  if (typeof value !== "object" || value === null || depth > 8 || found.length >= MAX_ITEMS) return found;
  if (isAsset(value)) found.push(value);
  else Object.values(value).slice(0, MAX_ITEMS).forEach((each) => assetsIn(each, found, depth + 1));
  return found;
}

/** Whether a reference is that of a stored file, and leads to no other address here. */
const isStored = (ref) => !/^[a-z][a-z0-9+.-]*:/i.test(ref) && ref.split("/").every((part) => !["", ".", ".."].includes(part));

/** How a browser shows a media type; `null`: it does not. */
function player(mimeType) {
  const [kind] = mimeType.split("/");
  return { image: "img", audio: "audio", video: "video" }[kind] ?? null;
}

function media(tag, address, name) {
  if (tag === "img") return el("img", { src: address, alt: name, loading: "lazy", decoding: "async" });
  return el(tag, { src: address, controls: true, preload: "metadata", "aria-label": name });
}

/** A stored file: at its address, or fetched first where a token must be sent. */
function fileFigure(asset) {
  const name = asset.ref.split("/").pop();
  const mimeType = asset.mime_type ?? "application/octet-stream";
  const figure = el("figure", { class: "file-output" });
  const size = Number.isFinite(asset.size_bytes) ? bytes(asset.size_bytes) : null;
  const caption = (link) => el("figcaption", {}, el("span", { class: "file-name" }, name),
    el("span", { class: "hint" }, [mimeType, size].filter(Boolean).join(", ")), link);
  if (!isStored(asset.ref)) {
    // It lies elsewhere, or nowhere: this page goes to stored files only.
    figure.append(caption(el("span", { class: "hint" }, asset.ref)));
    return figure;
  }
  const tag = player(mimeType);
  if (!hasToken()) {
    const address = fileAddress(asset);
    if (tag) figure.append(media(tag, address, name));
    figure.append(caption(el("a", { href: address, download: name }, "Download")));
    return figure;
  }
  const fetched = async () => (await call(fileAddress(asset))).blob();
  const download = el("button", { type: "button", class: "quiet", onclick: async () => save(await fetched(), name) }, "Download");
  figure.append(caption(download));
  if (tag) {
    fetched().then((blob) => figure.prepend(media(tag, URL.createObjectURL(new Blob([blob], { type: mimeType })), name)))
      .catch((error) => figure.prepend(el("p", { class: "error" }, error.message)));
  }
  return figure;
}

/** A file that came within the result. */
function inlineFile(raw) {
  const name = raw.file_name || "output";
  const tag = player(raw.content_type);
  const figure = el("figure", { class: "file-output" });
  const content = decode(raw.data);
  if (content === null) return longText(JSON.stringify(raw, null, 2), "code");
  if (tag) figure.append(media(tag, URL.createObjectURL(new Blob([content], { type: raw.content_type })), name));
  else if (/^text\/|json$/.test(raw.content_type)) figure.append(longText(new TextDecoder().decode(content), "text"));
  figure.append(el("figcaption", {}, el("span", { class: "file-name" }, name),
    el("span", { class: "hint" }, `${raw.content_type}, ${bytes(content.length)}`),
    downloadOf(raw.data, raw.content_type, name)));
  return figure;
}

function downloadOf(base64, mimeType, name) {
  const content = decode(base64);
  if (content === null) return longText(base64, "code");
  return el("button", { type: "button", class: "quiet", onclick: () => save(new Blob([content]), name) },
    `Download ${bytes(content.length)}`);
}

/** Hands a file to the person. Its type is that of mere bytes, so that no browser opens it as a page of ours. */
function save(blob, name) {
  const address = URL.createObjectURL(new Blob([blob], { type: "application/octet-stream" }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

function decode(base64) {
  try {
    return Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
  } catch {
    return null;
  }
}

/** What a stream's items say together: their one text put end to end; `null`: they are no pieces of a text. */
export function textOfDelta(delta) {
  if (typeof delta === "string") return delta;
  if (typeof delta !== "object" || delta === null) return null;
  const texts = Object.entries(delta).filter(([name, value]) => typeof value === "string" && /^(text|token|delta|content|chunk)$/.test(name));
  return texts.length === 1 ? texts[0][1] : null;
}
