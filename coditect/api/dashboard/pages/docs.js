// The reference of the HTTP API, rendered from its own OpenAPI document; each operation can be tried from here.
import { html, useEffect, useMemo, useRef, useState } from "../src/html.js";
import { call, get, key } from "../src/api.js";
import { curl, groups, isStream, lacking, matching, requestOf } from "../src/openapi.js";
import { stringify } from "../src/json.js";
import { Command, Field, Json, ProblemNote, Shown, Table, Title } from "../src/parts.js";
import { useAction, useResource } from "../src/resource.js";
import { SchemaForm } from "../form/form.js";
import { fieldOf } from "../form/schema.js";

const DEEPEST = 3;
const TONES = { GET: "busy", POST: "good", PUT: "warn", PATCH: "warn", DELETE: "bad" };

export default function Docs({ rest }) {
  const found = useResource((signal) => get("/openapi.json", { signal }), null);
  const [filter, setFilter] = useState("");
  return html`<${Title} about="Every path of this API, from its own description. Requests that you send here act on this fleet."
      actions=${html`<a href="openapi.json" download="coditect-openapi.json">OpenAPI document</a>`}>HTTP API<//>
    <div class="filters"><${Field} label="Filter">${(id) => html`<input id=${id} type="search" value=${filter} onInput=${(event) => setFilter(event.target.value)} />`}<//></div>
    <${Shown} resource=${found}>${(document) => html`<${Groups} document=${document} filter=${filter} chosen=${rest[0]} />`}<//>`;
}

function Groups({ document, filter, chosen }) {
  const all = useMemo(() => groups(document), [document]);
  const shown = matching(all, filter);
  if (!shown.length) return html`<p class="about" role="status">No operation has these words.</p>`;
  return shown.map(([tag, list]) => html`<section key=${tag} class="apart"><h2>${tag}</h2>
    ${list.map((one) => html`<${Operation} key=${one.id} operation=${one} begun=${one.id === chosen} />`)}</section>`);
}

function Operation({ operation, begun }) {
  const [open, setOpen] = useState(begun);
  const place = useRef(null);
  useEffect(() => {
    if (!begun) return;
    setOpen(true);
    place.current.scrollIntoView({ block: "start" });
  }, [begun]);
  const { method, path, first, id } = operation;
  return html`<details class="operation" ref=${place} open=${open} onToggle=${(event) => setOpen(event.target.open)}>
    <summary><span class="badge ${TONES[method]}">${method}</span> <code>${path}</code> <span class="about">${first}</span></summary>
    ${open && html`<div class="card"><${About} operation=${operation} /><${Try} operation=${operation} /><p><a href=${`#/docs/${id}`}>Link to this operation</a></p></div>`}</details>`;
}

function About({ operation }) {
  const { rest, parameters, body, responses } = operation;
  return html`${rest.map((text) => html`<p>${text}</p>`)}
    ${parameters.length > 0 && html`<h3>Parameters</h3><${Table} label="Parameters" rows=${parameters} keyOf=${(one) => `${one.in} ${one.name}`} columns=${[
      { head: "Name", cell: (one) => html`<code>${one.name}</code>` }, { head: "In", cell: (one) => one.in },
      { head: "Type", cell: (one) => typeOf(fieldOf(one.schema ?? {})) }, { head: "Required", cell: (one) => (one.required ? "yes" : "no") },
      { head: "Meaning", cell: (one) => one.description ?? "" },
    ]} />`}
    ${body && html`<h3>Body</h3><${Schema} schema=${body} />`}
    <h3>Answers</h3><ul class="steps">${responses.map((one) => html`<li key=${one.status}><strong>${one.status}</strong> ${one.about}
      ${one.type && html` <small>${one.type}</small>`}${one.schema && html`<details><summary>Fields</summary><${Schema} schema=${one.schema} /></details>`}</li>`)}</ul>`;
}

function typeOf(field) {
  const { kind, schema, choices } = field;
  if (kind === "choice") return choices.map((one) => stringify(one)).join(" | ");
  if (kind === "array") return `list of ${typeOf(field.item)}`;
  const named = { object: "object", tuple: "list", boolean: "boolean", number: schema.type, text: schema.format ?? "string" }[kind];
  return `${named ?? "JSON"}${field.nullable ? " or null" : ""}`;
}

function Schema({ schema }) {
  const field = useMemo(() => fieldOf(schema), [schema]);
  return html`<${Fields} field=${field} depth=${0} />`;
}

function Fields({ field, depth }) {
  const inner = field.kind === "array" ? field.item : field;
  if (inner.kind !== "object" || depth > DEEPEST) return html`<p class="about">${typeOf(field)}</p>`;
  return html`${field.kind === "array" && html`<p class="about">${typeOf(field)}, each with</p>`}
    <ul class="steps">${inner.fields.map((one) => html`<li key=${one.name}><code>${one.name}</code> <small>${typeOf(one)}${one.required ? ", required" : ""}</small>
      ${one.note && html`<br />${one.note}`}${hasFields(one) && html`<${Fields} field=${one} depth=${depth + 1} />`}</li>`)}</ul>`;
}

const hasFields = (field) => field.kind === "object" || (field.kind === "array" && field.item.kind === "object");

function Try({ operation }) {
  const [values, setValues] = useState({});
  const [body, setBody] = useState({ value: undefined, mistakes: [] });
  const [withBody, setWithBody] = useState(operation.bodyRequired);
  const request = requestOf(operation, values, withBody ? body.value : undefined);
  const action = useAction(async () => {
    const missing = [...lacking(operation, values), ...(withBody ? body.mistakes.map((one) => `${one.at} ${one.sentence}`) : [])];
    if (missing.length) throw new Error(`Fill in: ${missing.join(", ")}`);
    return { answer: await call(request.method, request.path, request.body, { more: request.headers }) };
  });
  return html`<h3>Try it</h3>
    ${operation.parameters.map((one) => html`<${Field} key=${`${one.in} ${one.name}`} label=${`${one.name}${one.required ? "" : " (optional)"}`} note=${one.schema?.type === "array" ? "One a line." : ""}>
      ${(id) => html`<textarea id=${id} rows="1" class="plain" value=${values[one.name] ?? ""} onInput=${(event) => setValues({ ...values, [one.name]: event.target.value })}></textarea>`}<//>`)}
    ${operation.body && !operation.bodyRequired && html`<label class="check"><input type="checkbox" checked=${withBody} onChange=${(event) => setWithBody(event.target.checked)} /> With a body</label>`}
    ${withBody && html`<${SchemaForm} schema=${operation.body} changed=${setBody} />`}
    <p><${Command}>${curl(request, location.origin, key.get() !== "")}<//></p>
    ${isStream(operation) ? html`<p class="about">A stream does not end: follow it with the command.</p>`
      : html`<div class="actions"><button type="button" class="main" disabled=${action.busy} onClick=${() => action.run()}>Send</button></div>`}
    <${ProblemNote} problem=${action.problem} />
    ${action.done && html`<${Json} value=${action.done.answer ?? "The answer has no body."} label="Answer" />`}`;
}
