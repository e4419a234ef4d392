// One workflow: its graph, nodes, timeline and history, kept up to date, and everything an operator does with it.
import { html, useCallback, useMemo, useRef, useState } from "../src/html.js";
import { get, rows, segment } from "../src/api.js";
import { moment, ms, span } from "../src/format.js";
import { Counts } from "../src/lists.js";
import { Ago, Badge, Facts, ProblemNote, Table, Tabs, Title } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { Actions, Checkpoints } from "./actions.js";
import { Graph } from "./graph.js";
import { elementsOf, grouped } from "./groups.js";
import { NodePanel } from "./node.js";
import { byNode, Timeline } from "./timeline.js";

const TABS = [["graph", "Graph"], ["nodes", "Nodes"], ["timeline", "Timeline"], ["history", "History"], ["checkpoints", "Checkpoints"]];

// The workflow with its rows, read again at its events; what these tell is shown before the next answer comes.
function useWorkflow(id, load) {
  const newer = useRef(new Map());
  const [, again] = useState(0);
  const hear = ({ type, data }) => {
    if (!data?.node) return;
    newer.current.set(data.node, { state: data.state ?? type.split(".")[1], attempt: data.attempt, agent: data.agent });
    again((number) => number + 1);
  };
  const read = async (signal) => {
    const before = new Map(newer.current);
    const value = await load(signal);
    for (const [name, event] of before) if (newer.current.get(name) === event) newer.current.delete(name);
    return value;
  };
  const found = useResource(read, { workflow: id }, [id], hear);
  return [found, newer.current];
}

const patched = (nodes, newer) =>
  newer.size === 0 ? nodes : nodes.map((node) => {
    const event = newer.get(node.name);
    return event ? { ...node, state: event.state, attempt: event.attempt ?? node.attempt, agent: event.agent ?? node.agent } : node;
  });

export default function Workflow({ id, search }) {
  const path = `/v1/workflows/${segment(id)}`;
  const load = async (signal) => {
    const [row, nodes, attempts] = await Promise.all([
      get(path, { signal }), rows(`${path}/nodes?limit=1000`, { signal }), rows(`${path}/attempts?limit=1000`, { signal }),
    ]);
    return { row, nodes, attempts };
  };
  const [found, newer] = useWorkflow(id, load);
  if (found.value === undefined) {
    return html`<${Title}>Workflow<//>${found.problem ? html`<${ProblemNote} problem=${found.problem} />` : html`<p class="wait" role="status">Loading …</p>`}`;
  }
  return html`<${Loaded} ...${{ id, path, search, found }} nodes=${patched(found.value.nodes, newer)} />`;
}

function Loaded({ id, path, search, found, nodes }) {
  const { row, attempts } = found.value;
  const [tab, setTab] = useState("graph");
  const [chosen, setChosen] = useState(search.get("node") ?? "");
  const tried = useMemo(() => byNode(attempts), [attempts]);
  const node = useMemo(() => chosenOf(nodes, chosen), [nodes, chosen]);
  const [open, setOpen] = useState(new Set());
  const toggle = (name) => setOpen((before) => new Set(before.has(name) ? [...before].filter((one) => one !== name) : [...before, name]));
  const choose = useCallback((name) => {
    setChosen(name);
    requestAnimationFrame(() => document.querySelector(".panel h2")?.focus({ preventScroll: true }));
  }, []);
  return html`<${Title} about=${html`<span class="id">${id}</span>`} actions=${html`<${Actions} ...${{ path, row, reload: found.reload }} />`}>
      ${row.name} <${Badge} state=${row.state} note=${row.reason} /><//>
    <${ProblemNote} problem=${found.problem} />
    <${Facts} of=${factsOf(row)} />
    <${Waiting} nodes=${nodes} choose=${choose} />
    <${Tabs} label="Views of the workflow" tabs=${TABS} chosen=${tab} choose=${setTab} />
    <div class=${node ? "beside open" : "beside"}><div role="tabpanel" id="tab-panel" aria-labelledby=${`tab-${tab}`} class="view">
      ${tab === "graph" && html`<${Graph} rows=${nodes} open=${open} chosen=${node?.name} choose=${choose} />`}
      ${tab === "nodes" && html`<${Table} label="Nodes" columns=${columns(choose)} rows=${nodes.slice(0, 2_000)} keyOf=${(one) => one.name} />`}
      ${tab === "timeline" && html`<${Timeline} ...${{ nodes, attempts, choose }} />`}
      ${tab === "history" && html`<${History} path=${path} state=${row.state} />`}
      ${tab === "checkpoints" && html`<${Checkpoints} ...${{ path, row, reload: found.reload }} />`}</div>
      ${node && html`<${NodePanel} workflow=${id} node=${node} attempts=${tried.get(node.name) ?? []} close=${() => setChosen("")} choose=${choose} reload=${found.reload} open=${open.has(node.name)} toggle=${toggle} />`}</div>`;
}

