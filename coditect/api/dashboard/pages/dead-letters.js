// Dead letters: why they were given up; brought back or thrown away after a preview of what would happen.
import { html, useState } from "../src/html.js";
import { get, post, query, segment } from "../src/api.js";
import { count, moment } from "../src/format.js";
import { parse } from "../src/json.js";
import { ACTIONS, Act, Ago, Ask, Badge, Empty, Facts, Field, Json, ProblemNote, Shown, Table, Title } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { Redrive } from "../workflow/node.js";

const NOTHING = { capability: "", reason: "", agent: "", keyword: "" };

export default function DeadLetters({ rest }) {
  return rest[0] ? html`<${Letter} id=${rest[0]} />` : html`<${List} />`;
}

const COLUMNS = [
  { head: "Task", cell: (row) => html`<a class="id" href=${`#/dead-letters/${encodeURIComponent(row.id)}`}>${row.id}</a><br /><small>${row.queue}</small>` },
  { head: "Capability", cell: (row) => row.capability },
  { head: "Reason", cell: (row) => html`<${Badge} state="dead" /> ${row.reason}` },
  { head: "Error", cell: (row) => row.error },
  { head: "Agent", cell: (row) => html`<small class="id">${row.agent}</small>` },
  { head: "Attempts", kind: "number", cell: (row) => row.attempts },
  { head: "Died", cell: (row) => html`<${Ago} at=${row.dead_at} />` },
];

function List() {
  const [wanted, setWanted] = useState(NOTHING);
  const [chosen, setChosen] = useState(new Set());
  const change = (field) => (event) => (setWanted({ ...wanted, [field]: event.target.value }), setChosen(new Set()));
  const found = useResource((signal) => get(`/v1/dead${query({ ...wanted, limit: 200 })}`, { signal }), { kind: ["task.dead", "node.dead"] }, [query(wanted)]);
  const letters = found.value?.letters ?? [];
  const nodes = found.value?.nodes ?? [];
  const toggle = (id) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    setChosen(next);
  };
  const mark = { head: html`<span class="unseen">Chosen</span>`, cell: (row) => html`<input type="checkbox" aria-label=${`Choose ${row.id}`} checked=${chosen.has(row.id)} onChange=${() => toggle(row.id)} />` };
  const selection = chosen.size ? { ids: [...chosen] } : Object.fromEntries(Object.entries(wanted).filter(([, value]) => value));
  const filtered = Object.values(wanted).some(Boolean);
  const list = { ...found, value: found.value && [...letters, ...nodes] };
  return html`<${Title} about="Tasks that were given up. Their bodies are kept until someone decides.">Dead letters<//>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Capability">${(id) => html`<input id=${id} value=${wanted.capability} onChange=${change("capability")} />`}<//>
      <${Field} label="Reason">${(id) => html`<input id=${id} value=${wanted.reason} onChange=${change("reason")} placeholder="handler_error" />`}<//>
      <${Field} label="Agent">${(id) => html`<input id=${id} value=${wanted.agent} onChange=${change("agent")} />`}<//>
      <${Field} label="Contains" note="In the error or the body.">${(id) => html`<input id=${id} value=${wanted.keyword} onChange=${change("keyword")} />`}<//></form>
    <${Shown} resource=${list} empty=${html`<${Empty} command="coditect dead list">${filtered ? "No dead letter fits these filters." : "No task was given up."} On a terminal:<//>`}>
      ${() => html`${letters.length > 0 && html`<${Settle} ...${{ selection, chosen: chosen.size, reload: () => (setChosen(new Set()), found.reload()) }} />
        <${Table} label="Dead letters" columns=${[mark, ...COLUMNS]} rows=${letters} keyOf=${(row) => `${row.queue} ${row.id}`} />`}
        ${nodes.length > 0 && html`<h2 class="apart">Nodes of workflows</h2><${Table} label="Dead nodes" columns=${nodeColumns(found.reload)} rows=${nodes} keyOf=${(row) => `${row.workflow}:${row.node}`} />`}`}<//>`;
}

const base = (node) => node.replace(/\[\d+\]$/, ""); // an element of a map runs again with its map

