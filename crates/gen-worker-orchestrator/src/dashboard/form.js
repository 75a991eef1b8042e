// A form for a function, made from the schema of its payload.
//
// Every part is a `field`: {node, get, set, check}. `get` gives the value, or `undefined` where it is to be left out;
// `check` shows what is wrong and gives the first control that must be mended, or `null`.

import { Refused, upload } from "./api.js";
import { bytes, el, newId } from "./dom.js";
import { MAX_DEPTH, boundsSaid, numberFault, numberValue, read, textFault } from "./schema.js";

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** A whole payload as JSON, for whoever would rather write it. */
export const payloadText = () => jsonField(null, { fallback: {}, hasFallback: true }, true);

/** The form of a whole payload. */
export function payloadForm(schema) {
  const root = typeof schema === "object" && schema !== null ? schema : {};
  const about = read(root, root);
  const field = about.kind === "object" ? objectField(root, about, 0) : payloadText();
  return { ...field, get: () => field.get() ?? {} };
}

function make(root, name, schema, required, depth) {
  const about = read(root, schema);
  if (depth > MAX_DEPTH) return jsonField(name, about, required);
  switch (about.kind) {
    case "asset": return assetField(name, about, required);
    case "choice": return choiceField(name, about, required);
    case "constant": return constantField(about);
    case "boolean": return required || about.hasFallback ? flagField(name, about, required) : choiceField(name, yesOrNo(about), required);
    case "number": return numberField(name, about, required);
    case "text": return textField(name, about, required);
    case "bytes": return bytesField(name, about, required);
    case "list": return listField(root, name, about, required, depth);
    case "object": return groupField(root, name, about, required, depth);
    case "forms": return formsField(root, name, about, required, depth);
    default: return jsonField(name, about, required);
  }
}

const yesOrNo = (about) => ({ ...about, choices: [{ value: true, description: "yes" }, { value: false, description: "no" }] });

/** A control with its label, what is said of it, and what is wrong with it. */
function labelled(name, about, required, control, { hint = null } = {}) {
  const id = control.id || newId("field");
  const [hintId, errorId] = [`${id}-hint`, `${id}-error`];
  const hints = [about.description, hint && `${hint[0].toUpperCase()}${hint.slice(1)}.`].filter(Boolean).join(" ");
  const error = el("span", { class: "error", id: errorId, hidden: true });
  control.id = id;
  control.setAttribute("aria-describedby", hints ? `${hintId} ${errorId}` : errorId);
  if (required) control.setAttribute("aria-required", "true");
  const node = el("div", { class: "field" },
    el("label", { for: id }, name ?? "value", required ? null : el("span", { class: "optional" }, "optional")),
    control,
    hints ? el("span", { class: "hint", id: hintId }, hints) : null,
    error);
  const say = (fault) => {
    error.hidden = fault === null;
    error.textContent = fault ?? "";
    control.setAttribute("aria-invalid", String(fault !== null));
    return fault === null ? null : control;
  };
  return { node, say };
}

/** A field of one control that holds a text. */
function simple(name, about, required, control, { hint, fault, value, written = String }) {
  const { node, say } = labelled(name, about, required, control, { hint });
  const initial = about.hasFallback && about.fallback !== null ? written(about.fallback) : "";
  control.value = initial;
  // What was not touched is left out, so that the function's own default counts, to its last digit.
  const leftOut = () => !required && (control.value === initial || control.value === "");
  const find = () => {
    if (leftOut()) return null;
    if (required && control.value === "") return "is needed";
    return fault(control.value);
  };
  const check = () => say(find());
  // Not before it was submitted: what appears when a field is left would move the button away from under the pointer.
  control.addEventListener("input", () => control.getAttribute("aria-invalid") === "true" && check());
  return {
    node,
    check,
    get: () => (leftOut() ? undefined : value(control.value)),
    set: (given) => { control.value = given === undefined || given === null ? initial : written(given); },
  };
}

