// The path of one task as a tree: each step with its state, agent and durations. It needs no tracing tool.
import { html, useState } from "../src/html.js";
import { get, segment } from "../src/api.js";
import { span, words } from "../src/format.js";
import { Badge, ProblemNote } from "../src/parts.js";
import { useResource } from "../src/resource.js";

// Read when it is opened, and again when the task has moved on.
export function Path({ task, moved }) {
  const [open, setOpen] = useState(false);
  return html`<details class="path" onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>Path of the task</summary>${open && html`<${Steps} task=${task} moved=${moved} />`}</details>`;
}

function Steps({ task, moved }) {
  const found = useResource((signal) => get(`/v1/tasks/${segment(task)}/trace`, { signal }), null, [task, ...moved]);
  return html`<${ProblemNote} problem=${found.problem} />
    ${!found.value && !found.problem && html`<p class="wait" role="status">Loading …</p>`}
    ${found.value && html`<ul class="steps"><${Step} of=${found.value} /></ul>`}`;
}

function Step({ of }) {
  const times = [of.waited_ms !== null && `waited ${span(of.waited_ms)}`, of.ran_ms !== null && `ran ${span(of.ran_ms)}`];
  return html`<li><strong>${words(of.kind)} ${of.name}</strong> ${of.state && html`<${Badge} state=${of.state} />`}
    <small class="id">${of.agent}</small> ${times.filter(Boolean).join(", ")} ${of.reason}
    ${of.below.length > 0 && html`<ul class="steps">${of.below.map((step, at) => html`<${Step} key=${at} of=${step} />`)}</ul>`}</li>`;
}
