"""The keys of everything that the control plane keeps in the store, drawn as one tree; all modules take them from here.

Keys and values are FoundationDB's tuples. The elements of a key stand in parentheses, its value stands behind the
arrow. A *place* is (workflow, node, kind), with the node "" for what belongs to the workflow itself. Instants are
milliseconds since the epoch; a *level* is 0 to 2, the urgent first. Values carry versions: see versions.py.

::

    ("coditect",)
    ├── "shards"      ()                                                  → how many shards there are; never changes
    ├── "store"       ()                                                  → its identity, incarnation (incarnation.py)
    │
    │   owners of work (leases.py, shards.py)
    ├── "beat"        (owner)                                             → number that grows while it lives
    ├── "lease"       (*name)                                             → owner or "", epoch, owner before
    │                 ("shard", shard) and ("leader", role) are names
    ├── "marker"      (shard)                                             → marker queue of its broker, occasion, last
    ├── "unbound"     (agent)                                             → instant since when a dead agent's inbox gets
    │                                                                       no tasks, by Redis; until that is deleted
    │
    │   workflows and their nodes (a row is a JSON list, see ledger/rows.py)
    ├── "workflow"    (workflow)                                          → its row; never changes
    ├── "run"         (workflow)                                          → its row: state, counts
    ├── "live"        (shard, workflow)                                   → nothing; until the workflow is terminal
    ├── "ended"       (shard, finished_ms, workflow)                      → nothing; from then on
    ├── "expiry"      (shard, expires_ms, workflow)                       → nothing; of one with its own retention
    ├── "state"       (state, workflow)                                   → nothing; ids begin with the time
    ├── "labeled"     (label, value, workflow)                            → nothing; ids begin with the time
    ├── "shown"       (shard, which)                                      → finished_ms, workflow: RQ has no workflow
    │                                                                       that ended before; which: all, failed;
    │                                                                       kept: those before keep themselves longer
    ├── "upload"      (workflow)                                          → chunks so far, begun_ms; until accepted
    ├── "node"        (workflow, node)                                    → its definition, as JSON; never changes;
    │                                                                       nothing when it is a "value"
    ├── "edge"        (workflow, node, dependent)                         → failure policy; from "" to every root
    ├── "status"      (workflow, node)                                    → its row: state, attempt, fence, tally
    ├── "attempt"     (workflow, node, fence)                             → row of an attempt that another followed
    ├── "dead"        (workflow, node)                                    → nothing; while the node is dead
    ├── "approval"    (ready_ms, workflow, node)                          → the question; until it is answered
    ├── "decision"    (workflow, node)                                    → its row: the last question or judgement
    │                                                                       of the node (nodes/approvals/decisions.py)
    ├── "awaiting"    (workflow, signal, ready_ms, node)                  → nothing; while the node waits for the signal
    ├── "signal"      (workflow, id)                                      → nothing; a signal that came once
    ├── "signal_kept" (workflow, signal, number)                          → nothing; until a node takes its "value"
    ├── "todo"        (shard, workflow, node, kind)                       → cursor of the rest of a long step;
    │                                                                       of the whole shard with the workflow ""
    ├── "child"       (workflow, node, fence)                             → id of the workflow that the node ran
    ├── "compensate"  (workflow, number)                                  → node that completed as number so-and-so
    ├── "checkpoint"  (workflow, name)                                    → at_ms, writer; of one on request
    ├── "restore"     (workflow, number)                                  → at_ms, who, checkpoint; of each restore
    ├── "again"       (workflow, step, node)                              → the rest of a redrive (redrive_steps)
    ├── "value"       (workflow, node, kind)                              → size, SHA-256, and a small one itself
    │                 (workflow, node, kind, piece)                       → at most 90,000 bytes of it
    │                 kinds: input (also the workflow's own, node ""), result, failure, definition,
    │                                                                       iterations, a kept signal; of the node ""
    │                                                                       workflows: the children's definitions
    │
    │   work to do (timers.py, outbox.py)
    ├── "timer"       (workflow, node, kind)                              → shard, due_ms, fence
    ├── "due"         (shard, due_ms, workflow, node, kind)               → fence
    ├── "published"   (shard)                                             → last publication number given, and
    │                                                                       the one up to which all are confirmed
    │
    │   locks (coordination/locks.py)
    ├── "lock"        (ticket)                                            → its row: owner, resources, fence
    ├── "lock_queue"  (resource, number)                                  → ticket, mode, agent, owner; until it is gone
    ├── "lock_owner"  (agent, owner, ticket)                              → nothing
    ├── "lock_count"  ()                                                  → last number given, as a place or as a fence
    │
    │   threads (coordination/threads.py); a message is a row of its own, at most 90,000 bytes
    ├── "thread"      (thread)                                            → its row: participants, binding, last number
    ├── "thread_message" (thread, number)                                 → its row: sender, type, value, at_ms
    ├── "thread_sent" (thread, message)                                   → number; of each message, by its id
    ├── "thread_member" (thread, participant)                             → last number read, messages said
    ├── "thread_reader" (thread, ticket)                                  → participant, reply_to; while it listens
    │
    │   handoffs of running tasks (coordination/handoffs.py); a row is at most 90,000 bytes
    ├── "handoff"     (workflow, node, number)                            → its row: who hands off, who was asked
    │
    │   shared state (coordination/state.py); a space is "workflow:" and an id, or "space:" and a name
    ├── "space"       (space, key)                                        → version, writer, task, at_ms, deleted
    ├── "space_version" (space, key, version)                             → the same, of each version that is kept
    │                                                                       its "value" is of (space, key, "v" version)
    │
    │   schedules (coordination/schedules.py); a schedule's workflow is a "value" of the workflow ""
    ├── "schedule"    (name)                                              → its row: how it was declared, next tick
    │   triggers (coordination/triggers.py); what a trigger starts is a "value" of the workflow ""
    ├── "trigger"     (name)                                              → its row: which events, counts
    │   breakers (coordination/breakers.py)
    ├── "breaker"     (name)                                              → its row: open or closed, next probe
    │
    │   the audit trail (audit/trail.py); nothing changes an entry, and its retention alone removes it
    ├── "audit"       (at_ms, workflow, number, node)                     → its row: decision, author, reason
    ├── "audit_of"    (workflow, at_ms, number, node)                     → nothing
    │
    │   outcomes from which approval is learned (nodes/approvals/learned.py)
    ├── "learned"     (capability, rule, shard)                           → instants and outcomes of the last 200
    │
    │   how much finished without a person (audit/autonomy.py); counters by hour
    ├── "autonomy"    (hour, kind, name, outcome)                         → number
    │
    │   requests and their answers (idempotency.py, answers.py)
    ├── "key"         (idempotency key)                                   → workflow, expires_ms, fingerprint
    ├── "key_expiry"  (expires_ms, idempotency key)                       → nothing
    ├── "answer"      (shard, identity)                                   → the answer to the request, as JSON
    └── "answer_expiry" (expires_ms, shard, identity)                      → nothing
"""

