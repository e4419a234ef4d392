// The C4 diagrams of the fleet as it lives now, drawn by the layout of workflows; each also as a table and as Mermaid.
import { html, useMemo, useState } from "../src/html.js";
import { get } from "../src/api.js";
import { Json, Shown, Table, Tabs, Title } from "../src/parts.js";
import { useResource } from "../src/resource.js";
import { edgePath, layout } from "../workflow/layout.js";

const WANTED = { kind: ["agent"] };
const SIZE = { width: 208, height: 60, across: 96, down: 20, margin: 24 };
const TONES = { Person: "note", System_Ext: "calm", System: "busy", Component: "note", ContainerQueue: "warn", ContainerDb: "good", ComponentQueue: "warn" };
const LETTERS = 28;

const cut = (text) => (text.length > LETTERS ? `${text.slice(0, LETTERS - 1)}…` : text);

export default function Architecture() {
  const found = useResource((signal) => get("/v1/topology/diagrams", { signal }), WANTED);
  const [level, setLevel] = useState("containers");
  return html`<${Title} about="Drawn from the topology on the broker and the agents that live now.">Architecture<//>
    <${Shown} resource=${found}>${(diagrams) => html`<${Tabs} label="Levels" chosen=${level} choose=${setLevel}
        tabs=${diagrams.map((one) => [one.level, one.level[0].toUpperCase() + one.level.slice(1)])} />
      <div role="tabpanel" id="tab-panel" aria-labelledby=${`tab-${level}`}><${Drawing} diagram=${diagrams.find((one) => one.level === level)} /></div>`}<//>`;
}

// The elements' order breaks cycles: an arrow back to an earlier element does not move it behind the later one.
function drawnOf({ elements, relations }) {
  const order = new Map(elements.map((one, at) => [one.id, at]));
  const ends = ({ source, target }) => (order.get(source) < order.get(target) ? [source, target] : [target, source]);
  const nodes = elements.map(({ id }) => ({
    name: id, after: [...new Set(relations.map(ends).filter(([, to]) => to === id).map(([from]) => from))],
  }));
  return layout(nodes, SIZE);
}

function Drawing({ diagram }) {
  const { title, elements, relations, mermaid } = diagram;
  const drawn = useMemo(() => drawnOf(diagram), [mermaid]);
  const names = new Map(elements.map((one) => [one.id, one.name]));
  const acts = new Set(relations.map(({ source, target }) => `${source} ${target}`));
  return html`<div class="graph small" tabindex="0" role="region" aria-label=${title}>
      <svg width=${drawn.width} height=${drawn.height} viewBox=${`0 0 ${drawn.width} ${drawn.height}`} role="img" aria-label=${`${title}; the table below has the same`}>
        <defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" /></marker></defs>
        ${drawn.edges.map(({ from, to }) => html`<path key=${`${from} ${to}`} class="edges" d=${edgePath(drawn.places.get(from), drawn.places.get(to), SIZE)}
          marker-end=${acts.has(`${from} ${to}`) ? "url(#arrow)" : undefined} marker-start=${acts.has(`${to} ${from}`) ? "url(#arrow)" : undefined} />`)}
        ${elements.map((one) => html`<${Box} key=${one.id} element=${one} place=${drawn.places.get(one.id)} />`)}</svg></div>
    <section class="apart"><h2>Relations</h2><${Table} label="Relations" rows=${relations} keyOf=${(one) => `${one.source} ${one.target} ${one.label}`} columns=${[
      { head: "From", cell: (one) => names.get(one.source) }, { head: "Does", cell: (one) => one.label },
      { head: "To", cell: (one) => names.get(one.target) }, { head: "By", cell: (one) => one.technology },
    ]} /></section>
    <section class="apart"><h2>Elements</h2><${Table} label="Elements" rows=${elements} keyOf=${(one) => one.id} columns=${[
      { head: "Name", cell: (one) => html`<strong>${one.name}</strong>` }, { head: "Technology", cell: (one) => one.technology },
      { head: "About", cell: (one) => one.description }, { head: "In", cell: (one) => one.inside },
    ]} /></section>
    <details><summary>Mermaid</summary><${Json} value=${mermaid} label="Mermaid" /></details>`;
}

function Box({ element, place }) {
  const { name, kind, technology, description } = element;
  return html`<g class=${`node box ${TONES[kind] ?? "busy"}`} transform=${`translate(${place.x} ${place.y})`}>
    <title>${[name, technology, description].filter(Boolean).join(" · ")}</title><rect width=${SIZE.width} height=${SIZE.height} rx="8" />
    <text class="name" x="12" y="22">${cut(name)}</text><text class="line" x="12" y="37">${cut(technology)}</text><text class="line" x="12" y="51">${cut(description)}</text></g>`;
}
