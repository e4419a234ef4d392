"""The window: the latest events of the fleet in numbered frames, and the gaps where events may be missing.

A number grows by one with each frame, and never comes again in this process. The id of a frame is the process's random
epoch and the number, so that a stream that reconnects elsewhere is not mistaken for one of this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coditect.model.event import Event
from coditect.wire.events import as_document
from coditect.wire.json import dumps

MOST_FRAMES = 10_000
MOST_BYTES = 16 * 2**20
GAP = "gap"
"""The name of a frame that says where events may be missing."""
END = "end"
"""The name of the last frame of a stream that the server ends."""
READ_AGAIN = "events may be missing here: read the state again"


@dataclass(frozen=True, slots=True)
class LiveFrame:
    """A message of the live stream: an event, or a notice: `gap` (events may be missing), `ping` or `end`."""

    id: str
    name: str
    """Empty for an event, else `gap`, `end` or `ping`."""
    body: bytes
    """The CloudEvent, or the reason, as JSON in one line."""
    event: Event | None = None


def notice(identity: str, name: str, reason: str, **facts: Any) -> LiveFrame:
    """Return a frame with a notice of the server in place of an event, such as `gap`, and its reason."""
    return LiveFrame(identity, name, dumps({"reason": reason, **facts}))


class LiveWindow:
    """The latest events and gap notices as numbered frames, bounded by number and bytes; the oldest are dropped."""

    def __init__(self, epoch: str, *, most_frames: int = MOST_FRAMES, most_bytes: int = MOST_BYTES) -> None:
        self.epoch = epoch
        self._most_frames = most_frames
        self._most_bytes = most_bytes
        self._frames: dict[int, LiveFrame] = {}
        self._bytes = 0
        self.newest = 0
        """The number of the last frame; 0 before the first."""
        self._oldest = 1

    def add(self, event: Event) -> None:
        """Append an event as the next frame; the oldest frames leave a window that is full."""
        self._append(LiveFrame(self.id_of(self.newest + 1), "", dumps(as_document(event)), event))

    def add_gap(self, reason: str) -> None:
        """Append a gap: events before this frame may be missing."""
        self._append(notice(self.id_of(self.newest + 1), GAP, reason, advice=READ_AGAIN))

    def _append(self, frame: LiveFrame) -> None:
        self.newest += 1
        self._frames[self.newest] = frame
        self._bytes += len(frame.body)
        while len(self._frames) > self._most_frames or (self._bytes > self._most_bytes and len(self._frames) > 1):
            self._bytes -= len(self._frames.pop(self._oldest).body)
            self._oldest += 1

    def id_of(self, number: int) -> str:
        """Return the id of the frame with a number: the process's epoch and the number."""
        return f"{self.epoch}-{number}"

    def holds_after(self, number: int) -> bool:
        """Tell whether the window still holds every frame numbered above `number`; False if `number` is yet to come."""
        return self._oldest <= number + 1 <= self.newest + 1

    def after(self, number: int, most: int) -> list[LiveFrame]:
        """Return in order up to `most` frames that follow the frame with a number; the window must hold them."""
        return [self._frames[one] for one in range(number + 1, min(self.newest, number + most) + 1)]

    def resume(self, last_id: str) -> tuple[int, str]:
        """Return the number of the frame after which a stream resumes, and why it misses frames (empty if none).

        `last_id` is the id of the last frame that the reader has; empty for a reader that has none.
        """
        if not last_id:
            return self.newest, ""
        epoch, _, digits = last_id.rpartition("-")
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else -1
        if epoch != self.epoch:
            return self.newest, "the last event is not of this process"
        if not self.holds_after(number):
            return self.newest, "the last event is older than what is kept"
        return number, ""
