// What a JSON Schema asks for, as far as a form needs it. Pure: no page, no network.

/** How deep a form goes; below that a value is written as JSON. A schema may refer to itself. */
export const MAX_DEPTH = 6;

/**
 * A schema as one of: {kind: "asset" | "choice" | "boolean" | "number" | "text" | "bytes" | "list" | "object" | "forms" |
 * "constant" | "any"}, with what belongs to it, `title`, `description`, `fallback` and whether it may be `null`.
 */
export function read(root, node) {
  const schema = resolve(root, node);
  const { forms, nullable } = alternatives(root, schema);
  const own = forms.length === 1 ? resolve(root, forms[0]) : schema;
  const about = {
    title: schema.title ?? own.title,
    description: schema.description ?? own.description,
    fallback: schema.default ?? own.default,
    hasFallback: "default" in schema || "default" in own,
    nullable: nullable || has(own, "null"),
  };
  return { ...about, ...shape(root, own, forms) };
}

function shape(root, schema, forms) {
  if (schema["x-asset"] === true) return { kind: "asset" };
  const choices = choicesOf(root, schema, forms);
  if (choices) return { kind: "choice", choices };
  if ("const" in schema) return { kind: "constant", value: schema.const };
  if (forms.length > 1) {
    return { kind: "forms", forms: forms.map((form, at) => ({ name: nameOf(resolve(root, form), at), schema: form })) };
  }
  const types = typesOf(schema);
  if (types.length > 1) return { kind: "any" };
  switch (types[0]) {
    case "boolean":
      return { kind: "boolean" };
    case "integer":
    case "number":
      return { kind: "number", whole: types[0] === "integer", ...bounds(schema, types[0] === "integer") };
    case "string":
      if (schema.contentEncoding === "base64") return { kind: "bytes" };
      return { kind: "text", min: schema.minLength, max: schema.maxLength, pattern: schema.pattern, format: schema.format };
    case "array":
      if (Array.isArray(schema.prefixItems) || schema.items === undefined || schema.items === true) return { kind: "any" };
      return { kind: "list", items: schema.items, min: schema.minItems ?? 0, max: schema.maxItems ?? Infinity };
    case "object":
      if (!schema.properties) return schema.additionalProperties === false ? { kind: "object", fields: [] } : { kind: "any" };
      return { kind: "object", fields: fieldsOf(schema) };
    default:
      return schema.properties ? shape(root, { ...schema, type: "object" }, [schema]) : { kind: "any" };
  }
}

/** What must be there comes first, in the order of the type; an object's own order is lost on the way here. */
function fieldsOf({ properties, required = [] }) {
  const place = (name) => (required.includes(name) ? required.indexOf(name) : required.length);
  return Object.entries(properties)
    .map(([name, schema]) => ({ name, schema, required: required.includes(name) }))
    .sort((a, b) => place(a.name) - place(b.name));
}

/** Follows references; what stands beside one counts more than what it points to. */
function resolve(root, node) {
  let schema = typeof node === "object" && node !== null ? node : {};
  for (let hops = 0; typeof schema.$ref === "string" && hops < 16; hops += 1) {
    const { $ref, ...beside } = schema;
    schema = { ...pointed(root, $ref), ...beside };
  }
  if (Array.isArray(schema.allOf) && schema.allOf.length === 1) {
    const { allOf, ...beside } = schema;
    return { ...resolve(root, allOf[0]), ...beside };
  }
  return schema;
}

function pointed(root, reference) {
  const path = reference.startsWith("#/") ? reference.slice(2).split("/") : [];
  const words = path.map((word) => decodeURIComponent(word).replaceAll("~1", "/").replaceAll("~0", "~"));
  const target = words.reduce((node, word) => (Object.hasOwn(node ?? {}, word) ? node[word] : undefined), root);
  return typeof target === "object" && target !== null ? target : {};
}

/** The forms that a value may have but for `null`, and whether that is one. */
function alternatives(root, schema) {
  const listed = schema.anyOf ?? schema.oneOf;
  if (!Array.isArray(listed)) return { forms: [schema], nullable: false };
  const isNull = (form) => {
    const { type, const: value } = resolve(root, form);
    return type === "null" || value === null;
  };
  const forms = listed.filter((form) => !isNull(form));
  return { forms, nullable: forms.length < listed.length };
}

