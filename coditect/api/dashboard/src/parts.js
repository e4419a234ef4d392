// What every page is made of: badges, tables, problems, empty states, buttons and dialogs.
import { html, useEffect, useId, useRef, useState } from "./html.js";
import { ago, moment, until, words } from "./format.js";
import { stringify } from "./json.js";
import { useNow, useAction } from "./resource.js";
import { look } from "./states.js";

export function Badge({ state, note }) {
  const { tone, sign } = look(state);
  return html`<span class="badge ${tone}" title=${note}><span class="sign" aria-hidden="true">${sign}</span>${words(state)}</span>`;
}

export function Title({ children, about, actions }) {
  return html`<header class="title"><div><h1 tabindex="-1">${children}</h1>${about && html`<p class="about">${about}</p>`}</div>
    <div class="actions">${actions}</div></header>`;
}

export function Ago({ at }) {
  const now = useNow();
  return at ? html`<time datetime=${moment(at)} title=${moment(at)}>${ago(at, now)}</time>` : html`<span class="none">–</span>`;
}

export function Until({ at }) {
  const now = useNow();
  return at ? html`<time datetime=${moment(at)} title=${moment(at)}>${until(at, now)}</time>` : html`<span class="none">–</span>`;
}

export function Command({ children }) {
  return html`<code class="command">${children}</code>`;
}

export function Empty({ children, command }) {
  return html`<div class="empty"><p>${children}</p>${command && html`<p><${Command}>${command}<//></p>`}</div>`;
}

export function ProblemNote({ problem }) {
  if (!problem) return null;
  const facts = Object.entries(problem.facts ?? {}).filter(([, value]) => typeof value !== "object" && value !== "");
  return html`<div class="problem" role="alert"><strong>${problem.message}</strong>
    ${facts.length > 0 && html`<p class="about">${facts.map(([name, value]) => `${words(name)}: ${value}`).join(" · ")}</p>`}
    ${problem.mistakes?.length > 0 && html`<ul>${problem.mistakes.map((one) => html`<li><code>${one.at}</code> ${one.sentence} ${one.fix}</li>`)}</ul>`}
    ${problem.fix && html`<p class="fix">${problem.fix}</p>`}</div>`;
}

export const ACTIONS = html`<span class="unseen">Actions</span>`;

// `columns` are { head, cell(row), kind }; kind "number" aligns right. `shown` is called with a row that is chosen.
export function Table({ label, columns, rows, keyOf, rowClass }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${label}><table>
    <thead><tr>${columns.map((one) => html`<th scope="col" class=${one.kind}>${one.head}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${keyOf(row)} class=${rowClass?.(row)}>
      ${columns.map((one) => html`<td class=${one.kind}>${one.cell(row)}</td>`)}</tr>`)}</tbody></table></div>`;
}

// The states of a resource: its problem, the wait for its first value, nothing, or its rows.
export function Shown({ resource, empty, children }) {
  const { value, problem } = resource;
  const nothing = Array.isArray(value) && value.length === 0;
  return html`<${ProblemNote} problem=${problem} />
    ${value === undefined && !problem && html`<p class="wait" role="status">Loading …</p>`}
    ${value !== undefined && (nothing ? empty : children(value))}`;
}

export function Meter({ value, most, label }) {
  return html`<span class="meter"><meter min="0" max=${Math.max(1, most)} value=${value} aria-label=${label}></meter>
    <span class="figure">${value} / ${most}</span></span>`;
}

export function Tile({ label, children, note }) {
  return html`<div class="tile"><span class="tile-label">${label}</span><span class="tile-value">${children}</span>
    ${note && html`<span class="tile-note">${note}</span>`}</div>`;
}

export function Field({ label, children, note }) {
  const id = useId();
  return html`<label class="field" for=${id}><span>${label}</span>${children(id)}${note && html`<small>${note}</small>`}</label>`;
}

export function Facts({ of }) {
  const given = Object.entries(of).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return html`<dl class="facts">${given.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

export function Act({ act, children, kind = "", done, ...rest }) {
  const action = useAction(act);
  return html`<span class="act"><button type="button" class=${kind} disabled=${action.busy} onClick=${() => action.run()} ...${rest}>
    ${children}</button><${ProblemNote} problem=${action.problem} />
    ${action.done && done && html`<span class="done" role="status">${typeof done === "function" ? done(action.done) : done}</span>`}</span>`;
}

// A button that asks before it acts: a dialog with the fields of `children(close)`, which acts by `act(form)`.
export function Ask({ label, title, kind = "", act, children, confirm = label, onDone }) {
  const [open, setOpen] = useState(false);
  return html`<button type="button" class=${kind} onClick=${() => setOpen(true)}>${label}</button>
    ${open && html`<${AskDialog} ...${{ title, kind, act, confirm, children, onDone, close: () => setOpen(false) }} />`}`;
}

function AskDialog({ title, kind, act, confirm, children, close, onDone }) {
  const dialog = useRef(null);
  const heading = useId();
  const action = useAction(act);
  useEffect(() => {
    const shown = dialog.current;
    shown.showModal();
    return () => shown.close();
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    const form = Object.fromEntries(new FormData(event.target));
    const done = await action.run(form);
    if (done === undefined) return;
    close();
    onDone?.(done);
  };
  return html`<dialog ref=${dialog} aria-labelledby=${heading} onClose=${close}><form onSubmit=${submit}>
    <h2 id=${heading}>${title}</h2>${children}
    <${ProblemNote} problem=${action.problem} />
    <div class="actions"><button type="button" onClick=${close}>Back</button>
      <button type="submit" class=${kind || "main"} disabled=${action.busy}>${confirm}</button></div></form></dialog>`;
}

export function Tabs({ label, tabs, chosen, choose }) {
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = tabs.findIndex(([id]) => id === chosen);
    const [id] = tabs[(at + step + tabs.length) % tabs.length];
    choose(id);
    event.currentTarget.querySelector(`[data-tab="${id}"]`)?.focus();
  };
  return html`<div role="tablist" class="tabs" aria-label=${label} onKeyDown=${move}>${tabs.map(
    ([id, text]) => html`<button type="button" role="tab" key=${id} data-tab=${id} id=${`tab-${id}`} aria-selected=${id === chosen ? "true" : "false"}
      aria-controls="tab-panel" tabindex=${id === chosen ? 0 : -1} onClick=${() => choose(id)}>${text}</button>`,
  )}</div>`;
}

export function Json({ value, label }) {
  if (value === undefined) return null;
  const text = typeof value === "string" ? value : stringify(value, 2);
  return html`<pre class="json" tabindex="0" role="region" aria-label=${label}>${text.length > 20_000 ? `${text.slice(0, 20_000)}\n… ${text.length} characters` : text}</pre>`;
}
