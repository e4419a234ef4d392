// What an operator does with a workflow: pause, resume, cancel, signal, make checkpoints, restore.
import { html, useState } from "../src/html.js";
import { get, post, put, rows, segment } from "../src/api.js";
import { words } from "../src/format.js";
import { parse } from "../src/json.js";
import { ACTIONS, Act, Ago, Ask, Badge, Empty, Field, Shown, Table } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { workflowEnded } from "../src/states.js";

export function Actions({ path, row, reload }) {
  const to = (verb) => async () => (await post(`${path}/${verb}`), reload());
  const moving = !workflowEnded(row.state);
  return html`
    ${moving && row.state !== "paused" && html`<${Act} act=${to("pause")}>Pause<//>`}
    ${(row.state === "paused" || row.state === "failed") && html`<${Act} kind="main" act=${to("resume")}>${row.state === "failed" ? "Run failed nodes again" : "Resume"}<//>`}
    ${moving && html`<${Signal} path=${path} />`}
    ${moving && html`<${Ask} label="Cancel …" kind="bad" confirm="Cancel the workflow" title="Cancel this workflow?" onDone=${reload}
      act=${(form) => post(`${path}/cancel`, { reason: form.reason, compensate: form.compensate === "on" })}>
      <p>Its running tasks are asked to stop. It ends as canceled unless it completed before.</p>
      <${Field} label="Reason" note="Shown with the workflow.">${(id) => html`<input id=${id} name="reason" />`}<//>
      <label class="check"><input type="checkbox" name="compensate" checked /> Undo what has completed, where the workflow says how</label><//>`}`;
}

function Signal({ path }) {
  const [sent, setSent] = useState("");
  const act = async ({ name, value }) => {
    const answer = await post(`${path}/signals/${segment(name)}`, { value: value === "" ? null : parse(value) });
    return answer.node ? `${name} was taken by ${answer.node}.` : `${name} is kept until a node awaits it.`;
  };
  return html`<${Ask} label="Signal …" confirm="Send" title="Send a signal" act=${act} onDone=${setSent}>
      <${Field} label="Name" note="As the workflow awaits it.">${(id) => html`<input id=${id} name="name" required />`}<//>
      <${Field} label="Value" note="JSON; empty is null.">${(id) => html`<textarea id=${id} name="value" rows="4" spellcheck="false"></textarea>`}<//><//>
    ${sent && html`<span class="done" role="status">${sent}</span>`}`;
}

export function Checkpoints({ path, row, reload }) {
  const found = useResource((signal) => rows(`${path}/checkpoints`, { signal }), null, [path]);
  const columns = [
    { head: "Checkpoint", cell: (one) => html`<strong>${one.name}</strong>` },
    { head: "Of", cell: (one) => one.node ? "completed node" : `asked for by ${one.by}` },
    { head: "When", cell: (one) => html`<${Ago} at=${one.at_ms} />` },
    { head: ACTIONS, cell: (one) => html`<${Restore} path=${path} checkpoint=${one.name} reload=${reload} />` },
  ];
  return html`<div class="actions">${!workflowEnded(row.state) && html`<${Ask} label="Make a checkpoint …" confirm="Make it" title="Make a checkpoint" onDone=${found.reload}
      act=${({ name }) => put(`${path}/checkpoints/${segment(name)}`)}>
      <p>Gives the present position of the workflow a name, to which it can be restored.</p>
      <${Field} label="Name">${(id) => html`<input id=${id} name="name" required />`}<//><//>`}</div>
    <${Shown} resource=${found} empty=${html`<${Empty}>There is no checkpoint yet: each completed node makes one.<//>`}>
      ${(list) => html`<${Table} label="Checkpoints" columns=${columns} rows=${list} keyOf=${(one) => one.name} />`}<//>`;
}

// Shows first what the restore would discard; the plan's token makes sure that nothing else is discarded.
function Restore({ path, checkpoint, reload }) {
  const [plan, setPlan] = useState(null);
  const to = `${path}/checkpoints/${segment(checkpoint)}`;
  const preview = async () => setPlan(await get(`${to}/plan`));
  const restore = async () => (await post(`${to}/restore`, { token: plan.token }), setPlan(null), reload());
  if (!plan) return html`<${Act} act=${preview}>Restore …<//>`;
  const lost = plan.nodes;
  return html`<div>${lost.length ? html`<p>Discards:</p><ul class="members">${lost.slice(0, 20).map((one) => html`<li><${Badge} state=${one.state} /> ${one.node}
      ${one.compensated ? " is undone first" : " cannot be undone"}</li>`)}</ul>${lost.length > 20 && html`<p>and ${lost.length - 20} more</p>`}` : html`<p>Discards nothing that began.</p>`}
    <div class="actions"><button type="button" onClick=${() => setPlan(null)}>Back</button><${Act} kind="bad" act=${restore}>Restore to ${words(checkpoint)}<//></div></div>`;
}
