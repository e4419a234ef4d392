// The list of workflows with filters; with an id in the address, one workflow.
import { html, useState } from "../src/html.js";
import { get, items, query } from "../src/api.js";
import { ms, short, span } from "../src/format.js";
import { Counts, Pages } from "../src/lists.js";
import { Ago, Badge, Empty, Field, Shown, Table, Title } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { WORKFLOW_STATES, workflowEnded } from "../src/states.js";
import Workflow from "../workflow/view.js";

export default function Workflows({ rest, search }) {
  return rest[0] ? html`<${Workflow} id=${rest[0]} search=${search} />` : html`<${List} search=${search} />`;
}

const COLUMNS = [
  { head: "Workflow", cell: (row) => html`<a href=${`#/workflows/${row.workflow}`}><strong>${row.name || short(row.workflow)}</strong></a><br /><small class="id" title=${row.workflow}>${row.workflow}</small>` },
  { head: "State", cell: (row) => html`<${Badge} state=${row.state} note=${row.reason} />${row.reason && html`<br /><small>${row.reason}</small>`}` },
  { head: "Nodes", cell: (row) => html`<${Counts} row=${row} />` },
  { head: "Labels", cell: (row) => html`<span class="chips">${Object.entries(row.labels ?? {}).map(([name, value]) => html`<span class="chip">${name}=${value}</span>`)}</span>` },
  { head: "Began", cell: (row) => html`<${Ago} at=${row.accepted_at_ms} />` },
  { head: "Took", kind: "number", cell: (row) => row.finished_at_ms && span(ms(row.finished_at_ms) - ms(row.accepted_at_ms)) },
];

function List({ search }) {
  const [wanted, setWanted] = useState({ state: search.get("state") ?? "", name: search.get("name") ?? "", label: "", since: "" });
  const [page, setPage] = useState({ cursors: [""] });
  const change = (field) => (event) => (setWanted({ ...wanted, [field]: event.target.value }), setPage({ cursors: [""] }));
  const fields = { ...wanted, since: wanted.since && new Date(wanted.since).toISOString(), limit: 50, cursor: page.cursors.at(-1) };
  const found = useResource((signal) => get(`/v1/workflows${query(fields)}`, { signal }), { kind: "workflow" }, [query(fields)]);
  const list = { ...found, value: found.value && items(found.value) };
  const filtered = wanted.state || wanted.name || wanted.label || wanted.since;
  const empty = filtered
    ? html`<${Empty}>No workflow fits these filters.<//>`
    : html`<${Empty} command="coditect workflow start examples/layered.yaml">The control plane keeps no workflow. Start one:<//>`;
  return html`<${Title} about="Every workflow that the control plane keeps, the latest first.">Workflows<//>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="State">${(id) => html`<select id=${id} value=${wanted.state} onChange=${change("state")}>
        <option value="">any</option>${WORKFLOW_STATES.map((state) => html`<option value=${state}>${state.replaceAll("_", " ")}</option>`)}</select>`}<//>
      <${Field} label="Name">${(id) => html`<input id=${id} value=${wanted.name} onChange=${change("name")} placeholder="release" />`}<//>
      <${Field} label="Label">${(id) => html`<input id=${id} value=${wanted.label} onChange=${change("label")} placeholder="team=red" />`}<//>
      <${Field} label="Began since">${(id) => html`<input id=${id} type="datetime-local" value=${wanted.since} onChange=${change("since")} />`}<//>
    </form>
    <${Shown} resource=${list} empty=${empty}>
      ${(rows) => html`<${Table} label="Workflows" columns=${COLUMNS} rows=${rows} keyOf=${(row) => row.workflow} rowClass=${(row) => (workflowEnded(row.state) ? "ended" : "")} />`}<//>
    <${Pages} page=${page} setPage=${setPage} next=${found.value?.next} />`;
}
