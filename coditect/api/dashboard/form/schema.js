// Reads a JSON Schema as a tree of fields, and the text of those fields as a value. Pure and without DOM.
//
// A field is { kind, name, title, note, required, schema, ... } with kind one of object, tuple, array, choice, boolean,
// number, text or json: what the form cannot ask for is asked for as JSON.

import { numberIn, parse, stringify } from "../src/json.js";

const DEEPEST = 8;

export function fieldOf(schema, root = schema, name = "", required = true, depth = 0) {
  const { schema: found, nullable } = resolved(schema, root);
  const common = {
    name, required: required && !nullable, nullable, title: found.title ?? name, note: found.description ?? "", schema: found,
    initial: found.default,
  };
  if (depth > DEEPEST) return { ...common, kind: "json" };
  if (found.const !== undefined) return { ...common, kind: "choice", choices: [found.const] };
  if (found.enum) return { ...common, kind: "choice", choices: found.enum };
  if (found.type === "object" && found.properties) {
    const wanted = new Set(found.required ?? []);
    const fields = Object.entries(found.properties).map(([one, of]) => fieldOf(of, root, one, wanted.has(one), depth + 1));
    return { ...common, kind: "object", fields };
  }
  if (found.type === "array" && found.prefixItems) {
    if (!isClosed(found)) return { ...common, kind: "json" };
    return { ...common, kind: "tuple", fields: found.prefixItems.map((of, index) => fieldOf(of, root, String(index + 1), true, depth + 1)) };
  }
  if (found.type === "array" && found.items) return { ...common, kind: "array", item: fieldOf(found.items, root, "", true, depth + 1) };
  return { ...common, kind: { boolean: "boolean", integer: "number", number: "number", string: "text" }[found.type] ?? "json" };
}

// Whether an array has exactly the elements of its prefix.
function isClosed({ prefixItems, minItems = 0, maxItems, items }) {
  return minItems === prefixItems.length && (maxItems === minItems || items === false);
}

// Follows references, and takes the one alternative of an anyOf that is not null.
function resolved(schema, root, seen = 0) {
  if (schema === true || schema === undefined) return { schema: {}, nullable: false };
  if (schema.$ref?.startsWith("#/") && seen < DEEPEST) {
    const target = schema.$ref.slice(2).split("/").reduce((at, part) => at?.[part.replaceAll("~1", "/").replaceAll("~0", "~")], root);
    const { $ref, ...rest } = schema;
    return resolved({ ...target, ...rest }, root, seen + 1);
  }
  const alternatives = schema.anyOf ?? schema.oneOf ?? (schema.allOf?.length === 1 ? schema.allOf : null);
  if (alternatives) {
    const others = alternatives.filter((one) => one.type !== "null");
    if (others.length === 1) {
      const { anyOf, oneOf, allOf, ...rest } = schema;
      const one = resolved({ ...others[0], ...rest }, root, seen + 1);
      return { schema: one.schema, nullable: one.nullable || others.length < alternatives.length };
    }
  }
  if (Array.isArray(schema.type)) {
    const types = schema.type.filter((one) => one !== "null");
    if (types.length === 1) return { schema: { ...schema, type: types[0] }, nullable: schema.type.includes("null") };
  }
  return { schema, nullable: false };
}

// The draft that a form begins with: defaults, and nothing where nothing is said.
export function draftOf(field) {
  if (field.initial !== undefined) return fromValue(field, field.initial);
  if (field.kind === "object") return Object.fromEntries(field.fields.map((one) => [one.name, draftOf(one)]));
  if (field.kind === "tuple") return field.fields.map((one) => draftOf(one));
  if (field.kind === "array") return [];
  if (field.kind === "boolean") return field.required ? false : "";
  if (field.kind === "choice") return field.required ? 0 : "";
  return "";
}

// A value as the draft of a field, so that JSON and form can be changed in turn.
export function fromValue(field, value) {
  if (value === undefined || value === null) return draftOf({ ...field, initial: undefined });
  switch (field.kind) {
    case "object":
      return Object.fromEntries(field.fields.map((one) => [one.name, fromValue(one, value[one.name])]));
    case "tuple":
      return field.fields.map((one, index) => fromValue(one, Array.isArray(value) ? value[index] : undefined));
    case "array":
      return Array.isArray(value) ? value.map((one) => fromValue(field.item, one)) : [];
    case "choice":
      return field.choices.indexOf(value);
    case "boolean":
      return Boolean(value);
    case "json":
      return stringify(value, 2);
    default:
      return String(value);
  }
}

// The value of a draft; a field that is left empty and may be is left out. Adds mistakes { at, sentence } to `mistakes`.
export function valueOf(field, draft, mistakes = [], at = "") {
  const wrong = (sentence) => (mistakes.push({ at: at || "input", sentence }), undefined);
  switch (field.kind) {
    case "object": {
      const pairs = field.fields.map((one) => [one.name, valueOf(one, draft[one.name], mistakes, at ? `${at}.${one.name}` : one.name)]);
      const said = Object.fromEntries(pairs.filter(([, value]) => value !== undefined));
      return !field.required && Object.keys(said).length === 0 ? undefined : said;
    }
    case "tuple": {
      if (!field.required && stringify(draft) === stringify(draftOf({ ...field, initial: undefined }))) return undefined;
      return field.fields.map((one, index) => valueOf(one, draft[index], mistakes, `${at}[${index}]`) ?? null);
    }
    case "array": {
      const said = draft.map((one, index) => valueOf(field.item, one, mistakes, `${at}[${index}]`));
      return !field.required && said.length === 0 ? undefined : said;
    }
    case "boolean":
      return draft === "" ? undefined : draft === true || draft === "true";
    case "choice":
      return draft === "" ? (field.required ? wrong("is wanted") : undefined) : field.choices[Number(draft)];
    case "number":
      return numberOf(field, draft, wrong);
    case "json":
      return jsonOf(field, draft, wrong);
    default:
      return textOf(field, draft, wrong);
  }
}

function numberOf({ schema, required }, draft, wrong) {
  if (String(draft).trim() === "") return required ? wrong("is wanted") : undefined;
  const value = numberIn(String(draft).trim());
  if (typeof value !== "bigint") {
    if (!Number.isFinite(value)) return wrong("is no number");
    if (schema.type === "integer" && !Number.isInteger(value)) return wrong("is no whole number");
    if (schema.type === "integer" && !Number.isSafeInteger(value)) return wrong("is rounded: write all its digits");
  }
  if (schema.minimum !== undefined && value < schema.minimum) return wrong(`is less than ${schema.minimum}`);
  if (schema.maximum !== undefined && value > schema.maximum) return wrong(`is more than ${schema.maximum}`);
  return value;
}

function textOf({ schema, required }, draft, wrong) {
  if (draft === "" && !required) return undefined;
  if (draft.length < (schema.minLength ?? 0)) return wrong(draft === "" ? "is wanted" : `is shorter than ${schema.minLength}`);
  if (schema.maxLength !== undefined && draft.length > schema.maxLength) return wrong(`is longer than ${schema.maxLength}`);
  if (schema.pattern !== undefined && !fits(draft, schema.pattern)) return wrong(`does not fit the pattern ${schema.pattern}`);
  return draft;
}

// An expression that the browser cannot read is for the agent to judge.
function fits(text, pattern) {
  try {
    return new RegExp(pattern, "u").test(text);
  } catch {
    return true;
  }
}

function jsonOf({ required }, draft, wrong) {
  if (draft.trim() === "") return required ? null : undefined;
  try {
    return parse(draft);
  } catch (error) {
    return wrong(`is no JSON: ${error.message}`);
  }
}
