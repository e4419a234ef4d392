// What happens in the fleet, as it happens.
import { html, useRef, useState } from "../src/html.js";
import { clock, moment } from "../src/format.js";
import { stringify } from "../src/json.js";
import { Empty, Field, Title } from "../src/parts.js";
import { useEvents } from "../src/resource.js";

const MOST_KEPT = 500;
const KINDS = ["task", "node", "workflow", "agent", "lock", "breaker", "schedule", "trigger", "state"];

export default function Events() {
  const [kind, setKind] = useState("");
  const [paused, setPaused] = useState(false);
  const [word, setWord] = useState("");
  const [events, setEvents] = useState([]);
  const number = useRef(0);
  const live = useEvents(paused ? null : kind ? { kind } : {}, (event) => {
    number.current += 1;
    setEvents((before) => [{ ...event, number: number.current }, ...before].slice(0, MOST_KEPT));
  });
  const fits = (event) => !word || `${event.type} ${event.subject} ${event.source} ${stringify(event.data)}`.includes(word);
  const shown = events.filter(fits);
  return html`<${Title} about="CloudEvents of the whole fleet, the latest first; sent at most once."
      actions=${html`<button type="button" onClick=${() => setPaused(!paused)}>${paused ? "Go on" : "Hold"}</button>
        <button type="button" onClick=${() => setEvents([])}>Clear</button>`}>Events<//>
    <form class="filters" onSubmit=${(event) => event.preventDefault()}>
      <${Field} label="Kind">${(id) => html`<select id=${id} value=${kind} onChange=${(event) => setKind(event.target.value)}>
        <option value="">any</option>${KINDS.map((one) => html`<option>${one}</option>`)}</select>`}<//>
      <${Field} label="Contains">${(id) => html`<input id=${id} value=${word} onInput=${(event) => setWord(event.target.value)} placeholder="a task, an agent, a word" />`}<//></form>
    ${shown.length === 0
      ? html`<${Empty} command="coditect event tail">${live ? "Nothing has happened since the page was opened." : "The stream of events is not open."} On a terminal:<//>`
      : html`<div class="scroll" tabindex="0" role="region" aria-label="Events"><table><thead><tr><th scope="col">Time</th><th scope="col">Event</th><th scope="col">Of</th><th scope="col">Data</th></tr></thead>
        <tbody>${shown.map((event) => html`<tr key=${event.number}><td><time datetime=${moment(event.time)}>${clock(event.time)}</time></td><td><strong>${event.type}</strong></td>
          <td class="id">${event.subject || event.source}</td><td><code>${told(event)}</code></td></tr>`)}</tbody></table></div>`}`;
}

const told = (event) => Object.entries(event.data ?? event.reason ?? {}).map(([name, value]) => `${name}=${typeof value === "object" ? stringify(value) : value}`).join(" ");
