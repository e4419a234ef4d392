// The queues by capability and level: what waits, how long, how fast it moves, and who takes it.
import { html, useRef } from "../src/html.js";
import { rows } from "../src/api.js";
import { span } from "../src/format.js";
import { Badge, Empty, Shown, Table, Tile, Title } from "../src/parts.js";
import { POLLED, useResource } from "../src/resource.js";

const MOST_SAMPLES = 60;

// The depth of each queue over the last answers, for its trend.
function useTrends(list) {
  const trends = useRef(new Map());
  const seen = useRef(null);
  if (list && seen.current !== list) {
    seen.current = list;
    for (const row of list) {
      const key = name(row);
      trends.current.set(key, [...(trends.current.get(key) ?? []), row.messages].slice(-MOST_SAMPLES));
    }
  }
  return trends.current;
}

const levels = (list) => list.flatMap(({ capability, levels: of, dead }) => of.map((one) => ({ capability, dead, ...one })));
const name = (row) => `${row.capability} ${row.priority}`;
const rate = (number) => (number === null || number === undefined ? html`<span class="none">–</span>` : `${number.toFixed(number < 10 ? 1 : 0)}/s`);

function Trend({ samples, label }) {
  const most = Math.max(1, ...samples);
  const points = samples.map((sample, at) => `${(at / (MOST_SAMPLES - 1)) * 120},${23 - (sample / most) * 20}`).join(" ");
  return html`<svg class="trend" width="120" height="24" role="img" aria-label=${`${label}: between ${Math.min(...samples)} and ${Math.max(...samples)} waited lately`}><polyline points=${points} /></svg>`;
}

const state = (row) => (row.consumers === 0 && row.messages > 0 ? html`<${Badge} state="lost" note="Tasks wait and no agent consumes them" /> no consumer` : row.consumers);

export default function Queues() {
  const found = useResource(async (signal) => levels(await rows("/v1/queues", { signal })), POLLED);
  const trends = useTrends(found.value);
  const columns = [
    { head: "Capability", cell: (row) => html`<a href=${`#/tasks?capability=${encodeURIComponent(row.capability)}`}><strong>${row.capability}</strong></a>` },
    { head: "Level", cell: (row) => row.priority },
    { head: "Wait", kind: "number", cell: (row) => row.messages.toLocaleString("en") },
    { head: "Trend", cell: (row) => html`<${Trend} samples=${trends.get(name(row)) ?? [0]} label=${name(row)} />` },
    { head: "Oldest", kind: "number", cell: (row) => (row.oldest_ms ? span(Date.now() - row.oldest_ms) : "") },
    { head: "In", kind: "number", cell: (row) => rate(row.published_per_second) },
    { head: "Out", kind: "number", cell: (row) => rate(row.delivered_per_second) },
    { head: "Consumers", kind: "number", cell: state },
  ];
  return html`<${Title} about="One queue for each capability and level; p0 is served first.">Queues<//>
    <${Shown} resource=${found} empty=${html`<${Empty} command="coditect agent run agents/reviewer.py">No capability has a queue yet: an agent makes its queues when it begins.<//>`}>
      ${(list) => html`<div class="tiles"><${Tile} label="Tasks that wait">${list.reduce((sum, row) => sum + row.messages, 0).toLocaleString("en")}<//>
        <${Tile} label="Queues">${list.length}<//>
        <${Tile} label="Without a consumer" note="tasks wait there for an agent">${list.filter((row) => row.messages > 0 && row.consumers === 0).length}<//></div>
        <${Table} label="Queues" columns=${columns} rows=${list} keyOf=${name} />`}<//>`;
}
