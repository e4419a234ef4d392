// Values as people read them; a machine-readable form stands in the title.

export const ms = (value) => {
  if (value === null || value === undefined || value === "") return null;
  return typeof value === "number" ? value : Date.parse(value);
};

const UNITS = [["d", 86_400_000], ["h", 3_600_000], ["min", 60_000]];

export function span(duration) {
  if (duration === null || duration === undefined || Number.isNaN(duration)) return "";
  if (duration < 0) return `−${span(-duration)}`;
  if (duration < 1_000) return `${Math.round(duration)} ms`;
  if (duration < 60_000) return `${(duration / 1_000).toFixed(duration < 10_000 ? 1 : 0)} s`;
  const at = UNITS.findIndex(([, size]) => duration >= size);
  const [unit, size] = UNITS[at];
  const whole = Math.floor(duration / size);
  const [under, part] = UNITS[at + 1] ?? ["s", 1_000];
  const rest = Math.floor((duration % size) / part);
  return rest ? `${whole} ${unit} ${rest} ${under}` : `${whole} ${unit}`;
}

export const ago = (instant, now) => (ms(instant) === null ? "" : `${span(Math.max(0, now - ms(instant)))} ago`);
export const until = (instant, now) => {
  const at = ms(instant);
  if (at === null) return "";
  return at >= now ? `in ${span(at - now)}` : `${span(now - at)} ago`;
};
export const moment = (instant) => (ms(instant) === null ? "" : new Date(ms(instant)).toISOString());
export const clock = (instant) => (ms(instant) === null ? "" : new Date(ms(instant)).toLocaleTimeString());
export const megabytes = (bytes) => (bytes ? `${(bytes / 1_000_000).toFixed(0)} MB` : "");
export const short = (id) => (/^[0-9a-f]{8}-[0-9a-f-]{27}$/.test(id ?? "") ? `${id.slice(0, 4)}…${id.slice(-6)}` : (id ?? ""));

// A long name without its middle: names of one workflow often begin alike, and differ at the end.
export function shortName(name, letters) {
  const end = Math.floor((letters - 1) / 2);
  return name.length > letters ? `${name.slice(0, letters - 1 - end)}…${name.slice(name.length - end)}` : name;
}
export const words = (state) => String(state ?? "").replaceAll("_", " ");
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
