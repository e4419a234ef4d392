// A layered layout of a graph: each node stands in the layer of its longest path from a root, and sweeps by barycentres
// order the layers so that few edges cross. Pure and without DOM: milliseconds for a thousand nodes.

export const SIZE = { width: 176, height: 44, across: 64, down: 16, margin: 24 };
const SWEEPS = 8;

// `nodes` are { name, after: [names] }; gives { places: Map(name → {x, y, layer, row}), edges, width, height }.
export function layout(nodes, size = SIZE) {
  const known = new Map(nodes.map((node) => [node.name, node]));
  const before = new Map(nodes.map((node) => [node.name, node.after.filter((name) => known.has(name))]));
  const layers = layered(before);
  const edges = [...before].flatMap(([to, from]) => from.map((name) => ({ from: name, to })));
  const behind = new Map(nodes.map((node) => [node.name, []]));
  for (const edge of edges) behind.get(edge.from).push(edge.to);
  sweep(layers, before, behind);
  return placed(layers, edges, before, size);
}

// Kahn's order, with the longest path to each node. What a cycle holds, which no workflow has, stays in the first layer.
function layered(before) {
  const open = new Map([...before].map(([name, after]) => [name, after.length]));
  const depth = new Map([...before.keys()].map((name) => [name, 0]));
  const behind = new Map([...before.keys()].map((name) => [name, []]));
  for (const [name, after] of before) for (const one of after) behind.get(one).push(name);
  const free = [...before.keys()].filter((name) => open.get(name) === 0);
  for (const name of free) {
    for (const next of behind.get(name)) {
      depth.set(next, Math.max(depth.get(next), depth.get(name) + 1));
      open.set(next, open.get(next) - 1);
      if (open.get(next) === 0) free.push(next);
    }
  }
  const layers = Array.from({ length: 1 + Math.max(-1, ...layersOf(depth)) }, () => []);
  for (const [name, at] of depth) layers[at].push(name);
  return layers.filter((layer) => layer.length);
}

const layersOf = (depth) => new Set(depth.values());

function sweep(layers, before, behind) {
  const at = new Map();
  const number = (layer) => layer.forEach((name, index) => at.set(name, (index + 0.5) / layer.length));
  layers.forEach(number);
  for (let round = 0; round < SWEEPS; round += 1) {
    const down = round % 2 === 0;
    for (const layer of down ? layers : [...layers].reverse()) {
      const neighbours = down ? before : behind;
      const wanted = new Map(layer.map((name) => [name, mean(neighbours.get(name), at) ?? at.get(name)]));
      layer.sort((one, other) => wanted.get(one) - wanted.get(other));
      number(layer);
    }
  }
}

function mean(names, at) {
  if (!names.length) return null;
  let sum = 0;
  for (const name of names) sum += at.get(name);
  return sum / names.length;
}

// Each layer is centred on the height of the tallest.
function placed(layers, edges, before, size) {
  const rows = Math.max(1, ...layers.map((layer) => layer.length));
  const step = size.height + size.down;
  const places = new Map();
  layers.forEach((layer, column) => {
    const top = size.margin + ((rows - layer.length) * step) / 2;
    layer.forEach((name, row) => {
      places.set(name, {
        x: size.margin + column * (size.width + size.across), y: top + row * step, layer: column, row,
      });
    });
  });
  return {
    places, edges, layers,
    width: 2 * size.margin + layers.length * (size.width + size.across) - size.across,
    height: 2 * size.margin + rows * step - size.down,
  };
}

// The path of an edge: leaves to the right, arrives from the left.
export function edgePath(from, to, size = SIZE) {
  const x = from.x + size.width;
  const y = from.y + size.height / 2;
  const toY = to.y + size.height / 2;
  const bend = Math.max(24, Math.min(80, (to.x - x) / 2));
  return `M${x} ${y}C${x + bend} ${y} ${to.x - bend} ${toY} ${to.x} ${toY}`;
}
