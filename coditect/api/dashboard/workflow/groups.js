// Makes a graph of many nodes readable: the elements of a map become one node, and in a graph that is still too large
// the nodes of one layer with the same work become one.
import { foremost } from "../src/states.js";
import { layout } from "./layout.js";

export const MOST_DRAWN = 2_000;

const base = (name) => name.replace(/\[\d+\]$/, "");

// Gives drawn nodes { name, label, state, after, members, counts }; `members` are the rows that the node stands for.
export function grouped(rows, most = MOST_DRAWN) {
  if (rows.length <= most) return withElements(rows).map(alone);
  const byMap = merged(rows, (row) => base(row.name));
  if (byMap.length <= most) return byMap;
  const { places } = layout(byMap);
  const work = new Map(byMap.map(({ name, members: [first] }) => [name, `${first.kind} ${first.capability}`]));
  return merged(rows, ({ name }) => `${places.get(base(name)).layer} ${work.get(base(name))}`);
}

// Draws the elements of a map, which have no edges of their own, between the map and what it waited for.
function withElements(rows) {
  const maps = new Map(rows.map((row) => [row.name, row]));
  const elements = new Map();
  for (const { name } of rows) if (name !== base(name)) elements.set(base(name), [...(elements.get(base(name)) ?? []), name]);
  return rows.map((row) => {
    if (row.name !== base(row.name)) return { ...row, after: maps.get(base(row.name))?.after ?? [] };
    return { ...row, after: elements.get(row.name) ?? row.after };
  });
}

const alone = (row) => ({ ...row, label: row.name, members: [row] });

function merged(rows, groupOf) {
  const groups = new Map();
  const home = new Map();
  for (const row of rows) {
    const id = groupOf(row);
    home.set(row.name, id);
    if (!groups.has(id)) groups.set(id, []);
    groups.get(id).push(row);
  }
  return [...groups].map(([id, members]) => {
    const after = new Set(members.flatMap((row) => row.after).map((name) => home.get(name)));
    after.delete(id);
    after.delete(undefined);
    if (members.length === 1) return { ...alone(members[0]), name: id, after: [...after] };
    return { ...bundle(id, members), after: [...after] };
  });
}

function bundle(id, members) {
  const counts = {};
  for (const row of members) counts[row.state] = (counts[row.state] ?? 0) + 1;
  const [first] = members;
  const label = base(first.name) === base(members[members.length - 1].name) ? base(first.name) : first.capability || first.kind;
  return {
    name: id, label: `${members.length} × ${label}`, kind: "group", capability: first.capability,
    state: foremost(new Set(Object.keys(counts))), counts, members, attempt: 0, agent: "",
  };
}
