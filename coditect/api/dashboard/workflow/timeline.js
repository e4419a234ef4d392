// The timeline of a workflow: for each node a bar of waiting, and one of work for each attempt.
import { html } from "../src/html.js";
import { span } from "../src/format.js";
import { useNow } from "../src/resource.js";
import { look } from "../src/states.js";

const MOST_LINES = 500;
const WIDTH = 1_000;
const LINE = 26;

export function byNode(attempts) {
  const found = new Map();
  for (const one of attempts) found.set(one.node, [...(found.get(one.node) ?? []), one]);
  return found;
}

// Pure: gives { lines: [{ name, state, bars: [{ from, to, kind }] }], begin, end }, the earliest node first.
export function timeline(nodes, attempts, now) {
  const tried = byNode(attempts);
  const lines = nodes
    .filter((node) => (node.ready_at_ms ?? node.started_at_ms ?? node.finished_at_ms ?? null) !== null)
    .map((node) => lineOf(node, tried.get(node.name) ?? [], now))
    .sort((one, other) => one.from - other.from || one.name.localeCompare(other.name));
  const begin = Math.min(...lines.map((line) => line.from));
  const end = Math.max(begin + 1, ...lines.map((line) => line.to));
  return { lines, begin, end };
}

function lineOf(node, attempts, now) {
  const ended = node.finished_at_ms ?? now;
  const bars = attempts
    .filter((one) => one.started_at_ms)
    .map((one) => ({ from: one.started_at_ms, to: one.finished_at_ms ?? (one.status === "working" ? now : one.started_at_ms), kind: one.status, who: one.agent }));
  const from = node.ready_at_ms ?? bars[0]?.from ?? ended;
  return { name: node.name, state: node.state, from, to: ended, bars: [{ from, to: bars[0]?.from ?? ended, kind: "wait", who: "" }, ...bars] };
}

export function Timeline({ nodes, attempts, choose }) {
  const now = useNow();
  const { lines, begin, end } = timeline(nodes, attempts, now);
  if (!lines.length) return html`<p class="empty">No node has begun.</p>`;
  const x = (at) => ((at - begin) / (end - begin)) * WIDTH;
  const shown = lines.slice(0, MOST_LINES);
  return html`<div class="scroll timeline" tabindex="0" role="region" aria-label="Timeline">
    <p class="about">${span(end - begin)} from the first node that was ready${shown.length < lines.length && `; the first ${MOST_LINES} of ${lines.length} nodes`}</p>
    <ol>${shown.map((line) => html`<li key=${line.name}><button type="button" class="link" onClick=${() => choose(line.name)}>${line.name}</button>
      <svg viewBox=${`0 0 ${WIDTH} ${LINE}`} preserveAspectRatio="none" role="img" aria-label=${`waited ${span(line.bars[0].to - line.bars[0].from)}, ${line.bars.slice(1).map((bar) => `${bar.kind} in ${span(bar.to - bar.from)} by ${bar.who}`).join(", ") || "did not run"}`}>
        ${line.bars.map((bar) => html`<rect class=${bar.kind === "wait" ? "wait" : look(bar.kind).tone} x=${x(bar.from)} y=${bar.kind === "wait" ? 11 : 5} width=${Math.max(2, x(bar.to) - x(bar.from))} height=${bar.kind === "wait" ? 4 : 16} rx="2"><title>${`${bar.kind}: ${span(bar.to - bar.from)} ${bar.who}`}</title></rect>`)}
      </svg><span class="figure">${span(line.to - line.from)}</span></li>`)}</ol></div>`;
}
