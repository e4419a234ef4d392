// Hooks that keep what a page shows up to date: by events where the API streams them, else by asking again.
import { listen } from "./live.js";
import { useCallback, useEffect, useRef, useState } from "./html.js";

const POLL_MS = 3_000;
const LIVE_POLL_MS = 15_000; // what no event tells: load, heartbeats, ages
const SHORTEST_MS = 400; // between two questions, however many events come

// Tells whether events arrive; the shell shows it.
export const connection = { state: "polling", told: () => {} };

export const POLLED = "polled";

// Loads by `load(signal)`, again at each event that `wanted` selects, which `heard` is told first, and every few seconds;
// with POLLED only every few seconds, with null only when `more` changes. Gives { value, problem, reload }.
export function useResource(load, wanted = null, more = [], heard = () => {}) {
  const [found, setFound] = useState({ value: undefined, problem: null });
  const asked = useRef({ timer: 0, at: 0, busy: null });
  const latest = useRef(load);
  latest.current = load;

  const reload = useCallback(async () => {
    const mine = asked.current;
    mine.busy?.abort();
    const busy = (mine.busy = new AbortController());
    mine.at = Date.now();
    try {
      const value = await latest.current(busy.signal);
      if (!busy.signal.aborted) setFound({ value, problem: null });
    } catch (problem) {
      if (!busy.signal.aborted) setFound((before) => ({ value: before.value, problem }));
    } finally {
      if (mine.busy === busy) mine.busy = null;
    }
  }, []);

  const soon = useCallback(() => {
    const mine = asked.current;
    if (mine.timer) return;
    const wait = Math.max(0, mine.at + SHORTEST_MS - Date.now());
    mine.timer = setTimeout(() => ((mine.timer = 0), mine.busy ? soon() : reload()), wait);
  }, []);

  const live = useEvents(wanted === POLLED ? null : wanted, (event) => (heard(event), soon()));
  useEffect(() => {
    reload();
    return () => {
      clearTimeout(asked.current.timer);
      asked.current.timer = 0;
      asked.current.busy?.abort();
    };
  }, more);
  useEffect(() => {
    if (!wanted) return undefined;
    const timer = setInterval(() => document.hidden || soon(), live ? LIVE_POLL_MS : POLL_MS);
    return () => clearInterval(timer);
  }, [live, wanted === null]);
  return { ...found, reload };
}

// Calls `heard` with each event that `wanted` selects while the component is shown; returns whether they arrive.
export function useEvents(wanted, heard) {
  const [live, setLive] = useState(false);
  const latest = useRef(heard);
  latest.current = heard;
  useEffect(() => {
    if (!wanted) return undefined;
    const state = (now) => {
      setLive(now === "live");
      connection.state = now;
      connection.told(now);
    };
    return listen(wanted, (event) => latest.current(event), state);
  }, [JSON.stringify(wanted)]);
  return live;
}

// Runs an action of a button: its problem is shown beside it, and it cannot be pressed twice.
export function useAction(act) {
  const [state, setState] = useState({ busy: false, problem: null, done: null });
  const run = async (...given) => {
    setState({ busy: true, problem: null, done: null });
    try {
      const done = await act(...given);
      setState({ busy: false, problem: null, done: done ?? true });
      return done ?? true;
    } catch (problem) {
      setState({ busy: false, problem, done: null });
      return undefined;
    }
  };
  return { ...state, run };
}

// The present instant, again every second, for ages.
export function useNow(ms = 1_000) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => document.hidden || setNow(Date.now()), ms);
    return () => clearInterval(timer);
  }, [ms]);
  return now;
}
