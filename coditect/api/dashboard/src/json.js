// JSON without loss: an integer beyond 2^53, which a JavaScript number would round, is a BigInt, and is written as it was.

const MARK = `integer ${Math.random()} ${Math.random()}: `; // a text that nobody writes
const MARKED = new RegExp(`"${MARK.replaceAll(".", "\\.")}(-?\\d+)"`, "g");
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g;
const SUSPECT = /\d{16}|[eE]\+?\d{3}/; // only then is a number looked at twice

export function parse(text) {
  const value = JSON.parse(text); // its errors name the place
  if (!SUSPECT.test(text)) return value;
  const marked = text.replace(TOKEN, (token) => (token[0] === '"' ? token : markedNumber(token)));
  return JSON.parse(marked, (_, part) => (typeof part === "string" && part.startsWith(MARK) ? BigInt(part.slice(MARK.length)) : part));
}

export function stringify(value, indent) {
  const text = JSON.stringify(value, (_, part) => (typeof part === "bigint" ? `${MARK}${part}` : part), indent);
  return text?.replace(MARKED, "$1");
}

// The number that a text of digits means: a BigInt where a number would round it. Other numbers are as near as they get.
export function numberIn(text) {
  const number = Number(text);
  return /^[+-]?\d+$/.test(text) && !Number.isSafeInteger(number) ? BigInt(text.replace("+", "")) : number;
}

function markedNumber(token) {
  const number = numberIn(token);
  if (typeof number === "bigint") return `"${MARK}${number}"`;
  if (!Number.isFinite(number)) throw new SyntaxError(`${token} is too large for a number`);
  return token;
}
