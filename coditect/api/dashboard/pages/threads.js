// What agents and people say to each other: every thread, and of one its messages; a person may speak and close it.
import { html, useState } from "../src/html.js";
import { get, post, query, rows, segment } from "../src/api.js";
import { stringify } from "../src/json.js";
import { ACTIONS, Ago, Ask, Badge, Empty, Facts, Field, ProblemNote, Shown, Table, Title } from "../src/parts.js";
import { useResource } from "../src/resource.js";

const EVENTS = { kind: ["agent.message", "agent.collab"] };
const MOST = 500;

export default function Threads({ rest }) {
  return rest[0] ? html`<${Thread} id=${rest[0]} />` : html`<${List} />`;
}

const stateOf = (row) => (row.closed_ms ? "closed" : "active");
const text = (value) => (typeof value === "string" ? value : stringify(value));

function List() {
  const [wanted, setWanted] = useState({ participant: "", open: false });
  const path = `/v1/threads${query({ participant: wanted.participant, open: wanted.open || undefined, limit: MOST })}`;
  const found = useResource((signal) => rows(path, { signal }), EVENTS, [path]);
  const columns = [
    { head: "Thread", cell: (row) => html`<a href=${`#/threads/${segment(row.thread)}`}>${row.title || row.type}</a><br /><small class="id">${row.thread}</small>` },
    { head: "State", cell: (row) => html`<${Badge} state=${stateOf(row)} />` },
    { head: "Type", cell: (row) => row.type },
    { head: "Participants", cell: (row) => row.participants.join(", ") },
    { head: "Workflow", cell: (row) => row.workflow && html`<a class="id" href=${`#/workflows/${row.workflow}`}>${row.workflow}</a>` },
    { head: "Messages", kind: "number", cell: (row) => row.last },
    { head: "Last", cell: (row) => html`<${Ago} at=${row.last_ms} />` },
  ];
  const filtered = wanted.participant || wanted.open;
  return html`<${Title} about="Conversations of agents, clients and people; they are kept for a time after the last message.">Threads<//>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Participant">${(id) => html`<input id=${id} value=${wanted.participant} onChange=${(event) => setWanted({ ...wanted, participant: event.target.value })} />`}<//>
      <${Field} label="Only open">${(id) => html`<input id=${id} type="checkbox" checked=${wanted.open} onChange=${(event) => setWanted({ ...wanted, open: event.target.checked })} />`}<//></form>
    <${Shown} resource=${found} empty=${html`<${Empty} command="coditect thread list">${filtered ? "No thread fits these filters." : "Nobody has opened a thread. Handlers do with context.open_thread(...)."} To ask again:<//>`}>
      ${(list) => html`<${Table} label="Threads" columns=${columns} rows=${list} keyOf=${(row) => row.thread} />`}<//>`;
}

const columnsOf = (path, said) => [
  { head: "No", kind: "number", cell: (row) => row.number },
  { head: "Who", cell: (row) => html`<strong>${row.sender}</strong>${row.to.length > 0 && html`<br /><small>to ${row.to.join(", ")}</small>`}` },
  { head: "Type", cell: (row) => row.type },
  { head: "Message", cell: (row) => text(row.value) },
  { head: "When", cell: (row) => html`<${Ago} at=${row.at_ms} />` },
  { head: ACTIONS, cell: (row) => said && row.type === "question" && html`<${Say} ...${{ path, said, label: "Answer …", answers: row.number }} />` },
];

function Say({ path, said, label, answers }) {
  const say = ({ by, value }) => post(`${path}/messages`, { value, by, ...(answers ? { answers } : {}) });
  return html`<${Ask} label=${label} kind="main" confirm="Say" title=${answers ? `Answer message ${answers}` : "Say something"} act=${say} onDone=${said}>
    <${Field} label="Your name" note="One of the participants. With an API key, leave it empty, unless the key has the role admin.">${(id) => html`<input id=${id} name="by" />`}<//>
    <${Field} label="Message">${(id) => html`<textarea id=${id} name="value" rows="3" required></textarea>`}<//><//>`;
}

function Thread({ id }) {
  const path = `/v1/threads/${segment(id)}`;
  const found = useResource((signal) => get(`${path}${query({ limit: MOST })}`, { signal }), EVENTS, [id]);
  const { thread, messages } = found.value ?? {};
  const open = thread && !thread.closed_ms;
  const close = ({ reason }) => post(`${path}/close`, reason ? { reason } : {});
  const actions = open && html`<${Say} ...${{ path, said: found.reload, label: "Say …" }} />
    <${Ask} label="Close …" kind="bad" confirm="Close" title="Close this thread?" act=${close} onDone=${found.reload}>
      <p>It takes no more messages.</p><${Field} label="Reason">${(field) => html`<input id=${field} name="reason" />`}<//><//>`;
  const read = (one) => `${one} (read ${thread.read[one] ?? 0} of ${thread.last})`;
  return html`<${Title} about=${html`<span class="id">${id}</span>`} actions=${actions}>${thread?.title || "Thread"}<//>
    <${ProblemNote} problem=${found.problem} />
    ${thread && html`<${Facts} of=${{ state: html`<${Badge} state=${stateOf(thread)} />`, type: thread.type, participants: thread.participants.map(read).join(", "), task: thread.task, workflow: thread.workflow && html`<a href=${`#/workflows/${thread.workflow}`}>${thread.workflow}</a>`, reason: thread.reason }} />
      ${messages.length === 0 && html`<p class="about">Nothing was said yet.</p>`}
      ${messages.length > 0 && html`<${Table} label="Messages" columns=${columnsOf(path, open && found.reload)} rows=${messages} keyOf=${(row) => row.number} />`}`}`;
}
