// What a click on a node shows: its facts, attempts, input, result or failure, and what can be done with it.
import { html, useState } from "../src/html.js";
import { get, post, segment } from "../src/api.js";
import { clock, span } from "../src/format.js";
import { stringify } from "../src/json.js";
import { Act, Ago, Ask, Badge, Facts, Field, Json, ProblemNote, Table } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { Path } from "./path.js";

const GIVEN = ["task", "map", "workflow", "compensation", "wait_until"]; // the kinds of nodes that have an input
const AGAIN = ["failed", "dead", "rejected", "canceled", "skipped"];
const ATTEMPTS = [
  { head: "#", kind: "number", cell: (row) => row.attempt },
  { head: "State", cell: (row) => html`<${Badge} state=${row.status} />` },
  { head: "Agent", cell: (row) => html`<small class="id">${row.agent}</small>` },
  { head: "Began", cell: (row) => clock(row.started_at_ms) },
  { head: "Took", kind: "number", cell: (row) => row.started_at_ms && row.finished_at_ms && span(row.finished_at_ms - row.started_at_ms) },
  { head: "Error", cell: (row) => row.message || row.reason },
];

export function NodePanel({ workflow, node, attempts, close, choose, reload, open, toggle }) {
  return html`<aside class="panel" aria-label=${`Node ${node.label}`}>
    <header><h2 tabindex="-1">${node.label}</h2><button type="button" onClick=${close} aria-label="Close the node">✕</button></header>
    ${node.counts ? html`<${Members} node=${node} choose=${choose} />` : html`<${One} key=${node.name} ...${{ workflow, node, attempts, reload }} />`}
    ${!node.counts && node.members?.length > 0 && html`<h3>Elements</h3>
      <button type="button" aria-pressed=${open ? "true" : "false"} onClick=${() => toggle(node.name)}>${open ? "Draw the map as one node" : `Draw its ${node.members.length} elements`}</button>
      <${Members} node=${node} choose=${choose} />`}
  </aside>`;
}

function Members({ node, choose }) {
  const [most, setMost] = useState(50);
  return html`<ul class="members">${node.members.slice(0, most).map((row) => html`<li key=${row.name}><${Badge} state=${row.state} />
      <button type="button" class="link" onClick=${() => choose(row.name)}>${row.name}</button></li>`)}</ul>
    ${node.members.length > most && html`<button type="button" onClick=${() => setMost(most + 200)}>Show more of ${node.members.length}</button>`}`;
}

