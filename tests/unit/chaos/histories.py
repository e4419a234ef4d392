"""Histories of a fleet that kept every promise under faults, drawn by chance, and the lies that can be told in them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex
from chaos.checks.invariants import judge
from chaos.history import HistoryEntry, Type, merged
from chaos.load.parts.poison import SUICIDE

AGENTS = ("agent-1", "agent-2", "agent-3")
MOST_ATTEMPTS = 3
CALM_AT = 1_000.0
FREE_SLOT = "agent-1 had a slot for a p1, after 3 tasks"
STEADY, DYING = "4711", "4712"
"""Agents as the registry lists them."""


@dataclass(slots=True)
class Telling:
    """One workflow, or one direct task, as it comes to pass."""

    random: Random
    work: str
    shard: int
    t: float = 0.0
    entries: list[HistoryEntry] = field(default_factory=list)
    publication: int = 0

    def note(self, proc: str, type_: Type, f: str, key: str, **val: Any) -> None:
        self.t = round(self.t + self.random.uniform(0.0001, 0.05), 6)
        self.entries.append(HistoryEntry(self.t, proc, type_, f, key, val))

    def whole(self, proc: str, f: str, key: str, **val: Any) -> None:
        self.note(proc, Type.INVOKE, f, key, **val)
        self.note(proc, Type.OK, f, key)

    @property
    def version(self) -> int:
        return round(self.t * 1_000_000)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def claim(self, proc: str, key: str, fence: int, *, known: bool = True) -> None:
        self.publication += 1
        facts = {"shard": self.shard, "fence": fence, "publication": self.publication}
        change = self.whole if known else lambda *where, **val: self.note(where[0], Type.INVOKE, *where[1:], **val)
        change(proc, "claim", key, **facts, version=self.version)
        change(proc, "state", key, state="published", fence=fence, attempt=1, version=self.version)
        if known:
            self.whole(proc, "publish", key, **facts)

    def run(self, key: str, fence: int, attempt: int, *, last: bool) -> tuple[bool, Callable[[], None]]:
        """Whether it gave a value, and what a zombie says later."""
        agent = self.random.choice(AGENTS)
        said = {"agent": agent, "attempt": attempt, "fence": fence}
        self.note(agent, Type.INVOKE, "execute", key, **said)
        drawn = 1.0 if last else self.random.random()
        if drawn < 0.15:
            self.note("chaos", Type.INVOKE, "kill", agent, kind="agent.kill")
            self.note("chaos", Type.OK, "kill", agent)
            return False, lambda: None
        if drawn < 0.3:
            self.note("chaos", Type.INVOKE, "stop", agent, kind="agent.stop")
            return False, lambda: self._zombie(agent, key, said)
        if drawn < 0.45 or (last and self.chance(0.2)):
            self.note(agent, Type.FAIL, "execute", key)
            return False, lambda: None
        self.note(agent, Type.OK, "execute", key)
        return True, lambda: None

    def _zombie(self, agent: str, key: str, said: dict[str, Any]) -> None:
        self.note("chaos", Type.OK, "stop", agent)
        self.note(agent, Type.OK, "execute", key)
        self.note("dispatcher-2", Type.OK, "ack", key, fence=said["fence"], publication=0)

    def node(self, key: str) -> None:
        fence, later = 0, []
        for attempt in range(1, MOST_ATTEMPTS + 1):
            if self.chance(0.2):  # a dispatcher dies in its commit, and it is not known whether that happened
                self.claim("dispatcher-1", key, fence + 1, known=False)
                self.whole("chaos", "kill", "dispatcher-1", kind="dispatcher.kill")
            fence += 1
            proc = self.random.choice(("dispatcher-1", "dispatcher-2"))
            self.claim(proc, key, fence)
            value, afterwards = self.run(key, fence, attempt, last=attempt == MOST_ATTEMPTS)
            later.append(afterwards)
            if value or attempt == MOST_ATTEMPTS:
                break
        state = "completed" if value else "failed"
        self.whole(proc, "state", key, state=state, fence=fence, attempt=attempt, version=self.version)
        self.note(proc, Type.OK, "ack", key, fence=fence, publication=self.publication)
        for afterwards in later:
            afterwards()
        self.result(key, state, fence)

    def executed(self, key: str, **given: Any) -> None:
        """A node from its claim to its value, at once."""
        self.claim("dispatcher-1", key, 1)
        self.note("agent-1", Type.INVOKE, "execute", key, agent="agent-1", attempt=1, fence=1, **given)
        self.note("agent-1", Type.OK, "execute", key)
        self.whole("dispatcher-1", "state", key, state="completed", fence=1, attempt=1, version=self.version)
        self.result(key, "completed", 1)

    def failed(self, key: str, attempts: int) -> None:
        """A node each attempt of which fails on purpose."""
        for fence in range(1, attempts + 1):
            self.claim("dispatcher-1", key, fence)
            self.note("agent-1", Type.INVOKE, "execute", key, agent="agent-1", attempt=fence, fence=fence)
            self.note("agent-1", Type.FAIL, "execute", key)
        said = {"state": "failed", "fence": attempts, "attempt": attempts, "version": self.version}
        self.whole("dispatcher-1", "state", key, **said)
        self.result(key, "failed", attempts)

    def result(self, key: str, state: str, fence: int) -> None:
        known: dict[str, Any] = {"state": state, "fence": fence}
        if state == "completed":
            known |= {"completed": 1, "by": fence, "maker": "whoever", "token": f"token of {key}"}
            self.note("reader", Type.OK, "effect", key, token=f"token of {key}")
        self.note("reader", Type.OK, "result", key, **known)

    def workflow(self, nodes: dict[str, list[str]]) -> None:
        facts = {"nodes": nodes, "most": MOST_ATTEMPTS, "ends": ["completed"]}
        self.note("client", Type.INVOKE, "accept", self.work, **facts)
        self.note("client", Type.OK, "accept", self.work)
        for name in nodes:
            self.node(f"{self.work}:{name}")
        self.end("completed")

    def direct(self, priority: str = "p1") -> None:
        facts = {"most": MOST_ATTEMPTS, "ends": ["completed"], "priority": priority}
        self.note("client", Type.INVOKE, "accept", self.work, **facts)
        self.note("client", Type.OK, "accept", self.work)
        agent = self.random.choice(AGENTS)
        self.whole(agent, "execute", self.work, agent=agent, attempt=1, fence=1)
        self.note("reader", Type.OK, "effect", self.work, token="it")
        self.end("completed")

    def end(self, state: str) -> None:
        self.note("client", Type.OK, "end", self.work, state=state)
        self.note("reader", Type.OK, "census", self.work, state=state)


def clean_history(random: Random) -> list[HistoryEntry]:
    """Workflows and tasks side by side, each with faults of its own; no promise is broken. At least one workflow."""
    entries: list[HistoryEntry] = []
    for number in range(random.randint(1, 3)):
        names = [f"n{place}" for place in range(random.randint(2, 6))]
        edges = {
            name: random.sample(names[:place], min(place, random.randint(1, 2))) for place, name in enumerate(names)
        }
        telling = Telling(random, f"workflow{number}", shard=number)
        telling.workflow(edges)
        entries += telling.entries
    for number in range(random.randint(1, 3)):
        telling = Telling(random, f"task{number}", shard=99)
        telling.direct()
        entries += telling.entries
    for number, priority in enumerate(("p0", "p2")):
        telling = Telling(random, f"calm{number}", shard=99, t=CALM_AT)
        telling.direct(priority)
        entries += telling.entries
    return merged(
        [
            *entries,
            *looks(random),
            *asked(),
            *canceled(),
            *undone(),
            *leased(),
            *locked(),
            *coordinated(CALM_AT + 320.0),
            *probed(),
            *ticked(),
            *waited(),
            *policed(),
            *idle(CALM_AT + 400.0, 0.05),
            *struck("agent.kill"),
            *died(),
            *poisoned(),
        ]
    )


LOCK, PROBED, SCHEDULE, WAITED, POLICED = "lock:0", "chaos", "schedule-1", "waited", "policed"
TICKS = ("run-0", "run-1", "run-2")
QUEUE, STRANGER = "tasks.chaos.work.p1", "stranger-1"
ASKED, CANCELED, STRUCK, SAGA = "asked", "canceled", "struck", "saga"
DIED = "workflow9:n0"
POISON = "poison"
"""Workflows of which a client wanted more than that they run."""


def asked() -> list[HistoryEntry]:
    """A workflow that was started twice by its key, and paused; one node is to be skipped, and one to fail."""
    telling = Telling(Random(0), ASKED, shard=7, t=CALM_AT + 100.0)
    facts = {
        "nodes": {"first": [], "skipped": ["first"], "after": ["first"], "hopeless": []},
        "levels": {"first": "p0", "after": "p2"},
        "inputs": {"first": [], "after": ["first"]},
        "meant": {"skipped": ["skipped"], "after": ["completed"], "hopeless": ["failed", "dead"]},
        "most": MOST_ATTEMPTS,
        "few": {"hopeless": 2},
        "ends": ["completed"],
    }
    telling.note("client", Type.INVOKE, "submit", "key")
    telling.note("client", Type.OK, "submit", "key", run=ASKED)
    telling.note("client", Type.OK, "submit", "key", run=ASKED)
    telling.note("client", Type.OK, "accept", ASKED, **facts)
    telling.executed(f"{ASKED}:first", priority="p0", after=[])
    telling.failed(f"{ASKED}:hopeless", 2)
    telling.whole("client", "pause", ASKED)
    telling.whole("client", "resume", ASKED)
    telling.executed(f"{ASKED}:after", priority="p2", after=[f"token of {ASKED}:first"])
    telling.note("reader", Type.OK, "result", f"{ASKED}:skipped", state="skipped", fence=0)
    telling.note("client", Type.OK, "end", ASKED, state="completed")
    telling.note("reader", Type.OK, "census", ASKED, state="completed", submitted="key")
    telling.note("reader", Type.OK, "audit", "ledger", rows=4, wrong=[])
    telling.note("chaos", Type.OK, "left", QUEUE, messages=0)
    telling.note("chaos", Type.INVOKE, "stranger", STRANGER, what="deep errors")
    telling.whole("agent-1", "execute", STRANGER, agent="agent-1", attempt=1, fence=1)
    return telling.entries


def canceled() -> list[HistoryEntry]:
    """A workflow that was canceled after its first node."""
    telling = Telling(Random(0), CANCELED, shard=8, t=CALM_AT + 200.0)
    telling.note("client", Type.OK, "accept", CANCELED, nodes={"first": [], "second": ["first"]}, ends=["canceled"])
    telling.executed(f"{CANCELED}:first")
    telling.whole("client", "cancel", CANCELED)
    telling.note("client", Type.OK, "end", CANCELED, state="canceled")
    telling.note("reader", Type.OK, "census", CANCELED, state="canceled")
    return telling.entries


def undone() -> list[HistoryEntry]:
    """A workflow whose third node failed, and whose first two nodes were undone."""
    telling = Telling(Random(0), SAGA, shard=11, t=CALM_AT + 250.0)
    edges = {"one": [], "two": ["one"], "doomed": ["two"], "two.compensate": ["two"], "one.compensate": ["one"]}
    facts = {"nodes": edges, "undo": ["one", "two"], "few": {"doomed": 1}, "ends": ["compensated"]}
    telling.note("client", Type.OK, "accept", SAGA, most=MOST_ATTEMPTS, **facts)
    telling.executed(f"{SAGA}:one")
    telling.executed(f"{SAGA}:two")
    telling.failed(f"{SAGA}:doomed", 1)
    telling.executed(f"{SAGA}:two.compensate")
    telling.executed(f"{SAGA}:one.compensate")
    telling.end("compensated")
    return telling.entries


def leased() -> list[HistoryEntry]:
    """A shard that goes from one dispatcher to another."""
    telling = Telling(Random(0), "", shard=9, t=CALM_AT + 300.0)
    for epoch, owner in enumerate(("one", "", "two"), 1):
        telling.whole(owner, "lease", "shard-9", owner=owner, epoch=max(1, epoch - 1), version=telling.version)
    return telling.entries


def locked() -> list[HistoryEntry]:
    """A lock that is held in turns; its second holder stood still, lost it, and says so while the third has it."""
    facts = {fence: {"task": f"task-{fence}", "fence": fence} for fence in (3, 5, 8)}
    told = ((0, 3, Type.INVOKE), (1, 3, Type.OK), (2, 5, Type.INVOKE), (9, 8, Type.INVOKE), (10, 5, Type.INFO))
    tickets = [
        HistoryEntry(
            CALM_AT + 300.0, "dispatcher-1", Type.OK, "ticket", "agent", {"ticket": f"{fence}", "place": fence}
        )
        for fence in facts
    ]
    return tickets + [
        HistoryEntry(CALM_AT + 300.0 + t, f"agent-{fence}", type_, "hold", LOCK, facts[fence])
        for t, fence, type_ in (*told, (11, 8, Type.OK))
    ]


def probed() -> list[HistoryEntry]:
    """A dependency that two probes of the fleet call, one in each interval, and one that a process made by itself."""
    return [
        HistoryEntry(CALM_AT + 600.0 + number, f"agent-{number}", type_, "call", PROBED, {"permit": permit})
        for number, permit in enumerate((10_000, 11_500, 0))
        for type_ in (Type.INVOKE, Type.FAIL)
    ]


def ticked() -> list[HistoryEntry]:
    """A schedule with three ticks, each of which started one workflow."""
    telling = Telling(Random(0), SCHEDULE, shard=12, t=CALM_AT + 610.0)
    telling.whole("client", "schedule", SCHEDULE)
    entries = telling.entries
    for number, run in enumerate(TICKS):
        telling = Telling(Random(0), run, shard=20 + number, t=CALM_AT + 620.0 + number)
        facts = {"nodes": {"ticked": []}, "schedule": SCHEDULE, "ends": ["completed"]}
        telling.note("client", Type.OK, "accept", run, most=MOST_ATTEMPTS, **facts)
        telling.executed(f"{run}:ticked", after=[f"2026-01-01T00:00:0{number}+00:00"])
        telling.end("completed")
        entries += telling.entries
    return entries


def waited() -> list[HistoryEntry]:
    """A workflow with a node that waits for a second, and another that is given two signals, one of them sent twice."""
    telling = Telling(Random(0), WAITED, shard=13, t=CALM_AT + 640.0)
    edges = {"first": [], "pause": ["first"], "later": ["pause"], "go": ["first"], "on": ["go"], "heard": ["go", "on"]}
    facts = {"nodes": edges, "timers": {"pause": [1_000, "first", "later"]}, "signals": ["go", "on"]}
    telling.note("client", Type.OK, "accept", WAITED, most=MOST_ATTEMPTS, ends=["completed"], **facts)
    telling.executed(f"{WAITED}:first")
    for token in ("one", "one", "two"):
        telling.whole("client", "signal", WAITED, token=token)
    for state in ("waiting", "completed"):
        for node in ("pause", "go", "on"):
            facts = {"state": state, "fence": 0, "attempt": 1, "version": telling.version}
            telling.whole("dispatcher-1", "state", f"{WAITED}:{node}", **facts)
        telling.t += 0.5
    telling.executed(f"{WAITED}:later")
    telling.executed(f"{WAITED}:heard", after=["one", "two"])
    telling.end("completed")
    return telling.entries


def policed() -> list[HistoryEntry]:
    """A workflow with a node that a client granted, one that the policy allowed, and one that it refused."""
    telling = Telling(Random(0), POLICED, shard=14, t=CALM_AT + 660.0)
    rules = {"asked": "asked", "allowed": "allowed", "forbidden": "forbidden"}
    facts = {"nodes": {node: [] for node in rules}, "policed": rules, "meant": {"forbidden": ["rejected"]}}
    telling.note("client", Type.OK, "accept", POLICED, most=MOST_ATTEMPTS, ends=["completed"], **facts)
    telling.whole("client", "grant", f"{POLICED}:asked")
    telling.executed(f"{POLICED}:asked")
    telling.executed(f"{POLICED}:allowed")
    for node, said in (("asked", "asked "), ("asked", "granted chaos"), ("allowed", "granted policy")):
        decision, _, by = said.partition(" ")
        telling.note("reader", Type.OK, "decision", f"{POLICED}:{node}", decision=decision, by=by)
    telling.note("reader", Type.OK, "result", f"{POLICED}:forbidden", state="rejected", fence=0)
    telling.end("completed")
    return telling.entries


def span(
    begun: float, ended: float, proc: str, f: str, key: str, outcome: Type = Type.OK, **facts: Any
) -> list[HistoryEntry]:
    """Something that a process did from then to then."""
    return [HistoryEntry(begun, proc, Type.INVOKE, f, key, facts), HistoryEntry(ended, proc, outcome, f, key, facts)]


def indexed(*entries: HistoryEntry) -> HistoryIndex:
    return HistoryIndex(merged(entries))


def judged(invariant: str, *entries: HistoryEntry) -> CheckResult:
    """What the checker of this invariant says of these entries, in the order of their times."""
    return next(one for one in judge(merged(entries)) if one.invariant == invariant)


def idle(begun: float, seconds: float) -> list[HistoryEntry]:
    """A slot that is free beside a task for so long."""
    return span(begun, begun + seconds, "chaos", "idle", FREE_SLOT)


def struck(kind: str, *, published: float = -0.1, executed: float = 0.9) -> list[HistoryEntry]:
    """A node that one fault alone met: both so many seconds after it began."""
    t, key = CALM_AT + 500.0, f"{STRUCK}:only"
    post, _, act = kind.partition(".")
    post = {"agent": f"{STRUCK}-agent", "broker": f"agent-{STRUCK}" if act == "part" else post}.get(post, post)
    facts = {"nodes": {"only": []}, "most": 3, "ends": ["completed"]}
    claim = {"shard": 10, "fence": 1, "publication": 1, "version": 10**9}
    ran = {"agent": "agent-1", "attempt": 1, "fence": 1}
    return [
        HistoryEntry(t - 1.0, "client", Type.OK, "accept", STRUCK, facts),
        *look(t - 0.5, [STEADY], running=[STEADY], at_work=[STEADY]),
        *span(t, t + 0.5, "chaos", act, post, kind=kind),
        HistoryEntry(t + published, "dispatcher-1", Type.OK, "claim", key, claim),
        HistoryEntry(t + executed, "agent-1", Type.OK, "execute", key, ran),
        HistoryEntry(t + executed, "client", Type.OK, "end", STRUCK, {"state": "completed"}),
        HistoryEntry(t + executed, "reader", Type.OK, "census", STRUCK, {"state": "completed"}),
    ]


def died() -> list[HistoryEntry]:
    """An attempt that was lost with its agent, which was killed."""
    t, facts = CALM_AT + 600.0, {"agent": "agent-3-0a1b2c3d", "fence": 1, "version": 10**9}
    return [
        *span(t, t + 0.5, "chaos", "kill", "agent-3", kind="agent.kill"),
        HistoryEntry(t + 4.0, "dispatcher-1", Type.OK, "died", DIED, facts),
    ]


def poisoned() -> list[HistoryEntry]:
    """A task that ended two agents in an orderly way, and then its own process."""
    telling = Telling(Random(0), POISON, shard=99, t=CALM_AT + 630.0)
    telling.note("client", Type.OK, "accept", POISON, most=2, ends=["failed"], poison=SUICIDE)
    for agent in ("agent-7", "agent-8"):
        telling.note(agent, Type.INVOKE, "execute", POISON, agent=agent, attempt=1, fence=1)
        telling.note(agent, Type.FAIL, "execute", POISON)
        telling.note("chaos", Type.INVOKE, "restart", agent, kind="agent.end")
        telling.note(agent, Type.OK, "terminate", POISON)
        telling.note("chaos", Type.OK, "restart", agent)
    telling.note("client", Type.OK, "failed", POISON, reason="process_died")
    telling.end("failed")
    return telling.entries


def look(
    t: float, listed: Collection[str] | None, *, running: Collection[str], at_work: Collection[str]
) -> list[HistoryEntry]:
    """One look at the registry; None was listed where it was not there."""
    begun = HistoryEntry(t, "chaos", Type.INVOKE, "look", "registry", {"running": [*running], "at_work": [*at_work]})
    end = (Type.FAIL, {}) if listed is None else (Type.OK, {"listed": [*listed]})
    return [begun, HistoryEntry(t + 0.01, "chaos", end[0], "look", "registry", end[1])]


def looks(random: Random) -> list[HistoryEntry]:
    """One agent lives, another dies, and is listed until its lease has lapsed."""
    died_at, lease = random.uniform(3.0, 8.0), random.uniform(2.0, 3.0)
    found: list[HistoryEntry] = []
    for second in range(20):
        t = second + random.uniform(0.0, 0.3)
        living = [STEADY, *([DYING] if t < died_at else [])]
        found += look(t, [STEADY, *([DYING] if t < died_at + lease else [])], running=living, at_work=living)
    return found


# Lies


def drop(entries: list[HistoryEntry], *, f: str, key: str) -> list[HistoryEntry]:
    return [one for one in entries if (one.f, one.key) != (f, key)]


def moved(entries: list[HistoryEntry], *, f: str, type_: Type, key: str, to: float) -> list[HistoryEntry]:
    """The first such entry at another time."""
    found = next(one for one in entries if (one.f, one.type, one.key) == (f, type_, key))
    return merged([replace(found, t=to), *(one for one in entries if one is not found)])


def added(entries: list[HistoryEntry], *, proc: str, f: str, key: str, **val: Any) -> list[HistoryEntry]:
    """Something that was done at the very end, from beginning to end."""
    t = entries[-1].t + 100.0
    return [*entries, *span(t, t + 0.01, proc, f, key, **val)]


def changed(entries: list[HistoryEntry], *, f: str, key: str, **val: Any) -> list[HistoryEntry]:
    """Every such entry with other facts."""
    return [replace(one, val={**one.val, **val}) if (one.f, one.key) == (f, key) else one for one in entries]


Lie = Callable[[list[HistoryEntry], str, str], list[HistoryEntry]]
"""Makes a false history of a clean one, about a node and its workflow."""
NODE, WORK = "{node}", "{work}"
"""The keys of that node and of its workflow."""


def altered(f: str, key: str, **val: Any) -> Lie:
    return lambda all_, node, work: changed(all_, f=f, key=key.format(node=node, work=work), **val)


def dropped(f: str, key: str) -> Lie:
    return lambda all_, node, work: drop(all_, f=f, key=key.format(node=node, work=work))


def appended(f: str, key: str, *, proc: str = "other", **val: Any) -> Lie:
    return lambda all_, node, work: added(all_, proc=proc, f=f, key=key.format(node=node, work=work), **val)


def unended(f: str) -> Lie:
    return lambda all_, node, work: [one for one in all_ if (one.f, one.type) != (f, Type.OK)]


CONTESTED, THREAD, VOTE = "contested", "thread", "voted"
GATE = f"{CONTESTED}:gate"
LISTENER = "bob"
TRIGGER, RUNS = "trigger", ("run-of-1", "run-of-2")
PARENT, CHILD = "parent", "its-child"
RATED, STREAM = "chaos.rated", "streamed"
RESTORED, ASKED_BY = "restored", "its-restore"
QUORUM = "quorum"


class Story:
    """A history that is told one entry after the other, a hundredth of a second apart."""

    def __init__(self, at: float) -> None:
        self.entries: list[HistoryEntry] = []
        self._at = at

    def note(self, proc: str, type_: Type, f: str, key: str, **val: Any) -> None:
        self._at = round(self._at + 0.01, 6)
        self.entries.append(HistoryEntry(self._at, proc, type_, f, key, val))

    def whole(self, proc: str, f: str, key: str, **val: Any) -> None:
        self.note(proc, Type.INVOKE, f, key, **val)
        self.note(proc, Type.OK, f, key)

    def work(self, key: str, state: str, **facts: Any) -> None:
        """A workflow, of whose nodes nothing is told, from its acceptance to its end."""
        self.note("client", Type.OK, "accept", key, ends=[state], **facts)
        self.note("client", Type.OK, "end", key, state=state)
        self.note("reader", Type.OK, "census", key, state=state)


def contested(at: float) -> list[HistoryEntry]:
    """An approval that one person granted and another one denied a moment later."""
    story = Story(at)
    story.work(CONTESTED, "completed", contested={"gate": "next"})
    for by, granted, type_ in (("ada", True, Type.OK), ("bob", False, Type.FAIL)):
        said = {"node": GATE, "by": by, "granted": granted}
        story.note("client", Type.INVOKE, "answer", f"{GATE}:{by}", **said)
        story.note("client", type_, "answer", f"{GATE}:{by}", **said)
    story.whole("agent-1", "execute", f"{CONTESTED}:next")
    for decision, by in (("asked", ""), ("granted", "ada")):
        story.note("reader", Type.OK, "decision", GATE, decision=decision, by=by)
    story.note("reader", Type.OK, "result", GATE, state="completed", fence=0)
    return story.entries


def talked(at: float) -> list[HistoryEntry]:
    """A thread of three messages, of which a listener hears the last one in a second loop."""
    story = Story(at)
    story.note("client", Type.INVOKE, "talk", THREAD, listener=LISTENER)
    story.note("client", Type.INVOKE, "listen", f"{THREAD}/1", thread=THREAD)
    for number, text in enumerate(("one", "two", "three"), 1):
        story.note("client", Type.INVOKE, "say", f"{THREAD}/{text}", thread=THREAD, text=text)
        story.note("client", Type.OK, "say", f"{THREAD}/{text}", number=number)
        loop = f"{THREAD}/{1 if number < 3 else 2}"
        story.note("client", Type.OK, "hear", loop, thread=THREAD, number=number, text=text)
        story.note("reader", Type.OK, "message", THREAD, number=number, text=text)
    story.note("client", Type.OK, "talk", THREAD)
    story.note("reader", Type.OK, "receipt", f"{THREAD}/{LISTENER}", number=3)
    return story.entries


def voted(at: float) -> list[HistoryEntry]:
    """A vote that two of three voters answered, with one mind."""
    story = Story(at)
    story.work(VOTE, "completed", ballots={"vote_1": "yes", "vote_2": "no", "vote_3": "yes"})
    for node, state in (("vote_1", "completed"), ("vote_2", "failed"), ("vote_3", "completed")):
        story.note("reader", Type.OK, "result", f"{VOTE}:{node}", state=state, fence=1)
    story.note("client", Type.OK, "verdict", VOTE, value="yes")
    return story.entries


def triggered(at: float) -> list[HistoryEntry]:
    """A trigger with two events, each of which started a workflow."""
    story = Story(at)
    story.note("client", Type.INVOKE, "trigger", TRIGGER)
    for number, run in enumerate(RUNS):
        story.whole("client", "event", f"event-{number}", trigger=TRIGGER)
        story.work(run, "completed", trigger=TRIGGER)
        story.whole("agent-1", "execute", f"{run}:triggered", after=[f"event-{number}"])
    story.note("client", Type.OK, "trigger", TRIGGER)
    return story.entries


def parented(at: float) -> list[HistoryEntry]:
    """A workflow whose node runs a child, and whose next node is given what the child made."""
    story = Story(at)
    story.work(PARENT, "completed", children={"sub": ["made", "last"]})
    story.work(CHILD, "completed", parent=f"{PARENT}:sub", nodes={"made": []})
    for version, key in enumerate((f"{CHILD}:made", f"{PARENT}:sub"), 1):
        story.whole("dispatcher-1", "state", key, state="completed", fence=1, attempt=1, version=version)
    story.note("reader", Type.OK, "effect", f"{CHILD}:made", token="its token")
    story.whole("agent-1", "execute", f"{PARENT}:last", after=["its token"])
    return story.entries


def rated(at: float) -> list[HistoryEntry]:
    """Executions of a capability with a rate, as many as its burst."""
    story = Story(at)
    for number in range(2):
        story.note("agent-1", Type.OK, "begin", RATED, task=f"task-{number}", per_second=1, burst=2)
    return story.entries


def streamed(at: float) -> list[HistoryEntry]:
    """A result in two parts, which began again after the first one."""
    story = Story(at)
    story.note("client", Type.INVOKE, "stream", STREAM, parts=2)
    story.note("client", Type.OK, "given", STREAM, part="first/0")
    story.note("client", Type.OK, "restarted", STREAM)
    for number in range(2):
        story.note("client", Type.OK, "given", STREAM, part=f"second/{number}")
    story.note("client", Type.OK, "stream", STREAM)
    return story.entries


def restored(at: float) -> list[HistoryEntry]:
    """A workflow that was restored to its first node after its end: two nodes were undone, and three ran again."""
    story, versions = Story(at), count(1)
    steps = {"mark": [], "left": ["mark"], "join": ["left"], "last": ["join"]}
    nodes = {**steps, "left.compensate": ["left"], "last.compensate": ["last"]}
    facts = {"nodes": nodes, "most": 5, "discards": {"mark": ["left", "join", "last"]}}
    story.note("client", Type.OK, "accept", RESTORED, ends=["completed"], **facts)

    def ran(node: str, fence: int, *given: str, **saw: Any) -> None:
        key, version = f"{RESTORED}:{node}", next(versions)
        number = {"shard": 30, "publication": version}
        story.whole("dispatcher-1", "claim", key, fence=fence, version=version, **number)
        story.note("agent-1", Type.INVOKE, "execute", key, fence=fence, attempt=1, after=[*given])
        if saw:
            story.note("agent-1", Type.OK, "saw", key, fence=fence, **saw)
        story.note("agent-1", Type.OK, "execute", key, fence=fence)
        end = {"state": "completed", "fence": fence, "attempt": 1, "version": next(versions)}
        story.whole("dispatcher-1", "state", key, **end)

    def all_ran(fence: int) -> None:
        mark, left, join = made("mark", 1), made("left", fence), made("join", fence)
        ran("left", fence, mark, trail={"mark": mark}, there=mark)
        ran("join", fence, left, trail={"mark": mark, "left": left}, there=mark)
        ran("last", fence, join, trail={"mark": mark, "left": left, "join": join}, there=None)

    ran("mark", 1, trail={}, there=None)
    all_ran(1)
    asked = {"by": ASKED_BY, "checkpoint": "mark", "named": ["left", "join", "last"]}
    story.note("client", Type.INVOKE, "restore", RESTORED, **asked, undone=["left", "last"])
    row = {"number": 1, "by": ASKED_BY, "checkpoint": "mark", "version": next(versions)}
    story.whole("dispatcher-1", "restored", RESTORED, **row)
    story.note("client", Type.OK, "restore", RESTORED, by=ASKED_BY)
    ran("last.compensate", 1, made("last", 1))
    ran("left.compensate", 1, made("left", 1))
    all_ran(3)
    story.note("client", Type.OK, "end", RESTORED, state="completed")
    story.note("reader", Type.OK, "census", RESTORED, state="completed")
    story.note("reader", Type.OK, "restores", RESTORED, by=[ASKED_BY])
    for node in steps:
        fence = 1 if node == "mark" else 3
        told = {"state": "completed", "fence": fence, "by": fence, "maker": "agent-1", "token": None}
        story.note("reader", Type.OK, "result", f"{RESTORED}:{node}", **told)
    return story.entries


def joined(at: float) -> list[HistoryEntry]:
    """A quorum of two of three members: the first and the last one completed, and the other one was canceled."""
    story = Story(at)
    members = [f"member_{number}" for number in (1, 2, 3)]
    story.work(QUORUM, "completed", members=members, enough=2)
    for version, node in enumerate((*members, "result"), 1):
        claim = {"shard": 31, "fence": 1, "publication": version, "version": version}
        story.whole("dispatcher-1", "claim", f"{QUORUM}:{node}", **claim)
    for node, state in (("member_1", "completed"), ("member_2", "canceled"), ("member_3", "completed")):
        if state == "completed":
            story.whole("agent-1", "execute", f"{QUORUM}:{node}", fence=1)
        story.note("reader", Type.OK, "result", f"{QUORUM}:{node}", state=state, fence=1)
    values = [f"{QUORUM}:{node}@1" for node in ("member_1", "member_3")]
    story.note("client", Type.OK, "joined", QUORUM, values=values)
    return story.entries


def made(node: str, fence: int) -> str:
    """What the execution of a node of the restored workflow makes."""
    return f"{RESTORED}:{node}@{fence}"


def coordinated(at: float) -> list[HistoryEntry]:
    """All of that, and tasks of a key, from an instant on."""
    stories = (keyed, contested, talked, voted, triggered, parented, rated, streamed, restored, joined)
    return [entry for number, story in enumerate(stories) for entry in story(at + 5.0 * number)]


KEY = {"alone": "key-0"}


def ran_alone(task: str, agent: str, begun: float, ended: float) -> list[HistoryEntry]:
    """A task of the key that an agent executes to its end."""
    return [
        HistoryEntry(begun, agent, Type.INVOKE, "execute", task, KEY),
        HistoryEntry(ended, agent, Type.OK, "execute", task, KEY),
    ]


def keyed(at: float) -> list[HistoryEntry]:
    """Two tasks of one key, of which the second begins when the first has ended."""
    return [*ran_alone("keyed-1", "agent-9", at, at + 1.0), *ran_alone("keyed-2", "agent-9", at + 1.1, at + 2.0)]


def keyed_beside(entries: list[HistoryEntry]) -> list[HistoryEntry]:
    """The same, with a third task that another agent executes beside the first."""
    (first, *_) = (one for one in entries if one.key == "keyed-1")
    beside = ran_alone("keyed-3", "agent-8", first.t + 0.5, first.t + 0.6)
    return sorted([*entries, *beside], key=lambda one: one.t)