function chosenOf(nodes, name) {
  if (!name) return null;
  const row = nodes.find((one) => one.name === name);
  if (row) return { ...row, label: row.name, members: elementsOf(nodes, name) };
  return grouped(nodes).find((one) => one.name === name) ?? null;
}

const MOST_QUESTIONS = 5;

// The questions for which the workflow waits.
function Waiting({ nodes, choose }) {
  const asking = nodes.filter((node) => node.state === "awaiting_approval");
  if (asking.length === 0) return null;
  return html`<ul class="waiting" aria-label="Questions">${asking.slice(0, MOST_QUESTIONS).map((node) => html`<li key=${node.name}>
    <strong>${node.question || "May it run?"}</strong> <button type="button" class="link" onClick=${() => choose(node.name)}>${node.name}: see and answer</button></li>`)}
    ${asking.length > MOST_QUESTIONS && html`<li><a href="#/approvals">All ${asking.length} questions</a></li>`}</ul>`;
}

const factsOf = (row) => ({
  nodes: html`<${Counts} row=${row} />`,
  began: row.accepted_at_ms && html`<${Ago} at=${row.accepted_at_ms} />`,
  took: row.finished_at_ms ? span(ms(row.finished_at_ms) - ms(row.accepted_at_ms)) : "",
  reason: row.reason, key: row.key, shard: row.shard,
  parent: row.parent && html`<a href=${`#/workflows/${row.parent}?node=${encodeURIComponent(row.parent_node)}`}>${row.parent}</a>`,
  labels: Object.entries(row.labels ?? {}).map(([name, value]) => `${name}=${value}`).join(", "),
});

const columns = (choose) => [
  { head: "Node", cell: (row) => html`<button type="button" class="link" onClick=${() => choose(row.name)}>${row.name}</button>` },
  { head: "State", cell: (row) => html`<${Badge} state=${row.state} />` },
  { head: "Work", cell: (row) => row.capability || row.question || row.kind },
  { head: "After", cell: (row) => row.after.join(", ") },
  { head: "Agent", cell: (row) => html`<small class="id">${row.agent}</small>` },
  { head: "Attempt", kind: "number", cell: (row) => row.attempt || "" },
  { head: "Took", kind: "number", cell: (row) => row.started_at_ms && row.finished_at_ms && span(row.finished_at_ms - row.started_at_ms) },
  { head: "Reason", cell: (row) => row.message || row.reason },
];

function History({ path, state }) {
  const found = useResource((signal) => rows(`${path}/history`, { signal }), null, [path, state]);
  if (!found.value) return html`<${ProblemNote} problem=${found.problem} />`;
  return html`<ol class="history">${found.value.map((event) => html`<li><time datetime=${moment(event.at_ms)}>${moment(event.at_ms).slice(11, 23)}</time>
    <strong>${event.event}</strong> ${event.node} ${event.attempt ? `attempt ${event.attempt}` : ""} <small class="id">${event.agent}</small> ${event.reason} ${event.message}</li>`)}</ol>`;
}
