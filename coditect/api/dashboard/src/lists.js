// What lists of workflows share: the bar of states, and the pages of a list with cursors.
import { html } from "./html.js";
import { ENDED, look } from "./states.js";

// A bar of the nodes by state; the same in words for who does not see it.
export function Counts({ row }) {
  const counts = Object.entries(row.counts ?? {});
  const ended = counts.filter(([state]) => ENDED.includes(state)).reduce((sum, [, number]) => sum + number, 0);
  const told = counts.map(([state, number]) => `${number} ${state.replaceAll("_", " ")}`).join(", ");
  return html`<span class="counts" title=${told}><span class="stack" aria-hidden="true">${counts.map(
    ([state, number]) => html`<i key=${state} class=${look(state).tone} style=${{ flexGrow: number }}></i>`,
  )}</span><span class="figure">${ended} / ${row.total}</span><span class="unseen">${told}</span></span>`;
}

export function Pages({ page, setPage, next }) {
  if (page.cursors.length < 2 && !next) return null;
  return html`<div class="actions pages"><button type="button" disabled=${page.cursors.length < 2} onClick=${() => setPage({ cursors: page.cursors.slice(0, -1) })}>Newer</button>
    <button type="button" disabled=${!next} onClick=${() => setPage({ cursors: [...page.cursors, next] })}>Older</button></div>`;
}