function One({ workflow, node, attempts, reload }) {
  const path = `/v1/workflows/${segment(workflow)}/nodes/${segment(node.name)}`;
  const found = useResource((signal) => get(path, { signal }), null, [path, node.state, node.attempt]);
  const { value, failure, input, evaluated, trace, trace_url: traceUrl } = found.value ?? {};
  return html`<${Badge} state=${node.state} />
    <${Facts} of=${{
      kind: node.kind, capability: node.capability, agent: node.agent, attempt: node.attempt || "", priority: node.priority,
      question: node.question, after: node.after.join(", "), reason: node.reason, message: node.message,
      ready: node.ready_at_ms && html`<${Ago} at=${node.ready_at_ms} />`,
      waited: node.started_at_ms && node.ready_at_ms ? span(node.started_at_ms - node.ready_at_ms) : "",
      took: node.started_at_ms && node.finished_at_ms ? span(node.finished_at_ms - node.started_at_ms) : "",
    }} />
    ${node.children?.length > 0 && html`<p>Runs ${node.children.map((child) => html`<a href=${`#/workflows/${child}`}>${child}</a> `)}</p>`}
    <${NodeActions} ...${{ workflow, node, reload }} />
    <${ProblemNote} problem=${found.problem} />
    ${attempts.length > 0 && html`<h3>Attempts</h3><${Table} label="Attempts" columns=${ATTEMPTS} rows=${attempts} keyOf=${(row) => row.fence || row.attempt} />`}
    ${found.value && GIVEN.includes(node.kind) && html`<h3>Input</h3>${evaluated
      ? html`<${Json} label="Input" value=${input} />` : html`<p class="about">Not evaluated before the node begins.</p>`}`}
    ${node.state === "completed" && html`<h3>Result</h3><${Json} label="Result" value=${value} />`}
    ${failure && html`<h3>Error</h3><p><strong>${failure.type}</strong> ${failure.message}</p>${failure.fix && html`<p class="fix">${failure.fix}</p>`}
      ${failure.traceback && html`<${Json} label="Traceback" value=${failure.traceback} />`}`}
    ${found.value && html`<h3>Trace</h3>
      ${traceUrl && html`<p><a href=${traceUrl} target="_blank" rel="noopener noreferrer">Open in the tracing tool</a></p>`}
      ${trace && html`<${Facts} of=${{ id: html`<small class="id">${trace}</small>` }} />`}
      <${Path} task=${`${workflow}:${node.name}`} moved=${[node.state, node.attempt]} />`}`;
}

function NodeActions({ workflow, node, reload }) {
  const base = node.name.replace(/\[\d+\]$/, "");
  const redrive = `/v1/workflows/${segment(workflow)}/nodes/${segment(base)}/redrive`;
  if (node.state === "awaiting_approval") return html`<${Question} ...${{ workflow, node: node.name, reload }} />`;
  if (!AGAIN.includes(node.state)) return null;
  return html`<${Redrive} path=${redrive} name=${base} onDone=${reload} />`;
}

// A waiting question, what it is about, and the buttons that answer it.
function Question({ workflow, node, reload }) {
  const found = useResource((signal) => get(`/v1/approvals/${segment(`${workflow}:${node}`)}`, { signal }), null, [workflow, node]);
  return html`<${About} about=${found.value?.about} open=${true} /><${ProblemNote} problem=${found.problem} />
    <${Answer} ...${{ workflow, node, onDone: reload }} />`;
}

const SUBJECTS = [["labels", "Labels"], ["input", "Input"], ["results", "Results of the nodes before it"], ["workflow_input", "Input of the workflow"]];

// The values that an approval is about.
export function About({ about, open = false }) {
  const given = SUBJECTS.filter(([name]) => about?.[name] != null && stringify(about[name]) !== "{}");
  if (given.length === 0) return null;
  return html`<details class="subject" open=${open}><summary>What is approved</summary>
    ${given.map(([name, label]) => html`<h3 key=${name}>${label}</h3><${Json} label=${label} value=${about[name]} />`)}</details>`;
}

export function Answer({ workflow, node, onDone }) {
  const path = `/v1/approvals/${segment(`${workflow}:${node}`)}`;
  const fields = html`<${Field} label="Your name">${(id) => html`<input id=${id} name="by" />`}<//>
    <${Field} label="Comment" note="Kept with the answer.">${(id) => html`<textarea id=${id} name="comment" rows="3"></textarea>`}<//>`;
  const answer = (verb) => (form) => post(`${path}/${verb}`, form);
  return html`<span class="actions"><${Ask} label="Grant" kind="main" title=${`Grant ${node}?`} act=${answer("grant")} onDone=${onDone}>${fields}<//>
    <${Ask} label="Deny" kind="bad" title=${`Deny ${node}?`} act=${answer("deny")} onDone=${onDone}>${fields}<//></span>`;
}

// Says first what would begin again.
export function Redrive({ path, name, onDone }) {
  const [told, setTold] = useState(null);
  const preview = async () => setTold(await post(path, { dry_run: true }));
  return html`<div class="actions"><${Act} act=${preview}>Redrive …<//>
    ${told && html`<span>${told.again?.length ?? 1}${told.more ? " and more" : ""} would begin again: ${(told.again ?? [name]).slice(0, 8).join(", ")}
      <${Act} kind="main" act=${async () => (await post(path, { dry_run: false }), setTold(null), onDone?.())}>Run again<//></span>`}</div>`;
}
