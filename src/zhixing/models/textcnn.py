"""TextCNN: filters slide over the words' vectors, and each one's strongest answer in the text is kept.

Kim (2014), "Convolutional neural networks for sentence classification", section 2. With x_i the vector of word i, a
filter w of width k and the window x_{i:i+k-1} of k vectors one behind another:

    c_i = relu(w . x_{i:i+k-1} + b)        eq. 2
    c   = max_i c_i                        "max over time": where it fired does not matter
    logits = W dropout([c of every filter]) + b

Widths 3, 4 and 5, as in the paper. Embeddings start at random or from given vectors (`load_embeddings`), trained
("non-static") or kept as they are ("static": `freeze_embeddings`).

What differs from the paper: windows may hang over both ends of the text, by k - 1 words, as in Kim's code, so that a
text of one word has windows too; no bound on the norm of W (Zhang & Wallace 2017, section 4.5, find that it does
little); the padding of a batch is zero before the filters and never enters the maximum.

Legend: B rows, T tokens, D d_model, K filters a width, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.models.layers import load_rows


@dataclass(frozen=True)
class TextCNNSettings:
    vocab_size: int
    n_labels: int
    d_model: int = 128
    max_len: int = 512
    widths: tuple[int, ...] = (3, 4, 5)
    n_filters: int = 100  # of each width
    dropout: float = 0.5
    freeze_embeddings: bool = False

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths = {self.widths}", why="a filter spans one word or more")


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every window's answer to every filter: x (B, D, T), weight (K, D, k) -> (B, K, T + k - 1).

    Position i of the result is the window that ends at word i: windows hang over both ends, over zeros.
    """
    return F.conv1d(x, weight, bias, padding=weight.shape[2] - 1)


def max_over_time(x: Tensor, lengths: Tensor) -> Tensor:
    """The largest of the first lengths[b] columns of each row: x (B, K, T), lengths (B,) at least 1 -> (B, K)."""
    real = torch.arange(x.shape[2], device=x.device) < lengths[:, None]  # (B, T)
    return x.masked_fill(~real[:, None], -torch.inf).amax(dim=2)


class TextCNNClassifier(nn.Module):
    """Logits from ids."""

    def __init__(self, settings: TextCNNSettings, generator: torch.Generator | None = None) -> None:
        super().__init__()
        s = self.settings = settings
        self.embedding = nn.Embedding(s.vocab_size, s.d_model)
        self.filters = nn.ModuleList(nn.Conv1d(s.d_model, s.n_filters, width) for width in s.widths)
        self.dropout = nn.Dropout(s.dropout)
        self.head = nn.Linear(s.n_filters * len(s.widths), s.n_labels)
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None) -> None:
        """Embeddings uniform in ±0.25, the range of trained ones (Kim, section 3.3); filters by Glorot; biases 0."""
        self.embedding.weight.uniform_(-0.25, 0.25, generator=generator)
        self.embedding.weight.requires_grad_(not self.settings.freeze_embeddings)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name != "embedding.weight":
                nn.init.xavier_uniform_(parameter, generator=generator)

    def load_embeddings(self, matrix: Tensor, found: Tensor | None = None) -> None:
        """Start from given word vectors: matrix (V, D); where `found` (V,) is False the random row stays."""
        load_rows(self.embedding, matrix, found)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, D)."""
        return self.embedding(ids)  # type: ignore[no-any-return]

    def classify(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """embedded (B, T, D), mask (B, T) bool, right padding -> logits (B, C) fp32. A text of nothing is one zero."""
        x = embedded.masked_fill(~mask[..., None], 0.0).transpose(1, 2)  # (B, D, T)
        lengths = mask.sum(dim=1).clamp(min=1)  # (B,)
        strongest = []
        for layer in self.filters:
            assert isinstance(layer, nn.Conv1d) and layer.bias is not None
            answers = convolve(x, layer.weight, layer.bias)  # (B, K, T + k - 1)
            # relu after the maximum: it is monotone, so the order does not matter, and there is less of it
            strongest.append(F.relu(max_over_time(answers, lengths + layer.weight.shape[2] - 1)))  # (B, K)
        return self.head(self.dropout(torch.cat(strongest, dim=1))).float()  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.classify(self.embed(ids), mask)
