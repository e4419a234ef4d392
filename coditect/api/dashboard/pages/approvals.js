// The questions that workflows wait for, and their answers.
import { html } from "../src/html.js";
import { rows } from "../src/api.js";
import { Ago, Empty, Shown, Table, Title, Until } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { Answer } from "../workflow/node.js";

export default function Approvals() {
  const found = useResource((signal) => rows("/v1/approvals", { signal }), { kind: ["node.awaiting_approval", "node.completed", "node.rejected", "workflow"] });
  const columns = [
    { head: "Question", cell: (row) => html`<strong>${row.question || row.node}</strong>` },
    { head: "Workflow", cell: (row) => html`<a href=${`#/workflows/${row.workflow}?node=${encodeURIComponent(row.node)}`}>${row.name || row.workflow}</a><br /><small class="id">${row.workflow}</small>` },
    { head: "Node", cell: (row) => row.node },
    { head: "Risk", cell: (row) => row.risk ? html`${row.risk}<br /><small>${row.rule}</small>` : "" },
    { head: "Waits since", cell: (row) => html`<${Ago} at=${row.since_ms} />` },
    { head: "Else", cell: (row) => row.due_ms ? html`${row.on_timeout} <${Until} at=${row.due_ms} />` : "" },
    { head: "Answer", cell: (row) => html`<${Answer} workflow=${row.workflow} node=${row.node} onDone=${found.reload} />` },
  ];
  return html`<${Title} about="What workflows ask a person. Only the first answer to a question counts.">Approvals<//>
    <${Shown} resource=${found} empty=${html`<${Empty} command="coditect workflow run examples/release.yaml">No workflow waits for an answer. One that asks:<//>`}>
      ${(list) => html`<${Table} label="Approvals" columns=${columns} rows=${list} keyOf=${(row) => `${row.workflow}:${row.node}`} />`}<//>`;
}