function numberField(name, about, required) {
  const control = el("input", {
    type: "number", min: about.min ?? null, max: about.max ?? null, step: about.step ?? "any",
    inputmode: about.whole ? "numeric" : "decimal",
  });
  return simple(name, about, required, control, {
    hint: boundsSaid(about), fault: (text) => numberFault(text, about), value: numberValue,
  });
}

const LONG = /prompt|text|description|message|body|content/i;

function textField(name, about, required) {
  const long = LONG.test(name ?? "") || (about.max ?? 0) > 200;
  const type = { date: "date", "date-time": "text", email: "email", uri: "url", password: "password" }[about.format] ?? "text";
  const control = long ? el("textarea", { rows: "3" }) : el("input", { type, spellcheck: "false", autocomplete: "off" });
  return simple(name, about, required, control, { fault: (text) => textFault(text, about), value: (text) => text });
}

function choiceField(name, about, required) {
  const options = about.choices.map(({ value, description }, at) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const shown = typeof value === "boolean" ? description : text;
    return el("option", { value: String(at), title: description ?? null }, shown);
  });
  const none = required && !about.hasFallback ? "choose" : "not given";
  const offersNone = !about.hasFallback || about.fallback === null;
  const control = el("select", {}, offersNone ? el("option", { value: "" }, `— ${none} —`) : null, options);
  const at = (value) => String(Math.max(about.choices.findIndex((choice) => same(choice.value, value)), 0));
  return simple(name, about, required, control, {
    fault: () => null, value: (text) => about.choices[Number(text)].value, written: at,
  });
}

function flagField(name, about, required) {
  const id = newId("field");
  const box = el("input", { type: "checkbox", id, "aria-describedby": about.description ? `${id}-hint` : null });
  const initial = about.fallback === true;
  box.checked = initial;
  return {
    node: el("div", { class: "field" },
      el("label", { class: "flag", for: id }, box, name),
      about.description ? el("span", { class: "hint", id: `${id}-hint` }, about.description) : null),
    check: () => null,
    get: () => (required || box.checked !== initial ? box.checked : undefined),
    set: (value) => { box.checked = value ?? initial; },
  };
}

const constantField = ({ value }) => ({ node: "", check: () => null, get: () => value, set() {} });

function jsonField(name, about, required) {
  const control = el("textarea", { rows: "4", class: "code", spellcheck: "false" });
  const fault = (text) => {
    try {
      JSON.parse(text);
      return null;
    } catch {
      return "must be JSON";
    }
  };
  return simple(name ?? "payload", about, required, control, {
    hint: "as JSON", fault, value: JSON.parse, written: (value) => JSON.stringify(value, null, 2),
  });
}

function objectField(root, { fields }, depth) {
  const parts = fields.map(({ name, schema, required }) => ({ name, field: make(root, name, schema, required, depth + 1) }));
  return {
    node: el("div", { class: "fields" }, parts.map(({ field }) => field.node)),
    check: () => parts.map(({ field }) => field.check()).find((fault) => fault !== null) ?? null,
    get: () => {
      const given = parts.map(({ name, field }) => [name, field.get()]).filter(([, value]) => value !== undefined);
      return Object.fromEntries(given);
    },
    set: (value) => parts.forEach(({ name, field }) => field.set(Object.hasOwn(value ?? {}, name) ? value[name] : undefined)),
  };
}

/** An object within a payload; one that may be left out is asked for first. */
function groupField(root, name, about, required, depth) {
  return optional(name, about, required, () => objectField(root, about, depth));
}

/** One of several forms: which one, and then its fields. */
function formsField(root, name, about, required, depth) {
  return optional(name, about, required, () => {
    const select = el("select", { id: newId("field"), "aria-label": `form of ${name}` },
      about.forms.map((form, at) => el("option", { value: String(at) }, form.name)));
    const place = el("div", { class: "fields" });
    let field;
    const choose = () => {
      const { schema } = about.forms[Number(select.value)];
      const chosen = read(root, schema);
      field = chosen.kind === "object" ? objectField(root, chosen, depth) : make(root, "value", schema, true, depth + 1);
      place.replaceChildren(field.node);
    };
    select.addEventListener("change", choose);
    choose();
    return {
      node: el("div", { class: "fields" }, select, place),
      check: () => field.check(),
      get: () => field.get(),
      set: (value) => {
        select.value = String(Math.max(about.forms.findIndex((form) => fits(root, form.schema, value)), 0));
        choose();
        field.set(value);
      },
    };
  });
}

