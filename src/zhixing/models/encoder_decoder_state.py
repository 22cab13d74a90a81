"""What an encoder-decoder remembers between steps: what is written, and the memory of the texts that are read.

The encoder runs once a text. Its keys and values in every decoder block are the memory; hypotheses of the same text
share one memory, which is never copied for them: they stand beside each other as queries of one attention.

Shapes: B rows, G texts that are read, W rows a text, S tokens read, H heads, K head size, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.models.layers import DecodingState, Memory

FEW_PADDED = 0.75  # a text at least so long as the longest beside it is read with it ...
WORTH_READING = 128  # ... and so are shorter ones, until so many tokens are read together: fewer are no faster
SPARE = 16  # tokens: the room behind what is written that a copy of the caches gets


class EncoderDecoderState:
    """What is written so far, and the memory of the texts that are read.

    keys and values (L, G, H, S, K), lengths of the texts (G,), and `owners` (B,): the text of each row. `capacity` is
    how many tokens a row may come to hold; a beam search copies the caches at every step, so they are no longer than
    what is written needs, and grow by `hold`.
    """

    def __init__(
        self,
        written: DecodingState,
        keys: Tensor,
        values: Tensor,
        source_lengths: Tensor,
        owners: Tensor,
        capacity: int | None = None,
    ) -> None:
        self.written, self.keys, self.values = written, keys, values
        self.source_lengths, self.owners = source_lengths, owners
        self.capacity = written.capacity if capacity is None else capacity
        self._memory: Memory | None = None

    @property
    def lengths(self) -> Tensor:
        return self.written.lengths

    def select(self, rows: Tensor) -> EncoderDecoderState:
        """The given rows in that order; a text that no row reads any more is forgotten."""
        texts, owners = torch.unique(self.owners[rows], return_inverse=True)
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        written = self.written.select(rows, min(self.written.capacity, longest + SPARE))
        keys, values, lengths = self.keys, self.values, self.source_lengths
        if len(texts) < len(lengths):
            keys, values, lengths = keys[:, texts], values[:, texts], lengths[texts]
        return EncoderDecoderState(written, keys, values, lengths, owners, self.capacity)

    def rearrange(self, rows: Tensor) -> EncoderDecoderState:
        """As `select` of as many rows that read the same texts as before, in place. Uses this up."""
        if not torch.equal(self.owners[rows], self.owners):
            return self.select(rows)
        self.written = self.written.rearrange(rows)
        return self

    def hold(self, count: int) -> None:
        """Make room for `count` more tokens a row, as far as `capacity` goes."""
        needed = int(self.lengths.max()) + count
        if needed > self.written.capacity:
            self.written.hold(min(self.capacity, needed + SPARE))

    def append(self, other: EncoderDecoderState) -> EncoderDecoderState:
        """The rows of both, this one's first."""
        longest = max(self.keys.shape[3], other.keys.shape[3])
        keys, values = (
            torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[3])) for x in pair], dim=1)
            for pair in ((self.keys, other.keys), (self.values, other.values))
        )
        lengths = torch.cat([self.source_lengths, other.source_lengths])
        owners = torch.cat([self.owners, other.owners + len(self.source_lengths)])
        capacity = max(self.capacity, other.capacity)
        return EncoderDecoderState(self.written.append(other.written), keys, values, lengths, owners, capacity)

    def memory(self) -> Memory:
        """What the rows read."""
        if self._memory is None:
            self._memory = Memory(self.keys, self.values, self.source_lengths, self.owners)
        return self._memory


def new_state(pairs: Sequence[tuple[Tensor, Tensor]], source_lengths: Tensor, capacity: int) -> EncoderDecoderState:
    """The state of texts that are read and of which nothing is written: a row each, with room for `capacity` tokens.

    pairs: the keys and values (G, H, S, K) of each decoder block; source_lengths (G,).
    """
    keys, values = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))  # (L, G, H, S, K)
    n_layers, n_texts, n_heads, _, head_size = keys.shape
    shape = (n_layers, n_texts, n_heads, capacity + 1, head_size)
    written = DecodingState(keys.new_zeros(shape), keys.new_zeros(shape), torch.zeros_like(source_lengths))
    return EncoderDecoderState(written, keys, values, source_lengths, torch.arange(n_texts, device=keys.device))


def read_by_length(
    sources: Sequence[Sequence[int]],
    read: Callable[[Tensor, Tensor], list[tuple[Tensor, Tensor]]],
    device: torch.device,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Keys and values (G, H, S, K) of each decoder block for texts of any lengths, and these lengths (G,).

    read: ids (g, s) right-padded and lengths (g,) -> the pairs of these texts. Texts of like length are read together:
    16 sentences as they come are more than half padding.
    """

    def room(x: Tensor) -> Tensor:
        return x.new_zeros(len(sources), *x.shape[1:])

    order = sorted(range(len(sources)), key=lambda place: -len(sources[place]))
    pieces: list[list[int]] = []
    for place in order:
        piece = pieces[-1] if pieces else []
        longest = len(sources[piece[0]]) if piece else 0
        if piece and (len(sources[place]) >= FEW_PADDED * longest or longest * len(piece) < WORTH_READING):
            piece.append(place)
        else:
            pieces.append([place])
    lengths = torch.tensor([len(ids) for ids in sources], device=device)
    pairs: list[tuple[Tensor, Tensor]] = []
    for piece in pieces:
        ids, own = padded_sources([sources[place] for place in piece], device)
        found = read(ids, own)
        if len(pieces) == 1:
            back = torch.tensor(piece, device=device).argsort()
            return [(k[back], v[back]) for k, v in found], lengths
        if not pairs:  # the longest texts come first
            pairs = [(room(k), room(v)) for k, v in found]
        for pair, part in zip(pairs, found, strict=True):
            for whole, x in zip(pair, part, strict=True):
                whole[piece, :, : x.shape[2]] = x
    return pairs, lengths


def padded_sources(sources: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Texts as one tensor (G, S), right-padded with 0, and their lengths (G,)."""
    lengths = torch.tensor([len(ids) for ids in sources], device=device)
    return nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sources], batch_first=True).to(device), lengths
