// The drawn graph: native scrolling moves it, arrow keys walk along its edges, a click or Enter chooses a node.
import { html, useEffect, useMemo, useRef, useState } from "../src/html.js";
import { look } from "../src/states.js";
import { shortName, span, words } from "../src/format.js";
import { edgePath, layout, SIZE } from "./layout.js";
import { grouped } from "./groups.js";

const ZOOMS = [0.25, 0.4, 0.6, 0.8, 1, 1.25, 1.6, 2];
const SHARE = 0.64; // of the window's height, a little less than the style sheet's largest
const TEXT = { size: 12, least: 10, letter: 0.65, width: 138 }; // pixels, and a letter's width as a share of its size
const LEAST_FOR_TWO_LINES = 0.8;

// The size and the most letters of a name, which stays as large on the screen as people can read.
function nameAt(zoom) {
  const size = Math.max(TEXT.size, TEXT.least / zoom);
  return { size, letters: Math.floor(TEXT.width / (TEXT.letter * size)) };
}

const cut = (text, letters) => (text.length > letters ? `${text.slice(0, letters - 1)}…` : text);

// What stands in a node's second line: its question, or who works on it, since when, in which attempt.
export function told(node) {
  if (node.state === "awaiting_approval" && node.question) return node.question;
  if (node.counts) return Object.entries(node.counts).map(([state, number]) => `${number} ${words(state)}`).join(", ");
  const took = node.started_at_ms && node.finished_at_ms ? span(node.finished_at_ms - node.started_at_ms) : "";
  const attempt = node.attempt > 1 ? `attempt ${node.attempt}` : "";
  return [words(node.state), took, attempt, node.state === "working" ? node.agent : ""].filter(Boolean).join(" · ");
}

// Drawn again only when what it shows has changed: a graph of a thousand nodes changes in a few of them.
function Node({ node, place, name, chosen, entry, choose }) {
  const { tone, sign } = look(node.state);
  const line = told(node);
  const spoken = `${node.label}: ${node.state === "awaiting_approval" ? `${words(node.state)}, ${line}` : line}`;
  return useMemo(
    () => html`<g class=${`node ${tone} ${node.state}${chosen ? " chosen" : ""}${node.counts ? " group" : ""}`} transform=${`translate(${place.x} ${place.y})`}
      data-node=${node.name} role="button" tabindex=${entry ? 0 : -1} aria-label=${spoken} aria-pressed=${chosen ? "true" : "false"}
      onClick=${() => choose(node.name)}>
      <title>${spoken}</title><rect width=${SIZE.width} height=${SIZE.height} rx="8" />
      <text class="sign" x="16" y="27">${sign}</text><text class="name" x="32" y=${name.size > TEXT.size ? 22 + name.size / 3 : 19} style=${`font-size:${name.size}px`}>${shortName(node.label, name.letters)}</text>
      <text class="line" x="32" y="34">${cut(line, 21)}</text></g>`,
    [node.state, line, node.label, place.x, place.y, name.size, chosen, entry],
  );
}

function useDrawn(rows, open) {
  const nodes = useMemo(() => grouped(rows, { open }), [rows, open]);
  const shape = nodes.map((node) => `${node.name}<${node.after.join()}`).join("\n");
  const drawn = useMemo(() => layout(nodes), [shape]);
  const edges = useMemo(() => drawn.edges.map(({ from, to }) => edgePath(drawn.places.get(from), drawn.places.get(to))).join(""), [drawn]);
  return { nodes, drawn, edges };
}

// The name of the node to which an arrow key leads from another one.
export function neighbour(drawn, name, key) {
  const { layer, row } = drawn.places.get(name);
  if (key === "ArrowUp" || key === "ArrowDown") return drawn.layers[layer][row + (key === "ArrowUp" ? -1 : 1)];
  const [here, there] = key === "ArrowRight" ? ["from", "to"] : ["to", "from"];
  const near = drawn.edges.filter((edge) => edge[here] === name).map((edge) => edge[there]);
  return near.sort((one, other) => Math.abs(drawn.places.get(one).row - row) - Math.abs(drawn.places.get(other).row - row))[0];
}

export function Graph({ rows, open, chosen, choose }) {
  const box = useRef(null);
  const { nodes, drawn, edges } = useDrawn(rows, open);
  const [zoom, setZoom] = useState(1);
  const name = useMemo(() => nameAt(zoom), [zoom]);
  const known = drawn.places.has(chosen);
  const first = known ? chosen : nodes[0]?.name;
  const fit = () => {
    const { clientWidth } = box.current;
    const wanted = Math.min(clientWidth / drawn.width, (SHARE * innerHeight) / drawn.height, 1);
    setZoom(Math.max(ZOOMS[0], wanted));
  };
  useEffect(fit, [drawn]);
  const step = (by) => {
    const at = ZOOMS.findIndex((one) => one >= zoom - 0.001);
    setZoom(ZOOMS[Math.max(0, Math.min(ZOOMS.length - 1, (at < 0 ? ZOOMS.length - 1 : at) + by))]);
  };
  const keys = (event) => {
    const name = event.target.closest("[data-node]")?.dataset.node;
    if (!name) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(name);
    } else if (event.key.startsWith("Arrow")) {
      const next = neighbour(drawn, name, event.key);
      event.preventDefault();
      if (next) focusNode(box.current, next);
    }
  };
  return html`<div class="graph-tools"><div class="zoom" role="group" aria-label="Zoom">
      <button type="button" onClick=${() => step(-1)} aria-label="Smaller">−</button><output>${Math.round(zoom * 100)} %</output>
      <button type="button" onClick=${() => step(1)} aria-label="Larger">+</button><button type="button" onClick=${fit}>Fit</button></div>
      <${Legend} nodes=${nodes} />${nodes.length < rows.length && html`<span class="about">${rows.length.toLocaleString("en")} nodes in ${nodes.length.toLocaleString("en")} groups</span>`}</div>
    <div class="graph" ref=${box} onKeyDown=${keys} role="group" aria-label="Graph of the workflow; arrow keys walk along it">
      <svg width=${drawn.width * zoom} height=${drawn.height * zoom} viewBox=${`0 0 ${drawn.width} ${drawn.height}`} class=${zoom < LEAST_FOR_TWO_LINES ? "far" : ""}>
        <path class="edges" d=${edges} />
        ${nodes.map((node) => html`<${Node} key=${node.name} node=${node} place=${drawn.places.get(node.name)} name=${name} chosen=${node.name === chosen} entry=${node.name === first} choose=${choose} />`)}
      </svg></div>`;
}

function focusNode(box, name) {
  const found = box.querySelector(`[data-node="${CSS.escape(name)}"]`);
  found?.focus();
  found?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function Legend({ nodes }) {
  const states = [...new Set(nodes.flatMap((node) => (node.counts ? Object.keys(node.counts) : [node.state])))];
  return html`<ul class="legend" aria-label="States in this graph">${states.map((state) => {
    const { tone, sign } = look(state);
    return html`<li key=${state}><span class=${`sign ${tone}`} aria-hidden="true">${sign}</span>${words(state)}</li>`;
  })}</ul>`;
}