/** Whether a value has the outer shape of a schema. */
function fits(root, schema, value) {
  const about = read(root, schema);
  const type = Array.isArray(value) ? "list" : typeof value === "string" ? "text" : typeof value;
  if (about.kind === "object" && type === "object" && value !== null) {
    const marks = about.fields.map(({ name, schema: own }) => [name, read(root, own)]).filter(([, own]) => own.kind === "constant");
    const there = about.fields.every(({ name, required }) => !required || Object.hasOwn(value, name));
    return there && marks.every(([name, own]) => same(value[name], own.value));
  }
  return about.kind === type || (about.kind === "constant" && same(about.value, value));
}

/** A group of fields that is there, or that a check box brings. */
function optional(name, about, required, inner) {
  const id = newId("group");
  const legend = el("legend", {}, name ?? "value");
  const place = el("div", {});
  let field = null;
  const bring = (wanted) => {
    field = wanted ? field ?? inner() : null;
    place.replaceChildren(...(field ? [field.node] : []));
  };
  const box = required ? null : el("input", { type: "checkbox", id, onchange: () => bring(box.checked) });
  if (box) legend.replaceChildren(el("label", { class: "flag", for: id }, box, name, el("span", { class: "optional" }, "optional")));
  if (required) bring(true);
  return {
    node: el("fieldset", {}, legend, about.description ? el("p", { class: "hint" }, about.description) : null, place),
    check: () => field?.check() ?? null,
    get: () => field?.get(),
    set: (value) => {
      const wanted = required || (value !== undefined && value !== null);
      if (box) box.checked = wanted;
      bring(wanted);
      field?.set(value);
    },
  };
}

function listField(root, name, about, required, depth) {
  const items = read(root, about.items);
  const rows = el("div", { class: "rows" });
  const error = el("span", { class: "error", hidden: true });
  let fields = [];
  const add = (value) => {
    const field = make(root, `${name} ${fields.length + 1}`, about.items, true, depth + 1);
    const row = el("div", { class: "row" }, field.node,
      el("button", { type: "button", class: "quiet", "aria-label": `remove ${name} ${fields.length + 1}`, onclick: () => {
        fields = fields.filter((one) => one.field !== field);
        row.remove();
        more.focus();
      } }, "Remove"));
    if (value !== undefined) field.set(value);
    fields.push({ field, row });
    rows.append(row);
    return field;
  };
  const more = el("button", { type: "button", class: "quiet", onclick: () => {
    add().node.querySelector?.("input, select, textarea, button")?.focus();
  } }, `Add ${items.kind === "asset" ? "a file" : "an item"}`);
  const reset = (values) => {
    fields = [];
    rows.replaceChildren();
    values.forEach((value) => add(value));
    while (required && fields.length < Math.min(about.min, 8)) add();
  };
  const initial = Array.isArray(about.fallback) ? about.fallback : [];
  reset(initial);
  const values = () => fields.map(({ field }) => field.get());
  const say = (fault) => {
    error.hidden = fault === null;
    error.textContent = fault ?? "";
    return fault === null ? null : more;
  };
  const find = () => {
    if (!required && fields.length === 0) return null;
    if (fields.length < about.min) return `needs at least ${about.min}`;
    if (fields.length > about.max) return `takes at most ${about.max}`;
    return null;
  };
  return {
    node: el("fieldset", {}, el("legend", {}, name, required ? null : el("span", { class: "optional" }, "optional")),
      about.description ? el("p", { class: "hint" }, about.description) : null, rows, more, error),
    check: () => fields.map(({ field }) => field.check()).find((fault) => fault !== null) ?? say(find()),
    get: () => (!required && same(values(), initial) ? undefined : values()),
    set: (given) => reset(Array.isArray(given) ? given : initial),
  };
}

