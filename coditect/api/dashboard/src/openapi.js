// Reads an OpenAPI document: its operations, the request that filled-in fields make, and that request as a curl command.
import { stringify } from "./json.js";

const METHODS = ["get", "put", "post", "patch", "delete"];
const JSON_TYPE = "application/json";

// The operations by tag, in the document's order: [tag, [{ id, method, path, first, rest, parameters, body, responses }]].
export function groups(document) {
  const found = new Map();
  for (const [path, item] of Object.entries(document.paths)) {
    for (const method of METHODS.filter((one) => item[one])) {
      const operation = operationOf(path, method, item[method], document);
      const tag = item[method].tags?.[0] ?? "other";
      found.set(tag, [...(found.get(tag) ?? []), operation]);
    }
  }
  return [...found];
}

function operationOf(path, method, { operationId, summary, description = "", parameters = [], requestBody, responses }, document) {
  const [first, ...rest] = (description || summary || "").split("\n\n");
  const body = requestBody?.content?.[JSON_TYPE]?.schema;
  return {
    id: `${method}-${operationId ?? path}`, method: method.toUpperCase(), path, first, rest, parameters,
    body: body && { ...body, components: document.components }, bodyRequired: Boolean(requestBody?.required),
    responses: Object.entries(responses ?? {}).map(([status, one]) => {
      const [type, media] = Object.entries(one.content ?? {})[0] ?? [];
      return { status, about: one.description, type, schema: media?.schema && { ...media.schema, components: document.components } };
    }),
  };
}

export const isStream = (operation) => operation.responses.some((one) => one.type === "text/event-stream");

// The operations whose method, path or text has all words of a filter.
export function matching(groups, filter) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (one) => words.every((word) => `${one.method} ${one.path} ${one.first}`.toLowerCase().includes(word));
  return groups.map(([tag, list]) => [tag, list.filter(fits)]).filter(([, list]) => list.length);
}

// The request { method, path, headers, body, stream } with the values of its parameters; a list is given as lines of text.
export function requestOf(operation, values, body) {
  const { method, path, parameters } = operation;
  const given = (place) => parameters.filter((one) => one.in === place && values[one.name]);
  const url = given("path").reduce((text, { name }) => text.replace(`{${name}}`, encodeURIComponent(values[name])), path);
  const lines = ({ name, schema }) => (schema?.type === "array" ? values[name].split("\n").filter(Boolean) : [values[name]]);
  const search = new URLSearchParams(given("query").flatMap((one) => lines(one).map((text) => [one.name, text])));
  const headers = Object.fromEntries(given("header").map(({ name }) => [name, values[name]]));
  return { method, path: search.size ? `${url}?${search}` : url, headers, body, stream: isStream(operation) };
}

// The names of the parameters that a request still lacks.
export const lacking = ({ parameters }, values) => parameters.filter((one) => one.required && !values[one.name]).map((one) => one.name);

export function curl({ method, path, headers, body, stream }, origin, withKey) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const sent = Object.entries({ ...headers, ...(body === undefined ? {} : { "content-type": JSON_TYPE }) });
  return [
    stream ? "curl -sN" : "curl -s", ...(method === "GET" ? [] : [`-X ${method}`]), quoted(origin + path),
    ...(withKey ? ['-H "Authorization: Bearer $CODITECT_API_KEY"'] : []),
    ...sent.map(([name, text]) => `-H ${quoted(`${name}: ${text}`)}`), ...(body === undefined ? [] : [`-d ${quoted(stringify(body))}`]),
  ].join(" ");
}