function choicesOf(root, schema, forms) {
  const choice = (value, description) => ({ value, description });
  if (Array.isArray(schema.enum)) return schema.enum.filter((value) => value !== null).map((value) => choice(value));
  const each = forms.map((form) => resolve(root, form));
  const plain = each.every((form) => "const" in form || (Array.isArray(form.enum) && !form.properties));
  if (each.length < 2 || !plain) return null;
  return each.flatMap((form) => (form.enum ?? [form.const]).map((value) => choice(value, form.description)));
}

/** A form's own name: its title, the constant that marks it, its only field, or its type. */
function nameOf(form, at) {
  const properties = Object.entries(form.properties ?? {});
  const mark = properties.find(([, field]) => typeof field === "object" && "const" in field);
  if (form.title) return form.title;
  if (mark) return String(mark[1].const);
  if (properties.length === 1) return properties[0][0];
  return typesOf(form)[0] ?? `form ${at + 1}`;
}

const typesOf = (schema) => [schema.type ?? []].flat().filter((type) => type !== "null");
const has = (schema, type) => [schema.type ?? []].flat().includes(type);

function bounds(schema, whole) {
  const step = schema.multipleOf ?? (whole ? 1 : null);
  const above = schema.exclusiveMinimum;
  const below = schema.exclusiveMaximum;
  return {
    step,
    min: whole && above !== undefined ? Math.floor(above) + 1 : schema.minimum,
    max: whole && below !== undefined ? Math.ceil(below) - 1 : schema.maximum,
    above: whole ? undefined : above,
    below: whole ? undefined : below,
  };
}

/** What is wrong with a number as it was written; `null`: nothing. */
export function numberFault(text, { whole, min, max, above, below, step }) {
  const number = Number(text);
  if (text.trim() === "" || !Number.isFinite(number)) return "must be a number";
  if (whole && !/^[+-]?\d+$/.test(text.trim())) return "must be a whole number";
  const least = min !== undefined && number < min;
  const most = max !== undefined && number > max;
  if ((least || most) && min !== undefined && max !== undefined) return `must be ${min} to ${max}`;
  if (least) return `must be at least ${min}`;
  if (most) return `must be at most ${max}`;
  if (above !== undefined && number <= above) return `must be more than ${above}`;
  if (below !== undefined && number >= below) return `must be less than ${below}`;
  if (step && step !== 1 && Math.abs(number / step - Math.round(number / step)) > 1e-9) return `must be a multiple of ${step}`;
  return null;
}

/** What is wrong with a text; `null`: nothing. */
export function textFault(text, { min, max, pattern }) {
  const length = [...text].length;
  if (min !== undefined && length < min) return min === 1 ? "must not be empty" : `must have at least ${min} characters`;
  if (max !== undefined && length > max) return `must have at most ${max} characters`;
  if (pattern !== undefined && !matches(text, pattern)) return `must match ${pattern}`;
  return null;
}

/** A pattern in a syntax that browsers do not know is left to the worker. */
function matches(text, pattern) {
  try {
    return new RegExp(pattern, "u").test(text);
  } catch {
    return true;
  }
}

/** A number as JSON carries it, also where it has more digits than this language keeps. */
export function numberValue(text) {
  const number = Number(text);
  const exact = !/^[+-]?\d+$/.test(text.trim()) || Number.isSafeInteger(number);
  if (exact || !JSON.rawJSON) return number;
  return JSON.rawJSON(BigInt(text.trim()).toString());
}

/** What a number takes, in words; `null`: any. */
export function boundsSaid({ min, max, above, below }) {
  const low = min ?? above;
  const high = max ?? below;
  // The ends of the machine's own types say nothing.
  const telling = (bound) => bound !== undefined && Math.abs(bound) < 2 ** 31 - 1;
  if (telling(low) && telling(high) && above === undefined && below === undefined) return `${low} to ${high}`;
  if (telling(low) && telling(high)) return `${min === undefined ? "more than" : "at least"} ${low}, ${max === undefined ? "less than" : "at most"} ${high}`;
  if (telling(high)) return max === undefined ? `less than ${high}` : `at most ${high}`;
  if (telling(low) && low !== 0) return min === undefined ? `more than ${low}` : `at least ${low}`;
  return null;
}
