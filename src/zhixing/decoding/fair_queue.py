"""A bounded queue that is fair to the keys: first come, first served within a key, and the keys take turns.

One user with a thousand requests so delays another's one request by one turn, not by a thousand. Not thread-safe: its
owner holds a lock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFullError(Exception):
    """As many requests wait as may wait: `limit` of them. The caller comes again later."""

    def __init__(self, limit: int, whose: str) -> None:
        self.limit = limit
        super().__init__(f"{limit} requests {whose} are waiting already")


class FairQueue(Generic[T]):
    """At most `most` items, and `most_of_key` of one key."""

    def __init__(self, most: int, most_of_key: int | None = None) -> None:
        self.most, self.most_of_key = most, most if most_of_key is None else most_of_key
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()  # the key whose turn it is stands first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    def push(self, key: Hashable, item: T) -> None:
        """QueueFullError if there is no place."""
        if self._count >= self.most:
            raise QueueFullError(self.most, "in all")
        if len(self._lines.get(key, ())) >= self.most_of_key:
            raise QueueFullError(self.most_of_key, "of this key")
        self._lines.setdefault(key, deque()).append(item)
        self._count += 1

    def head(self) -> T | None:
        """Whose turn it is."""
        return next(iter(self._lines.values()))[0] if self._lines else None

    def pop(self) -> T:
        """Take the head; its key's next turn is after that of all others."""
        return self._pop(next(iter(self._lines)))

    def pop_alike(self, alike: Callable[[T, T], bool], most: int) -> list[T]:
        """Take the head and, key by key in turn, those from the front of their lines that go with it: up to `most`."""
        found = [self.pop()]
        more = True
        while more and len(found) < most:
            more = False
            for key in list(self._lines):
                if len(found) < most and alike(found[0], self._lines[key][0]):
                    found.append(self._pop(key))
                    more = True
        return found

    def remove(self, leaves: Callable[[T], bool]) -> list[T]:
        """Take out, from wherever they stand, the items of which this is true."""
        gone: list[T] = []
        for key, line in list(self._lines.items()):
            stay: deque[T] = deque()
            for item in line:
                (gone if leaves(item) else stay).append(item)
            if stay:
                self._lines[key] = stay
            else:
                del self._lines[key]
        self._count -= len(gone)
        return gone

    def _pop(self, key: Hashable) -> T:
        line = self._lines[key]
        item = line.popleft()
        self._count -= 1
        if line:
            self._lines.move_to_end(key)
        else:
            del self._lines[key]
        return item
