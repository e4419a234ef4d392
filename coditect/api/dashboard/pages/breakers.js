// The fleet's circuit breakers: which are open, why and by whom; opened and reset by hand.
import { html } from "../src/html.js";
import { post, rows, segment } from "../src/api.js";
import { ACTIONS, Ago, Ask, Badge, Empty, Field, Shown, Table, Title, Until } from "../src/parts.js";
import { useResource } from "../src/resource.js";

function Steer({ row, reload }) {
  const verb = row.open ? "reset" : "open";
  const told = row.open ? "Calls are made again, and what waited for it goes on." : "No call is made, and no probe, until it is reset.";
  return html`<${Ask} label=${row.open ? "Reset …" : "Open …"} kind=${row.open ? "main" : "bad"} confirm=${row.open ? "Reset" : "Open"} title=${`${row.open ? "Reset" : "Open"} ${row.name}?`} onDone=${reload}
      act=${({ reason }) => post(`/v1/breakers/${segment(row.name)}/${verb}`, reason ? { reason } : {})}>
    <p>${told}</p><${Field} label="Reason">${(id) => html`<input id=${id} name="reason" />`}<//><//>`;
}

export default function Breakers() {
  const load = async (signal) => (await rows("/v1/breakers", { signal })).map((one) => ({ ...one, ...one.state }));
  const found = useResource(load, { kind: "breaker" });
  const columns = [
    { head: "Breaker", cell: (row) => html`<strong>${row.name}</strong>` },
    { head: "State", cell: (row) => html`<${Badge} state=${row.open ? "open" : "closed"} />` },
    { head: "Since", cell: (row) => html`<${Ago} at=${row.since_ms} />` },
    { head: "Reason", cell: (row) => row.reason },
    { head: "By", cell: (row) => html`<small class="id">${row.by}</small>` },
    { head: "Next probe", cell: (row) => (row.due_ms ? html`<${Until} at=${row.due_ms} />` : row.open ? "none until it is reset" : "") },
    { head: ACTIONS, cell: (row) => html`<${Steer} row=${row} reload=${found.reload} />` },
  ];
  return html`<${Title} about="Dependencies that agents call through a breaker; an open one holds their calls back.">Breakers<//>
    <${Shown} resource=${found} empty=${html`<${Empty} command='coditect breaker open github --reason "maintenance until noon"'>No breaker ever opened. By hand:<//>`}>
      ${(list) => html`<${Table} label="Breakers" columns=${columns} rows=${list} keyOf=${(row) => row.name} />`}<//>`;
}
