// The targets of the fleet, each with what was measured, how, and the verdict; measured again on request.
import { html } from "../src/html.js";
import { get } from "../src/api.js";
import { Ago, Badge, Shown, Table, Title } from "../src/parts.js";
import { useResource } from "../src/resource.js";

const figure = (value) => value.toLocaleString("en", { maximumSignificantDigits: 4 });

const COLUMNS = [
  { head: "Target", cell: (row) => html`<strong>${row.name}</strong>` },
  { head: "Wanted", cell: (row) => `${row.bound} ${row.limit} ${row.unit}` },
  { head: "Measured", cell: (row) => (row.value === null ? html`<span class="none">–</span>` : `${figure(row.value)} ${row.unit}`) },
  { head: "Verdict", cell: (row) => html`<${Badge} state=${row.verdict} />` },
  { head: "How it was measured", cell: (row) => row.how },
];

export default function Scorecard() {
  const found = useResource((signal) => get("/v1/scorecard", { signal }));
  const again = html`<button type="button" onClick=${found.reload}>Measure again</button>`;
  return html`<${Title} about="What the fleet is to reach, and what it does: measured for five seconds." actions=${again}>Scorecard<//>
    <${Shown} resource=${found}>${(card) => html`<p class="about">Measured <${Ago} at=${card.at_ms} /></p>
      <${Table} label="Targets" columns=${COLUMNS} rows=${card.rows} keyOf=${(row) => row.name} />`}<//>`;
}
