"""What earlier prompts of a key left behind: a prompt that begins as one of them goes on from its state.

A prompt is cut in chunks of equal length, and what a model's state learnt from a chunk (`Pieced` of protocol.py) hangs
on the way that leads to it: a tree for each key, in which prompts that begin alike share their beginning. For example
chunks of 2, the prompts a b c d e and a b x y: ab is kept once, cd and xy hang on it, and e, no whole chunk, nowhere.

Nothing of one key can be reached from another: neither what was written, nor how long a prompt takes to be read, tells
a user what others have asked. Memory is bounded by tokens; the chunk that was not used for longest is forgotten first,
and as whoever uses a chunk uses all before it, that is one on which no other hangs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

Place = tuple[Hashable, tuple[int, ...]]  # what it hangs on, and the chunk's ids


class _Node(NamedTuple):
    number: int
    piece: object


class PrefixCache:
    """Pieces of at most `most_tokens` tokens of all keys together, in chunks of `chunk` tokens."""

    def __init__(self, chunk: int, most_tokens: int) -> None:
        self.chunk, self.most = chunk, most_tokens // chunk
        self._nodes: OrderedDict[Place, _Node] = OrderedDict()  # the one not used for longest first
        self._next = 0

    @property
    def tokens(self) -> int:
        """How many tokens are held."""
        return self.chunk * len(self._nodes)

    def longest(self, key: str, prompt: Sequence[int]) -> list[object]:
        """The pieces of the longest known beginning of a prompt; never all of it, as its last token must be read."""
        pieces, way = [], self._start(key)
        used = []
        for first in range(0, (len(prompt) - 1) // self.chunk * self.chunk, self.chunk):
            place = (way, tuple(prompt[first : first + self.chunk]))
            node = self._nodes.get(place)
            if node is None:
                break
            pieces.append(node.piece)
            used.append(place)
            way = node.number
        self._use(used)
        return pieces

    def add(self, key: str, prompt: Sequence[int], pieces: Sequence[object]) -> None:
        """Keep the pieces of a prompt's chunks, from its beginning on; None for one that is known to be here.

        If it is here no more, what hangs on it is not kept either.
        """
        way = self._start(key)
        used = []
        for number, piece in enumerate(pieces):
            place = (way, tuple(prompt[number * self.chunk : (number + 1) * self.chunk]))
            node = self._nodes.get(place)
            if node is None:
                if piece is None:
                    break
                self._next += 1
                node = self._nodes[place] = _Node(self._next, piece)
            used.append(place)
            way = node.number
        self._use(used)
        while len(self._nodes) > self.most:
            self._nodes.popitem(last=False)

    def _start(self, key: str) -> Hashable:
        return ("key", key)  # no number of a node equals it

    def _use(self, places: list[Place]) -> None:
        for place in reversed(places):
            self._nodes.move_to_end(place)