from __future__ import annotations

from dispatcher.store.keys import Space

ROOT = Space(("coditect",))

SHARDS = ROOT["shards"]
STORE = ROOT["store"]

BEATS = ROOT["beat"]
LEASES = ROOT["lease"]
MARKERS = ROOT["marker"]
UNBOUND = ROOT["unbound"]

WORKFLOWS = ROOT["workflow"]
RUNS = ROOT["run"]
LIVE = ROOT["live"]
ENDED = ROOT["ended"]
EXPIRIES = ROOT["expiry"]
STATES = ROOT["state"]
LABELED = ROOT["labeled"]
SHOWN = ROOT["shown"]
UPLOADS = ROOT["upload"]
NODES = ROOT["node"]
EDGES = ROOT["edge"]
STATUSES = ROOT["status"]
ATTEMPTS = ROOT["attempt"]
DEAD = ROOT["dead"]
APPROVALS = ROOT["approval"]
DECISIONS = ROOT["decision"]
AWAITING = ROOT["awaiting"]
SIGNALS = ROOT["signal"]
SIGNALS_KEPT = ROOT["signal_kept"]
CONTINUATIONS = ROOT["todo"]
CHILDREN = ROOT["child"]
COMPENSATE = ROOT["compensate"]
AGAIN = ROOT["again"]
CHECKPOINTS = ROOT["checkpoint"]
RESTORES = ROOT["restore"]
VALUES = ROOT["value"]

TIMERS = ROOT["timer"]
DUE = ROOT["due"]
PUBLISHED = ROOT["published"]

LOCKS = ROOT["lock"]
LOCK_QUEUES = ROOT["lock_queue"]
LOCK_OWNERS = ROOT["lock_owner"]
LOCK_COUNT = ROOT["lock_count"]

THREADS = ROOT["thread"]
THREAD_MESSAGES = ROOT["thread_message"]
THREAD_SENT = ROOT["thread_sent"]
THREAD_MEMBERS = ROOT["thread_member"]
THREAD_READERS = ROOT["thread_reader"]

HANDOFFS = ROOT["handoff"]

SPACES = ROOT["space"]
SPACE_VERSIONS = ROOT["space_version"]

SCHEDULES = ROOT["schedule"]
TRIGGERS = ROOT["trigger"]
BREAKERS = ROOT["breaker"]

AUDIT = ROOT["audit"]
AUDIT_OF = ROOT["audit_of"]
AUTONOMY = ROOT["autonomy"]
LEARNED = ROOT["learned"]

KEYS = ROOT["key"]
KEY_EXPIRIES = ROOT["key_expiry"]
REQUEST_ANSWERS = ROOT["answer"]
ANSWER_EXPIRIES = ROOT["answer_expiry"]
