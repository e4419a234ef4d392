// Submit a task by a form made from its capability's schema, and follow the tasks of this tab.
import { html, useState } from "../src/html.js";
import { get, post, rows, segment } from "../src/api.js";
import { span } from "../src/format.js";
import { stringify } from "../src/json.js";
import { Ask, Badge, Empty, Facts, Field, Json, ProblemNote, Shown, Table, Title } from "../src/parts.js";
import { useAction, useEvents, useResource } from "../src/resource.js";
import { ENDED } from "../src/states.js";
import { SchemaForm } from "../form/form.js";

const KEPT = "coditect.tasks";
const MOST_KEPT = 50;

const kept = () => JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
const keep = (task) => sessionStorage.setItem(KEPT, JSON.stringify([task, ...kept().filter((one) => one.id !== task.id)].slice(0, MOST_KEPT)));

export default function Tasks({ rest, search }) {
  return rest[0] ? html`<${Task} id=${rest[0]} />` : html`<${Submit} wanted=${search.get("capability") ?? ""} />`;
}

function Submit({ wanted }) {
  const offers = useResource(async (signal) => (await rows("/v1/capabilities", { signal })).map((one) => one.capability), { kind: "agent" });
  const [name, setName] = useState(wanted);
  const found = offers.value ?? [];
  const offer = found.find((one) => one.name === name) ?? found[0];
  return html`<${Title} about="Ask the fleet for one piece of work, and see what comes of it.">Tasks<//>
    <${Shown} resource=${offers} empty=${html`<${Empty} command="coditect agent run agents/reviewer.py">No living agent offers a capability. Start one:<//>`}>
      ${() => html`<div class="columns"><section class="card" aria-label="New task">
        <${Field} label="Capability">${(id) => html`<select id=${id} value=${offer.name} onChange=${(event) => setName(event.target.value)}>
          ${found.map((one) => html`<option key=${one.name} value=${one.name}>${one.name}</option>`)}</select>`}<//>
        ${offer.description && html`<p class="about">${offer.description}</p>`}
        <${Order} key=${offer.name} offer=${offer} /></section><${Recent} /></div>`}<//>`;
}

const OPTIONS = ["priority", "timeout", "deadline", "max_attempts"];

function Order({ offer }) {
  const [told, setTold] = useState({ value: undefined, mistakes: [] });
  const [tried, setTried] = useState(false);
  const action = useAction(async (form) => {
    const options = Object.fromEntries(OPTIONS.filter((name) => form[name]).map((name) => [name, form[name]]));
    if (options.max_attempts) options.max_attempts = Number(options.max_attempts);
    const task = await post("/v1/tasks", { capability: offer.name, input: told.value, durable: form.durable === "on", ...options });
    keep({ id: task.task_id, capability: offer.name, at: Date.now() });
    location.hash = `#/tasks/${task.task_id}`;
  });
  const submit = (event) => {
    event.preventDefault();
    setTried(true);
    if (told.mistakes.length === 0) action.run(Object.fromEntries(new FormData(event.target)));
  };
  const wrong = tried && told.mistakes.length ? { message: "The input is not complete", mistakes: told.mistakes } : null;
  return html`<form onSubmit=${submit} class="order" novalidate>
    <${SchemaForm} schema=${offer.input_schema} changed=${setTold} />
    <details><summary>Options</summary><div class="filters">
      <${Field} label="Priority">${(id) => html`<select id=${id} name="priority"><option value="">normal (p1)</option><option value="p0">p0, first</option><option value="p2">p2, last</option></select>`}<//>
      <${Field} label="Timeout">${(id) => html`<input id=${id} name="timeout" placeholder="30s" size="8" />`}<//>
      <${Field} label="Deadline">${(id) => html`<input id=${id} name="deadline" placeholder="5m" size="8" />`}<//>
      <${Field} label="Attempts">${(id) => html`<input id=${id} name="max_attempts" type="number" min="1" max="1000" />`}<//></div>
      <label class="check"><input type="checkbox" name="durable" /> Durable: the control plane keeps it and its result</label></details>
    <${ProblemNote} problem=${wrong ?? action.problem} />
    <div class="actions"><button type="submit" class="main" disabled=${action.busy}>Submit</button></div></form>`;
}

const RECENT = [
  { head: "Task", cell: (one) => html`<a href=${`#/tasks/${one.id}`} class="id">${one.id}</a>` },
  { head: "Capability", cell: (one) => one.capability },
];

function Recent() {
  const tasks = kept();
  if (!tasks.length) return html`<${Empty} command="coditect task submit hello.greet '{}'">No task was submitted from this tab. Fill in the form, or:<//>`;
  return html`<section><h2>Submitted from this tab</h2><${Table} label="Tasks of this tab" columns=${RECENT} rows=${tasks} keyOf=${(one) => one.id} /></section>`;
}

function Task({ id }) {
  const task = useResource((signal) => get(`/v1/tasks/${segment(id)}`, { signal }), { task: id }, [id]);
  const [events, setEvents] = useState([]);
  useEvents({ task: id }, (event) => setEvents((before) => [...before, event].slice(-100)));
  const found = task.value;
  const moving = found && !ENDED.includes(found.status);
  return html`<${Title} about=${html`<span class="id">${id}</span>`} actions=${html`<a href="#/tasks">New task</a>
      ${moving && html`<${Ask} label="Cancel …" kind="bad" confirm="Cancel the task" title="Cancel this task?" act=${() => post(`/v1/tasks/${segment(id)}/cancel`)} onDone=${task.reload}><p>A handler that runs is asked to stop.</p><//>`}`}>
      Task ${found && html`<${Badge} state=${found.status} />`}<//>
    <${ProblemNote} problem=${task.problem} />
    ${found && html`<${Ended} task=${found} />`}
    ${events.length > 0 && html`<h2 class="minor">Events</h2><ol class="history">${events.map((one) => html`<li key=${one.id}><time>${one.time?.slice(11, 23)}</time><strong>${one.type}</strong> <small>${stringify(one.data ?? {})}</small></li>`)}</ol>`}`;
}

function Ended({ task }) {
  const { failure } = task;
  const took = task.started_at_ms && task.finished_at_ms ? span(task.finished_at_ms - task.started_at_ms) : "";
  return html`<${Facts} of=${{ agent: task.agent, attempt: task.attempt, took }} />
    ${task.status === "completed" && html`<h2 class="minor">Result</h2><${Json} label="Result" value=${task.value_base64 ?? task.value} />`}
    ${failure && html`<${ProblemNote} problem=${{ message: `${failure.type}: ${failure.message}`, fix: failure.fix }} />
      ${failure.traceback && html`<${Json} label="Traceback" value=${failure.traceback} />`}`}`;
}
