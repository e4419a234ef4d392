"""The routing of messages in memory: exchanges, bindings and their matching rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from coditect.broker.topology import Binding, Exchange, ExchangeType
from coditect.errors import NotFound, TopologyMismatch

DEFAULT = ""
"""The name of the default exchange, to which every queue is bound under its own name."""


class Exchanges:
    """The exchanges of one in-memory broker, with their bindings."""

    def __init__(self) -> None:
        self._exchanges: dict[str, Exchange] = {}
        self._bindings: dict[str, dict[Binding, None]] = {}

    def declare(self, exchange: Exchange) -> None:
        """Create an exchange in the in-memory broker unless it exists; idempotent.

        Raises:
            TopologyMismatch: when it exists with another type or alternate exchange.
        """
        known = self._exchanges.setdefault(exchange.name, exchange)
        if known != exchange:
            raise TopologyMismatch("The exchange exists with other arguments", entity=exchange.name)
        self._bindings.setdefault(exchange.name, {})

    def bind(self, binding: Binding) -> None:
        """Bind a queue to an exchange with a routing key; idempotent.

        Raises:
            NotFound: when there is no such exchange.
        """
        self._bindings_of(binding.exchange)[binding] = None

    def unbind(self, binding: Binding) -> None:
        """Remove a binding between a queue and an exchange; idempotent."""
        self._bindings.get(binding.exchange, {}).pop(binding, None)

    def delete(self, name: str) -> None:
        """Delete an exchange and its bindings; idempotent."""
        self._exchanges.pop(name, None)
        self._bindings.pop(name, None)

    def unbind_queue(self, queue: str) -> None:
        """Remove all bindings of a deleted queue."""
        for bindings in self._bindings.values():
            for binding in [one for one in bindings if one.queue == queue]:
                del bindings[binding]

    def route(self, exchange: str, keys: Iterable[str], queues: Iterable[str]) -> tuple[str, ...]:
        """Return the queues to which an exchange, else its alternate exchange, routes any of the keys.

        Each queue is named once.

        Raises:
            NotFound: when there is no such exchange.
        """
        keys = tuple(keys)
        if exchange == DEFAULT:
            known = set(queues)
            return tuple(dict.fromkeys(key for key in keys if key in known))
        tried: set[str] = set()
        name: str | None = exchange
        while name is not None and name not in tried:
            found = tuple(dict.fromkeys(self._matches(name, keys)))
            if found:
                return found
            tried.add(name)
            alternate = self._exchanges[name].alternate
            name = alternate if alternate in self._exchanges else None
        return ()

    def _matches(self, exchange: str, keys: tuple[str, ...]) -> Iterator[str]:
        bindings = self._bindings_of(exchange)
        match self._exchanges[exchange].type:
            case ExchangeType.FANOUT:
                yield from (binding.queue for binding in bindings)
            case ExchangeType.DIRECT:
                yield from (binding.queue for binding in bindings if binding.key in keys)
            case ExchangeType.TOPIC:
                yield from (
                    binding.queue for binding in bindings if any(topic_matches(binding.key, key) for key in keys)
                )

    def _bindings_of(self, exchange: str) -> dict[Binding, None]:
        try:
            return self._bindings[exchange]
        except KeyError:
            raise NotFound("The broker has no such exchange or queue", entity=exchange) from None


@lru_cache(maxsize=4096)
def topic_matches(pattern: str, key: str) -> bool:
    """Tell whether a topic pattern matches a key: ``*`` is exactly one word, ``#`` any number of words."""
    return _words_match(_words(pattern), _words(key))


def _words(key: str) -> tuple[str, ...]:
    return tuple(key.split(".")) if key else ()


def _words_match(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_words_match(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _words_match(rest, words[1:])
