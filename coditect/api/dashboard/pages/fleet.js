// Who lives, how busy each is, and what it works on.
import { html } from "../src/html.js";
import { get, post, rows, segment } from "../src/api.js";
import { count, megabytes, moment, ms, span } from "../src/format.js";
import { ACTIONS, Ask, Badge, Empty, Meter, Shown, Table, Tile, Title } from "../src/parts.js";
import { useResource } from "../src/resource.js";

const WANTED = { kind: ["agent", "task.started", "workflow"] };

// What each agent runs, as it says itself; null of one that did not say in time.
const workOf = (overview) => new Map((overview?.agents ?? []).map((one) => [one.agent_id, one.tasks]));

function Doing({ tasks }) {
  if (!tasks?.length) return html`<span class="none">${tasks === null ? "did not say" : "–"}</span>`;
  const [first] = tasks;
  const address = first.workflow ? `#/workflows/${first.workflow}` : `#/tasks/${first.task_id}`;
  return html`<a href=${address}>${first.capability}</a>${first.workflow && html` <small>of a workflow</small>`}
    ${tasks.length > 1 && html`<br /><small>and ${tasks.length - 1} more</small>`}`;
}

const drain = (agent) => () => post(`/v1/agents/${segment(agent)}/drain`);

function columns(work, reload) {
  return [
    { head: "Agent", cell: (one) => html`<strong>${one.name}</strong><br /><small class="id" title=${one.agent_id}>${one.agent_id}</small>` },
    { head: "State", cell: (one) => html`<${Badge} state=${one.status} note=${one.load.trouble} />${one.load.trouble && html`<br /><small>${one.load.trouble}</small>`}` },
    { head: "Slots in use", cell: (one) => html`<${Meter} value=${one.load.running} most=${one.slots} label=${`Slots of ${one.agent_id} in use`} />` },
    { head: "Works on", cell: (one) => html`<${Doing} tasks=${work.get(one.agent_id)} />` },
    { head: "Capabilities", cell: (one) => html`<span class="chips">${one.capabilities.map((spec) => html`<a key=${spec.name} class="chip" href=${`#/tasks?capability=${encodeURIComponent(spec.name)}`} title=${spec.description}>${spec.name}</a>`)}</span>` },
    { head: "Done", kind: "number", cell: (one) => html`${one.load.completed.toLocaleString("en")}${one.load.failed > 0 && html`<br /><small>${one.load.failed.toLocaleString("en")} failed</small>`}` },
    { head: "CPU", kind: "number", cell: (one) => html`${one.load.cpu_percent.toFixed(0)} %<br /><small>${megabytes(one.load.resident_bytes)}</small>` },
    { head: "Up", kind: "number", cell: (one) => html`<span title=${moment(one.started_at)}>${span(Date.now() - ms(one.started_at))}</span>` },
    { head: ACTIONS, cell: (one) => html`<${Ask} label="Drain" title=${`Drain ${one.agent_id}?`} act=${drain(one.agent_id)} onDone=${reload}>
        <p>It takes nothing new, finishes what it runs, and ends.</p><//>` },
  ];
}

export default function Fleet() {
  const agents = useResource((signal) => rows("/v1/agents", { signal }), WANTED);
  const overview = useResource((signal) => get("/v1/overview", { signal }), WANTED);
  return html`<${Title} about="The agents that live now, with their load and their work.">Fleet<//>
    <${Shown} resource=${agents} empty=${html`<${Empty} command="coditect agent run agents/reviewer.py">No agent lives. Start one:<//>`}>
      ${(found) => html`<${Tiles} agents=${found} /><${Table} label="Agents" columns=${columns(workOf(overview.value), agents.reload)} rows=${found} keyOf=${(one) => one.agent_id} />`}<//>`;
}

function Tiles({ agents }) {
  const sum = (of) => agents.reduce((total, one) => total + of(one), 0);
  const slots = sum((one) => one.slots);
  const running = sum((one) => one.load.running);
  const offered = new Set(agents.flatMap((one) => one.capabilities.map((spec) => spec.name)));
  const troubled = agents.filter((one) => one.load.trouble).length;
  return html`<div class="tiles">
    <${Tile} label="Agents" note=${troubled ? `${troubled} in trouble` : "all well"}>${agents.length}<//>
    <${Tile} label="Slots in use" note=${slots ? `${Math.round((100 * running) / slots)} % of the fleet` : ""}>${running} <small>of ${slots}</small><//>
    <${Tile} label="Capabilities" note=${count(new Set(agents.map((one) => one.host)).size, "host")}>${offered.size}<//>
    <${Tile} label="Done since they began" note=${`${sum((one) => one.load.failed).toLocaleString("en")} failed`}>${sum((one) => one.load.completed).toLocaleString("en")}<//>
  </div>`;
}
