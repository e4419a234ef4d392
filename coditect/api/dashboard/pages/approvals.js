// The questions that workflows wait for, their answers, what was decided lately, and how much needed no person.
import { html } from "../src/html.js";
import { get, items, rows } from "../src/api.js";
import { Ago, Empty, ProblemNote, Shown, Table, Tile, Title, Until } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { About, Answer } from "../workflow/node.js";

const EVENTS = { kind: ["node.awaiting_approval", "node.completed", "node.rejected", "workflow"] };
const MOST_DECISIONS = 100;

const DECISIONS = [
  { head: "When", cell: (row) => html`<${Ago} at=${row.at_ms} />` },
  { head: "Decision", cell: (row) => html`<strong>${row.decision}</strong>` },
  { head: "By", cell: (row) => html`${row.by}${row.automatic && row.by && html`<br /><small>automatic</small>`}` },
  { head: "Node", cell: (row) => html`<a href=${`#/workflows/${row.workflow}?node=${encodeURIComponent(row.node)}`}>${row.node || "the workflow"}</a><br /><small class="id">${row.workflow}</small>` },
  { head: "Risk", cell: (row) => row.risk ? html`${row.risk}<br /><small>${row.rule}</small>` : "" },
  { head: "Why", cell: (row) => html`${row.why}${(row.facts.arithmetic ?? []).map((line) => html`<br /><small>${line}</small>`)}` },
];

// The share of what finished with no action of a person, and the latest entries of the audit trail.
function Decided() {
  const trail = useResource((signal) => get(`/v1/audit?limit=${MOST_DECISIONS}`, { signal }).then(items), EVENTS);
  const report = useResource((signal) => get("/v1/autonomy?hours=24", { signal }), EVENTS);
  const { finished, completed, by_hand } = report.value?.workflows ?? {};
  return html`<h2 class="apart">Decisions</h2><${ProblemNote} problem=${report.problem} />
    ${finished > 0 && html`<div class="tiles"><${Tile} label="Autonomy in a day" note=${`${by_hand} of ${finished} workflows by hand`}>${(100 * (1 - by_hand / finished)).toFixed(1)} %<//>
      <${Tile} label="Completed" note="with a value">${completed} <small>of ${finished}</small><//></div>`}
    <${Shown} resource=${trail} empty=${html`<p class="about">Nothing was decided yet.</p>`}>
      ${(list) => html`<${Table} label="Decisions" columns=${DECISIONS} rows=${list} keyOf=${(row) => `${row.at_ms} ${row.workflow} ${row.node} ${row.decision}`} />`}<//>`;
}

export default function Approvals() {
  const found = useResource((signal) => rows("/v1/approvals", { signal }), EVENTS);
  const columns = [
    { head: "Question", cell: (row) => html`<strong>${row.question || row.node}</strong><${About} about=${row.about} />` },
    { head: "Workflow", cell: (row) => html`<a href=${`#/workflows/${row.workflow}?node=${encodeURIComponent(row.node)}`}>${row.name || row.workflow}</a><br /><small class="id">${row.workflow}</small>` },
    { head: "Node", cell: (row) => row.node },
    { head: "Risk", cell: (row) => row.risk ? html`${row.risk}<br /><small>${row.rule}</small>` : "" },
    { head: "Waits since", cell: (row) => html`<${Ago} at=${row.since_ms} />` },
    { head: "Else", cell: (row) => row.due_ms ? html`${row.on_timeout} <${Until} at=${row.due_ms} />` : "" },
    { head: "Answer", cell: (row) => html`<${Answer} workflow=${row.workflow} node=${row.node} onDone=${found.reload} />` },
  ];
  return html`<${Title} about="What workflows ask a person. Only the first answer to a question counts.">Approvals<//>
    <${Shown} resource=${found} empty=${html`<${Empty} command="coditect workflow start examples/release.yaml">No workflow waits for an answer. One that asks:<//>`}>
      ${(list) => html`<${Table} label="Approvals" columns=${columns} rows=${list} keyOf=${(row) => `${row.workflow}:${row.node}`} />`}<//>
    <${Decided} />`;
}
