// The schedules that start workflows by the clock.
import { html } from "../src/html.js";
import { post, rows, segment } from "../src/api.js";
import { span } from "../src/format.js";
import { ACTIONS, Act, Badge, Empty, Shown, Table, Title, Until } from "../src/parts.js";
import { useResource } from "../src/resource.js";

const ticks = (row) => (row.every_ms ? `every ${span(row.every_ms)}` : `${row.cron} (${row.zone ?? "UTC"})`) + (row.jitter_ms ? `, jitter ${span(row.jitter_ms)}` : "");

const started = ({ workflow }) => (workflow ? html`<a href=${`#/workflows/${workflow}`}>Started</a>` : "Nothing was started; the schedule's state says why.");

function Steer({ row, reload }) {
  const to = (verb) => async () => {
    const told = await post(`/v1/schedules/${segment(row.schedule)}/${verb}`);
    reload();
    return told;
  };
  return html`<div class="actions">${row.state === "paused" ? html`<${Act} act=${to("resume")}>Resume<//>` : html`<${Act} act=${to("pause")}>Pause<//>`}
    <${Act} act=${to("run")} done=${started}>Run now<//></div>`;
}

export default function Schedules() {
  const found = useResource((signal) => rows("/v1/schedules", { signal }), { kind: ["schedule", "workflow.accepted"] });
  const columns = [
    { head: "Schedule", cell: (row) => html`<strong>${row.schedule}</strong><br /><small>starts ${row.workflow}</small>` },
    { head: "State", cell: (row) => html`<${Badge} state=${row.state} />${row.reason && html`<br /><small>${row.reason}</small>`}` },
    { head: "Ticks", cell: (row) => html`<code>${ticks(row)}</code><br /><small>overlap ${row.overlap}, catch-up ${row.catch_up}</small>` },
    { head: "Next", cell: (row) => html`<${Until} at=${row.next} />` },
    { head: "Last run", cell: (row) => row.last_run && html`<a href=${`#/workflows/${row.last_run}`}><${Until} at=${row.last} /></a>` },
    { head: "Runs", kind: "number", cell: (row) => row.runs },
    { head: "Skipped", kind: "number", cell: (row) => row.skipped },
    { head: ACTIONS, cell: (row) => html`<${Steer} row=${row} reload=${found.reload} />` },
  ];
  return html`<${Title} about="Workflows that are started by the clock.">Schedules<//>
    <${Shown} resource=${found} empty=${html`<${Empty} command='coditect schedule create nightly nightly.yaml --cron "30 2 * * *"'>There is no schedule. Make one:<//>`}>
      ${(list) => html`<${Table} label="Schedules" columns=${columns} rows=${list} keyOf=${(row) => row.schedule} />`}<//>`;
}
