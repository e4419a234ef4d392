// How each state looks: a tone for its colour and a sign for its shape, so that colour never stands alone.

const LOOKS = {
  completed: ["good", "✓"], compensated: ["note", "↺"], idle: ["good", "●"], ready: ["note", "○"], held: ["good", "●"],
  live: ["good", "●"], closed: ["good", "●"], active: ["good", "●"], online: ["good", "●"], healthy: ["good", "●"],
  running: ["busy", "▸"], working: ["busy", "▸"], busy: ["busy", "▸"], compensating: ["busy", "↺"], published: ["note", "→"],
  accepted: ["note", "○"], blocked: ["calm", "·"], skipped: ["calm", "⤼"], canceled: ["calm", "⊘"], offline: ["calm", "○"],
  paused: ["warn", "‖"], retry_wait: ["warn", "↻"], awaiting_approval: ["warn", "?"], waiting: ["warn", "◔"],
  draining: ["warn", "↓"], suspect: ["warn", "!"], degraded: ["warn", "!"], polling: ["warn", "↻"], suspended: ["warn", "‖"],
  failed: ["bad", "✕"], dead: ["bad", "☓"], rejected: ["bad", "⊗"], lost: ["bad", "✕"], open: ["bad", "✕"],
  pass: ["good", "✓"], fail: ["bad", "✕"], unknown: ["calm", "?"],
  compensation_failed: ["bad", "✕"], requested: ["warn", "?"], declined: ["warn", "⊗"], expired: ["calm", "◔"], withdrawn: ["calm", "⊘"],
};

export const look = (state) => {
  const [tone, sign] = LOOKS[state] ?? ["calm", "·"];
  return { tone, sign };
};

export const ENDED = ["completed", "failed", "canceled", "rejected", "skipped", "dead"];
export const WORKFLOW_STATES = [
  "accepted", "running", "paused", "completed", "failed", "canceled", "rejected", "compensating", "compensated",
  "compensation_failed",
];
export const workflowEnded = (state) => !["accepted", "running", "paused", "compensating"].includes(state);

// The state that a group of nodes shows: the worst that needs a person first, then what moves, then what is done.
const ORDER = [
  "dead", "failed", "rejected", "awaiting_approval", "retry_wait", "working", "published", "waiting", "ready", "blocked",
  "canceled", "skipped", "completed",
];
export const foremost = (states) => ORDER.find((one) => states.has(one)) ?? "blocked";
