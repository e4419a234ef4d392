"""The rows of one kind of kept thing in the store, written and read by the fields of its dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from dispatcher.ledger.versions import RowFormat
from dispatcher.ledger.workflows.queries import MAX_PAGE, Body, page_of
from dispatcher.store.keys import Element, Space
from dispatcher.store.transaction import KeyValue, Reads, Transaction


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Kept = TypeVar("Kept", bound=_Dataclass)


class Table(Generic[Kept]):
    """The rows of a dataclass, whose first `keys` fields are the key behind `space`; the others are the row."""

    def __init__(self, space: Space, form: RowFormat, kind: type[Kept], *, keys: int = 1) -> None:
        self.space = space
        self._form = form
        self._kind = kind
        names = [field.name for field in fields(kind)]
        self._keys, self._fields = names[:keys], names[keys:]

    def read(self, tr: Reads, *key: Element) -> Kept | None:
        """Return the thing that is kept under a key; None when there is none."""
        row = tr.get(self.space.pack(key))
        return None if row is None else self._kind(*key, *self._form.unpack(row))

    def read_many(self, tr: Reads, names: Sequence[str]) -> list[Kept | None]:
        """Return the things of which the names are the keys, read together; None for each that there is not."""
        keys = [self.space.pack((name,)) for name in names]
        rows = tr.get_many(keys)
        return [None if row is None else self.unpack((key, row)) for key, row in zip(keys, rows, strict=True)]

    def unpack(self, pair: KeyValue) -> Kept:
        """Decode a row with its key in the store."""
        key, row = pair
        return self._kind(*self.space.unpack(key), *self._form.unpack(row))

    def every(self, tr: Reads, *prefix: Element, limit: int = 0, reverse: bool = False) -> list[Kept]:
        """Return the things whose keys begin with the prefix, in the order of the keys; 0 for no limit."""
        return [*map(self.unpack, tr.get_range(*self.space.range(prefix), limit=limit, reverse=reverse))]

    def page(
        self, tr: Reads, body: Body, *prefix: Element, max_page: int = MAX_PAGE, large: bool = False
    ) -> tuple[list[Kept], Any]:
        """Return the page that a request asks for, and the cursor of the next one, as `page_of` does."""
        found, following = page_of(tr, self.space, prefix, body, max_page=max_page, large=large)
        return [*map(self.unpack, found)], following

    def write(self, tr: Transaction, kept: Kept) -> None:
        """Write a thing, in place of an earlier one of its key."""
        tr.set(self.space.pack(tuple(getattr(kept, name) for name in self._keys)), self._form.pack(self._row(kept)))

    def checked_size(self, kept: Kept) -> int:
        """Return the bytes of a thing's row.

        Raises:
            InvalidTask: when a value in it is nested too deep.
        """
        return len(self._form.pack_checked(self._row(kept)))

    def remove(self, tr: Transaction, *key: Element) -> None:
        """Remove the thing of a key, if there is one."""
        tr.clear(self.space.pack(key))

    def _row(self, kept: Kept) -> list[Any]:
        return [getattr(kept, name) for name in self._fields]


def report(kept: _Dataclass) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON values, for answers to requests."""
    return {field.name: getattr(kept, field.name) for field in fields(kept)}
