// Who holds and who waits for which lock, as a table and as the graph of waits; a cycle in it is a deadlock.
import { html, useMemo } from "../src/html.js";
import { post, rows } from "../src/api.js";
import { ACTIONS, Ago, Ask, Badge, Empty, Field, Shown, Table, Title, Until } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { edgePath, layout, SIZE } from "../workflow/layout.js";

const who = (row) => (row.task ? `${row.agent} ${row.task}` : row.agent);
const MOST_LETTERS = 21;
const cut = (text) => (text.length > MOST_LETTERS ? `${text.slice(0, MOST_LETTERS - 1)}…` : text);

// Pure: who waits, then the resource, then who holds it, as nodes of a graph from left to right.
export function waits(list) {
  const contended = new Set(list.filter((row) => row.state === "waiting").map((row) => row.resource));
  const nodes = new Map();
  const node = (name, label, line) => nodes.get(name) ?? nodes.set(name, { name, label, line, after: [] }).get(name);
  for (const row of list.filter((one) => contended.has(one.resource))) {
    const resource = node(`resource ${row.resource}`, row.resource, "lock");
    const person = node(`owner ${who(row)}`, row.task || row.agent, row.task ? row.agent : "client");
    if (row.state === "waiting") resource.after.push(person.name);
    else person.after.push(resource.name);
  }
  return [...nodes.values()];
}

function WaitGraph({ list }) {
  const nodes = useMemo(() => waits(list), [list]);
  if (!nodes.length) return null;
  const drawn = layout(nodes);
  const told = list.filter((row) => row.state === "waiting").map((row) => `${who(row)} waits for ${row.resource}`).join("; ");
  return html`<h2 class="apart">Who waits for whom</h2><div class="graph small" tabindex="0" role="img" aria-label=${told}><svg width=${drawn.width} height=${drawn.height}>
    ${drawn.edges.map((edge) => html`<path class="edges" d=${edgePath(drawn.places.get(edge.from), drawn.places.get(edge.to))} />`)}
    ${nodes.map((node) => {
      const { x, y } = drawn.places.get(node.name);
      return html`<g class=${`node ${node.line === "lock" ? "note" : "calm"}`} transform=${`translate(${x} ${y})`}><rect width=${SIZE.width} height=${SIZE.height} rx=${node.line === "lock" ? 22 : 8} />
        <text class="name" x="16" y="19">${cut(node.label)}</text><text class="line" x="16" y="34">${cut(node.line)}</text></g>`;
    })}</svg></div>`;
}

function Release({ resource, reload }) {
  return html`<${Ask} label="Release …" kind="bad" confirm="Release by force" title=${`Release ${resource} by force?`} onDone=${reload}
      act=${({ reason }) => post("/v1/locks/release", { resource, ...(reason ? { reason } : {}) })}>
    <p>Its holders are told. Only a resource that checks the fence refuses what a former holder still writes.</p>
    <${Field} label="Reason">${(id) => html`<input id=${id} name="reason" />`}<//><//>`;
}

export default function Locks() {
  const found = useResource((signal) => rows("/v1/locks", { signal }), { kind: ["lock", "task"] });
  const columns = [
    { head: "Resource", cell: (row) => html`<strong>${row.resource}</strong>` },
    { head: "State", cell: (row) => html`<${Badge} state=${row.state} />` },
    { head: "Mode", cell: (row) => row.mode },
    { head: "Fence", kind: "number", cell: (row) => row.fence || "" },
    { head: "Who", cell: (row) => html`${row.agent}${row.task && html`<br /><small class="id">${row.task}</small>`}` },
    { head: "Reason", cell: (row) => row.reason },
    { head: "Since", cell: (row) => html`<${Ago} at=${row.begun_ms} />` },
    { head: "Expires", cell: (row) => html`<${Until} at=${row.expires_ms} />` },
    { head: ACTIONS, cell: (row) => row.state === "held" && html`<${Release} resource=${row.resource} reload=${found.reload} />` },
  ];
  return html`<${Title} about="Who holds what, and who waits, in the order in which locks are granted.">Locks<//>
    <${Shown} resource=${found} empty=${html`<${Empty} command="coditect lock list">Nothing is locked. Handlers lock with context.lock(...); to ask again:<//>`}>
      ${(list) => html`<${Table} label="Locks" columns=${columns} rows=${list} keyOf=${(row) => row.ticket ?? `${row.resource} ${who(row)}`} /><${WaitGraph} list=${list} />`}<//>`;
}