const nodeColumns = (reload) => [
  { head: "Node", cell: ({ workflow, node }) => html`<a href=${`#/workflows/${workflow}?node=${encodeURIComponent(node)}`}>${node}</a><br /><small class="id">${workflow}</small>` },
  ...COLUMNS.slice(1),
  { head: ACTIONS, cell: ({ workflow, node }) => html`<${Redrive} path=${`/v1/workflows/${segment(workflow)}/nodes/${segment(base(node))}/redrive`} name=${base(node)} onDone=${reload} />` },
];

// Redrive and discard of what is chosen, else of what the filters select; a preview comes first.
function Settle({ selection, chosen, reload }) {
  const [told, setTold] = useState(null);
  const whole = Object.keys(selection).length === 0;
  const order = whole ? { all: true } : selection;
  const act = (verb, dry_run) => async () => {
    const answer = await post(`/v1/dead/${verb}`, { ...order, dry_run });
    setTold({ ...answer, verb, dry_run });
    if (!dry_run) reload();
    return answer;
  };
  const what = chosen ? count(chosen, "chosen letter") : whole ? "all letters" : "the letters that fit the filters";
  return html`<div class="card apart"><div class="actions"><strong>For ${what}:</strong>
      <${Act} act=${act("redrive", true)}>Preview of redrive<//><${Act} act=${act("discard", true)}>Preview of discard<//></div>
    ${told && html`<${Told} told=${told} confirm=${act(told.verb, false)} />`}</div>`;
}

function Told({ told, confirm }) {
  const done = told.count;
  const verb = told.verb === "redrive" ? "redriven" : "discarded";
  return html`<div role="status"><p><strong>${count(done, "letter")}</strong> ${told.dry_run ? "would be" : done === 1 ? "was" : "were"} ${verb}, ${told.kept.length} kept.</p>
    ${told.kept.length > 0 && html`<ul>${told.kept.slice(0, 20).map((one) => html`<li><code>${one.id}</code> ${one.why}</li>`)}</ul>`}
    ${told.stopped && html`<p>Stopped: ${told.stopped}</p>`}
    ${told.dry_run && done > 0 && html`<${Act} kind=${told.verb === "redrive" ? "main" : "bad"} act=${confirm}>${told.verb === "redrive" ? "Redrive" : "Discard for good"}<//>`}</div>`;
}

function Letter({ id }) {
  const found = useResource((signal) => get(`/v1/dead/${segment(id)}`, { signal }), null, [id]);
  const [gone, setGone] = useState("");
  const { letter, failure, errors, body } = found.value ?? {};
  const act = (verb) => async () => (await post(`/v1/dead/${verb}`, { ids: [id] }), setGone(verb));
  return html`<${Title} about=${html`<span class="id">${id}</span>`} actions=${letter && !gone && html`<${Act} kind="main" act=${act("redrive")}>Redrive<//>
      <${Ask} label="Discard …" kind="bad" confirm="Discard for good" title="Discard this letter?" act=${act("discard")}><p>Its body is deleted.</p><//>`}>Dead letter<//>
    ${gone && html`<p role="status" class="done">${gone === "redrive" ? html`It was published again. <a href=${`#/tasks/${id}`}>See the task</a>` : "It was discarded."}</p>`}
    <${ProblemNote} problem=${found.problem} />
    ${letter && html`<${Facts} of=${{ capability: letter.capability, priority: letter.priority, reason: letter.reason, agent: letter.agent, attempts: letter.attempts, redrives: letter.redrives, died: letter.dead_at && moment(letter.dead_at), queue: letter.queue }} />
      ${failure && html`<h2 class="minor">Error</h2><p><strong>${failure.type}</strong> ${failure.message}</p>${failure.traceback && html`<${Json} label="Traceback" value=${failure.traceback} />`}`}
      ${errors.length > 0 && html`<h2 class="minor">Earlier attempts</h2><${Json} label="Earlier attempts" value=${errors} />`}
      <h2 class="minor">Body</h2><${Json} label="Body" value=${pretty(body)} />`}`;
}

function pretty(body) {
  try {
    return parse(body);
  } catch {
    return body;
  }
}
