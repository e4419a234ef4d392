// Running tasks that one agent offers to others: who was asked, why each declined, and how it ended.
import { html, useState } from "../src/html.js";
import { get, post, query, rows, segment } from "../src/api.js";
import { ACTIONS, Ago, Ask, Badge, Empty, Facts, Field, Json, ProblemNote, Shown, Table, Title, Until } from "../src/parts.js";
import { useResource } from "../src/resource.js";

const EVENTS = { kind: ["agent.handoff"] };
const OPEN = "requested";

export default function Handoffs({ rest }) {
  return rest[0] ? html`<${Handoff} id=${rest[0]} />` : html`<${List} />`;
}

const nodeOf = ({ task, workflow }) => task.slice(workflow.length + 1);

function Task({ row }) {
  return html`<a href=${`#/workflows/${row.workflow}?node=${encodeURIComponent(nodeOf(row))}`}>${nodeOf(row)}</a><br /><small class="id">${row.workflow}</small>`;
}

function Withdraw({ row, reload }) {
  return html`<${Ask} label="Withdraw …" kind="bad" confirm="Withdraw" title="Withdraw this handoff?" onDone=${reload}
      act=${({ reason }) => post(`/v1/handoffs/${segment(row.handoff)}/withdraw`, reason ? { reason } : {})}>
    <p>The task stays with ${row.owner}, which is told.</p>
    <${Field} label="Reason">${(id) => html`<input id=${id} name="reason" />`}<//><//>`;
}

function List() {
  const [open, setOpen] = useState(false);
  const path = `/v1/handoffs${query({ open: open || undefined, limit: 500 })}`;
  const found = useResource((signal) => rows(path, { signal }), EVENTS, [path]);
  const columns = [
    { head: "Handoff", cell: (row) => html`<a class="id" href=${`#/handoffs/${encodeURIComponent(row.handoff)}`}>${row.capability || row.to}</a>` },
    { head: "Task", cell: (row) => html`<${Task} row=${row} />` },
    { head: "State", cell: (row) => html`<${Badge} state=${row.state} />` },
    { head: "From", cell: (row) => html`<small class="id">${row.owner}</small>` },
    { head: "To", cell: (row) => html`${row.to}${row.by && row.by !== row.to && html`<br /><small class="id">${row.by}</small>`}` },
    { head: "Reason", cell: (row) => row.reason },
    { head: "Declined", kind: "number", cell: (row) => row.asked.filter((one) => one.declined).length },
    { head: "Since", cell: (row) => html`<${Ago} at=${row.begun_ms} />` },
    { head: ACTIONS, cell: (row) => row.state === OPEN && html`<${Withdraw} row=${row} reload=${found.reload} />` },
  ];
  const none = open ? "No handoff is open." : "No task was handed off. Handlers hand off with context.hand_off(...).";
  return html`<${Title} about="Running tasks that an agent offers to another agent or to a capability.">Handoffs<//>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Only open">${(id) => html`<input id=${id} type="checkbox" checked=${open} onChange=${(event) => setOpen(event.target.checked)} />`}<//></form>
    <${Shown} resource=${found} empty=${html`<${Empty} command="coditect task handoff list">${none} To ask again:<//>`}>
      ${(list) => html`<${Table} label="Handoffs" columns=${columns} rows=${list} keyOf=${(row) => row.handoff} />`}<//>`;
}

const ASKED = [
  { head: "Agent", cell: (row) => html`<span class="id">${row.agent}</span>` },
  { head: "Asked", cell: (row) => html`<${Ago} at=${row.at_ms} />` },
  { head: "Declined", cell: (row) => row.declined },
];

function Handoff({ id }) {
  const found = useResource((signal) => get(`/v1/handoffs/${segment(id)}`, { signal }), EVENTS, [id]);
  const row = found.value;
  const actions = row?.state === OPEN && html`<${Withdraw} row=${row} reload=${found.reload} />`;
  return html`<${Title} about=${html`<span class="id">${id}</span>`} actions=${actions}>Handoff<//>
    <${ProblemNote} problem=${found.problem} />
    ${row && html`<${Facts} of=${{ state: html`<${Badge} state=${row.state} />`, task: html`<${Task} row=${row} />`, from: row.owner, to: row.to, capability: row.capability, by: row.by, reason: row.reason, why: row.why, until: row.state === OPEN && html`<${Until} at=${row.until_ms} />` }} />
      ${row.asked.length > 0 && html`<h2 class="minor">Who was asked</h2><${Table} label="Who was asked" columns=${ASKED} rows=${row.asked} keyOf=${(one) => `${one.agent} ${one.at_ms}`} />`}
      <h2 class="minor">Context</h2><${Json} label="Context" value=${row.context} />`}`;
}
