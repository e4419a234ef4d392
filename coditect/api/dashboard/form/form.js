// A form for a JSON Schema; raw JSON is the way out, and both show the same value.
import { html, useEffect, useId, useMemo, useState } from "../src/html.js";
import { parse, stringify } from "../src/json.js";
import { draftOf, fieldOf, fromValue, valueOf } from "./schema.js";

// `changed` hears { value, mistakes } whenever something is typed.
export function SchemaForm({ schema, example, changed }) {
  const field = useMemo(() => fieldOf(schema), [schema]);
  const [draft, setDraft] = useState(() => (example === undefined ? draftOf(field) : fromValue(field, example)));
  const [raw, setRaw] = useState(field.kind === "json");
  const [text, setText] = useState(() => stringify(example ?? valueOf(field, draftOf(field)) ?? {}, 2));
  useEffect(() => changed(raw ? parsed(text) : told(field, draft)), [draft, text, raw]);
  const toJson = () => (setText(stringify(told(field, draft).value ?? {}, 2)), setRaw(true));
  const toForm = () => {
    const { value, mistakes } = parsed(text);
    if (mistakes.length === 0) setDraft(fromValue(field, value));
    setRaw(false);
  };
  return html`<fieldset class="schema"><legend>Input</legend>
    ${raw ? html`<${Raw} text=${text} setText=${setText} />` : html`<${Part} field=${field} draft=${draft} change=${setDraft} top />`}
    <button type="button" class="link" onClick=${raw ? toForm : toJson}>${raw ? "Fill in a form" : "Write JSON"}</button></fieldset>`;
}

function told(field, draft) {
  const mistakes = [];
  return { value: valueOf(field, draft, mistakes), mistakes };
}

function parsed(text) {
  try {
    return { value: parse(text), mistakes: [] };
  } catch (error) {
    return { value: undefined, mistakes: [{ at: "input", sentence: error.message }] };
  }
}

function Raw({ text, setText }) {
  const id = useId();
  return html`<label class="field" for=${id}><span>JSON</span><textarea id=${id} rows="12" spellcheck="false" value=${text}
    onInput=${(event) => setText(event.target.value)}></textarea></label>`;
}

function Part({ field, draft, change, top }) {
  if (field.kind === "object") return html`<${ObjectPart} ...${{ field, draft, change, top }} />`;
  if (field.kind === "tuple") return html`<${TuplePart} ...${{ field, draft, change }} />`;
  if (field.kind === "array") return html`<${ArrayPart} ...${{ field, draft, change }} />`;
  return html`<${Leaf} ...${{ field, draft, change }} />`;
}

function ObjectPart({ field, draft, change, top }) {
  const fields = field.fields.map((one) => html`<${Part} key=${one.name} field=${one} draft=${draft[one.name]}
    change=${(value) => change({ ...draft, [one.name]: value })} />`);
  if (top) return fields;
  return html`<fieldset class="nested"><legend>${field.title}${!field.required && html` <small>optional</small>`}</legend>
    ${field.note && html`<p class="about">${field.note}</p>`}${fields}</fieldset>`;
}

function TuplePart({ field, draft, change }) {
  const name = field.title || "List";
  const put = (index, value) => change(draft.map((one, at) => (at === index ? value : one)));
  return html`<fieldset class="nested"><legend>${name}${!field.required && html` <small>optional</small>`}</legend>
    ${field.note && html`<p class="about">${field.note}</p>`}
    ${field.fields.map((one, index) => html`<${Part} key=${index} draft=${draft[index]} change=${(value) => put(index, value)}
      field=${one.title === one.name ? { ...one, title: `${name} ${one.name}` } : one} />`)}</fieldset>`;
}

function ArrayPart({ field, draft, change }) {
  const name = field.title || "List";
  const put = (index, value) => change(draft.map((one, at) => (at === index ? value : one)));
  return html`<fieldset class="nested"><legend>${name}${!field.required && html` <small>optional</small>`}</legend>
    ${field.note && html`<p class="about">${field.note}</p>`}
    ${draft.map((one, index) => html`<div class="element" key=${index}>
      <${Part} field=${{ ...field.item, title: `${name} ${index + 1}` }} draft=${one} change=${(value) => put(index, value)} />
      <button type="button" aria-label=${`Remove ${name} ${index + 1}`} onClick=${() => change(draft.filter((_, at) => at !== index))}>✕</button></div>`)}
    <button type="button" onClick=${() => change([...draft, draftOf(field.item)])}>Add to ${name}</button></fieldset>`;
}

function Leaf({ field, draft, change }) {
  const id = useId();
  const onInput = (event) => change(event.target.value);
  const title = html`<span>${field.title || "Value"}${!field.required && html` <small>optional</small>`}</span>`;
  if (field.kind === "boolean" && field.required) {
    return html`<label class="check" for=${id}><input id=${id} type="checkbox" checked=${draft === true}
      onChange=${(event) => change(event.target.checked)} /><span>${field.title}</span>${field.note && html`<small>${field.note}</small>`}</label>`;
  }
  return html`<label class="field" for=${id}>${title}<${Input} ...${{ id, field, draft, onInput }} />
    ${field.note && html`<small>${field.note}</small>`}</label>`;
}

function Input({ id, field, draft, onInput }) {
  switch (field.kind) {
    case "choice":
      return html`<select id=${id} value=${String(draft)} onChange=${onInput}>${!field.required && html`<option value=""></option>`}
        ${field.choices.map((one, index) => html`<option value=${String(index)}>${String(one)}</option>`)}</select>`;
    case "boolean":
      return html`<select id=${id} value=${String(draft)} onChange=${onInput}><option value=""></option><option value="true">yes</option><option value="false">no</option></select>`;
    case "number":
      return html`<input id=${id} inputmode=${field.schema.type === "integer" ? "numeric" : "decimal"} value=${draft} onInput=${onInput} />`;
    case "json":
      return html`<textarea id=${id} rows="3" spellcheck="false" placeholder="JSON" value=${draft} onInput=${onInput}></textarea>`;
    default:
      return html`<textarea id=${id} rows="1" class="plain" value=${draft} onInput=${onInput}></textarea>`;
  }
}