/** A place for one file: chosen, dropped, or pasted. */
function drop(name, required, about, take) {
  const id = newId("file");
  const input = el("input", { type: "file", id, class: "file" });
  const state = el("p", { class: "drop-state", role: "status" }, "Drop a file here, or choose one.");
  const preview = el("div", { class: "preview" });
  const area = el("div", { class: "drop" }, preview, state, input);
  const { node, say } = labelled(name, about, required, input);
  input.replaceWith(area);
  area.append(input);
  let address = null;
  const picture = (file) => {
    if (address) URL.revokeObjectURL(address);
    address = file?.type.startsWith("image/") ? URL.createObjectURL(file) : null;
    preview.replaceChildren(...(address ? [el("img", { src: address, alt: `the chosen file ${file.name}` })] : []));
  };
  const chosen = (file) => {
    if (!file) return;
    picture(file);
    say(null);
    take(file);
  };
  input.addEventListener("change", () => chosen(input.files[0]));
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    if (event.dataTransfer.files.length === 0) return;
    input.files = event.dataTransfer.files;
    chosen(input.files[0]);
  });
  return { node, say, state, area, input, forget: () => { picture(null); input.value = ""; } };
}

function assetField(name, about, required) {
  let asset = null;
  let sending = null;
  const reference = el("input", { type: "text", id: newId("field"), spellcheck: "false", autocomplete: "off" });
  const place = drop(name, required, about, (file) => {
    sending?.stop();
    asset = null;
    reference.value = "";
    const mine = upload(file, (share) => { place.state.textContent = `${file.name}: ${Math.round(share * 100)} % sent`; });
    sending = mine;
    mine.done.then((stored) => {
      if (sending !== mine) return;
      [asset, sending] = [stored, null];
      place.state.textContent = `${file.name}, ${bytes(stored.size_bytes)}`;
    }).catch((error) => {
      if (sending !== mine) return;
      sending = null;
      place.state.textContent = "Drop a file here, or choose one.";
      place.say(error instanceof Refused ? error.sentence : error.message);
    });
  });
  place.node.append(el("div", { class: "field inline" }, el("label", { for: reference.id }, "or a reference or URL"), reference));
  const find = () => {
    if (sending) return "is still being sent";
    return required && !asset && reference.value.trim() === "" ? "is needed" : null;
  };
  return {
    node: place.node,
    check: () => place.say(find()),
    get: () => (reference.value.trim() !== "" ? { ref: reference.value.trim() } : asset ?? undefined),
    set: (value) => {
      sending?.stop();
      [asset, sending] = [null, null];
      place.forget();
      reference.value = "";
      place.state.textContent = "Drop a file here, or choose one.";
      if (!value?.ref) return;
      const known = value.size_bytes !== undefined && value.size_bytes !== null;
      asset = known ? value : null;
      if (known) place.state.textContent = `${value.ref.split("/").pop()}, ${bytes(value.size_bytes)}`;
      else reference.value = value.ref;
    },
  };
}

/** Bytes within the payload, as base64. */
function bytesField(name, about, required) {
  let text = null;
  const place = drop(name, required, about, async (file) => {
    const address = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(String(reader.result));
      reader.readAsDataURL(file);
    });
    text = address.slice(address.indexOf(",") + 1);
    place.state.textContent = `${file.name}, ${bytes(file.size)}`;
  });
  return {
    node: place.node,
    check: () => place.say(required && text === null ? "is needed" : null),
    get: () => text ?? undefined,
    set: (value) => {
      place.forget();
      text = typeof value === "string" ? value : null;
      place.state.textContent = text === null ? "Drop a file here, or choose one." : `${bytes(text.length * 0.75)} of bytes`;
    },
  };
}
