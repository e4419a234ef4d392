// Makes a graph of many nodes readable: a map is one node until it is opened, and in a graph that is still too large
// the nodes of one layer with the same work become one.
import { foremost } from "../src/states.js";
import { layout } from "./layout.js";

export const MOST_DRAWN = 2_000;

const base = (name) => name.replace(/\[\d+\]$/, "");

// The elements of a map, by its name.
export const elementsOf = (rows, name) => rows.filter((row) => row.name !== name && base(row.name) === name);

// Gives drawn nodes { name, label, state, after, members, counts }; `members` are the rows that the node stands for.
// `open` has the names of the maps whose elements are drawn.
export function grouped(rows, { open = new Set(), most = MOST_DRAWN } = {}) {
  const home = (row) => (open.has(base(row.name)) ? row.name : base(row.name));
  const byMap = merged(withElements(rows, open), home);
  if (byMap.length <= most) return byMap;
  const { places } = layout(byMap);
  const work = new Map(byMap.map(({ name, members: [first] }) => [name, `${first.kind} ${first.capability}`]));
  return merged(rows, (row) => `${places.get(home(row)).layer} ${work.get(home(row))}`);
}

// Draws the elements of an open map, which have no edges of their own, between the map and what it waited for.
function withElements(rows, open) {
  if (open.size === 0) return rows;
  const maps = new Map(rows.map((row) => [row.name, row]));
  return rows.map((row) => {
    if (!open.has(base(row.name))) return row;
    if (row.name !== base(row.name)) return { ...row, after: maps.get(base(row.name))?.after ?? [] };
    const elements = elementsOf(rows, row.name).map(({ name }) => name);
    return { ...row, after: elements.length > 0 ? elements : row.after };
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

function bundle(id, rows) {
  const elements = elementsOf(rows, id);
  const members = elements.length > 0 ? elements : rows; // a map is no element of its own
  const counts = {};
  for (const row of members) counts[row.state] = (counts[row.state] ?? 0) + 1;
  const [first] = members;
  const label = base(first.name) === base(members[members.length - 1].name) ? base(first.name) : first.capability || first.kind;
  return {
    name: id, label: `${members.length} × ${label}`, kind: "group", capability: first.capability,
    state: foremost(new Set(rows.map((row) => row.state))), counts, members, attempt: 0, agent: "",
  };
}
