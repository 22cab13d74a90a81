"""The operators of LSTM networks: one cell, layers over time, and both directions over ragged rows.

For one layer, with x_t the layer's input, σ the logistic function and ⊙ the product by elements (Hochreiter &
Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000):

    i_t = σ(W_i x_t + U_i h_{t-1} + b_i)        input gate: how much of the candidate is written
    f_t = σ(W_f x_t + U_f h_{t-1} + b_f)        forget gate: how much of the memory is kept
    g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)     candidate
    o_t = σ(W_o x_t + U_o h_{t-1} + b_o)        output gate: how much of the memory is shown
    c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t             memory cell
    h_t = o_t ⊙ tanh(c_t)                       hidden state

No peepholes (Greff et al. 2017 find that they gain nothing). The four products are one: the rows of the weights are
stacked in the order i, f, g, o, which is `nn.LSTM`'s.

`lstm_cell` and `lstm_reference` write the equations out; over many tokens models run `nn.LSTM`, the same function in
one fused kernel. Forward and backward of (16, 128) tokens, d_model 256, 2 layers, one CPU thread, fp32, torch 2.13:
reference 299 ms, `nn.LSTM` 132 ms, so 2.3 times as fast; they agree in value and gradient (tests/test_lstm.py). For one
token it is the other way round, 881 µs against 265 µs for one row, so decoding runs the cell.

Legend: B rows, T tokens, D d_model, L n_layers, H units a direction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LSTMWeights(NamedTuple):
    """One layer's weights; rows are stacked i, f, g, o. The two biases are added: only their sum matters."""

    w_ih: Tensor  # (4D, D_in)
    w_hh: Tensor  # (4D, D)
    b_ih: Tensor  # (4D,)
    b_hh: Tensor  # (4D,)


def lstm_cell(x: Tensor, h: Tensor, c: Tensor, weights: LSTMWeights) -> tuple[Tensor, Tensor]:
    """One step of one layer: x (B, D_in), h (B, D), c (B, D) -> the next h (B, D), c (B, D)."""
    gates = F.linear(x, weights.w_ih, weights.b_ih) + F.linear(h, weights.w_hh, weights.b_hh)  # (B, 4D)
    i, f, g, o = gates.chunk(4, dim=-1)  # (B, D) each
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def lstm_reference(x: Tensor, h: Tensor, c: Tensor, layers: list[LSTMWeights]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The equations over time, layer by layer, without dropout; what `nn.LSTM` is held against.

    x (B, T, D_in), h and c (L, B, D) -> the last layer's h_1..h_T (B, T, D), and (h_T, c_T) of all layers (L, B, D).
    """
    last_h, last_c = [], []
    for weights, h_l, c_l in zip(layers, h, c, strict=True):
        outputs = []
        for x_t in x.unbind(dim=1):  # (B, D_in)
            h_l, c_l = lstm_cell(x_t, h_l, c_l, weights)
            outputs.append(h_l)
        x = torch.stack(outputs, dim=1)  # (B, T, D)
        last_h.append(h_l)
        last_c.append(c_l)
    return x, (torch.stack(last_h), torch.stack(last_c))


def start_bias(name: str, bias: Tensor) -> None:
    """Fill the bias of that name with zeros, a forget gate's with 1: memory is kept until there is a reason to forget.

    Gers et al. 2000; Jozefowicz, Zaremba & Sutskever 2015, section 5. bias_hh is added to bias_ih, which has the 1.
    """
    nn.init.zeros_(bias)
    if name.rpartition(".")[2].startswith("bias_ih"):
        nn.init.ones_(bias[len(bias) // 4 : len(bias) // 2])


def turned(x: Tensor, lengths: Tensor) -> Tensor:
    """The first lengths[b] of each row in reverse order, the padding where it was: x (B, T, D), lengths (B,)."""
    steps = torch.arange(x.shape[1], device=x.device)  # (T,)
    places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)  # (B, T)
    return x.gather(1, places[..., None].expand_as(x))


def read_both_ways(recurrence: nn.LSTM, x: Tensor, lengths: Tensor) -> Tensor:
    """What a bidirectional `recurrence` makes of ragged rows: x (B, T, D), lengths (B,) -> (B, T, 2H).

    The same as packing the rows, at real tokens; behind them stands anything. Packed rows go the slow way through
    torch, a product a step and direction: 64 rows of about 200 tokens, 128 units, forward and backward on 2 cores take
    919 ms, and 180 ms by oneDNN's layer, which wants whole rows (118 ms in bf16). Padding on the right disturbs no
    forward direction; the backward one is a forward one over the turned rows.
    """
    layer: Any = torch.lstm
    n_hidden, weights = recurrence.hidden_size, recurrence.all_weights
    zeros = x.new_zeros(1, x.shape[0], n_hidden)
    for number in range(recurrence.num_layers):
        if number:
            x = F.dropout(x, recurrence.dropout, recurrence.training)
        ways = []
        for y, own in ((x, weights[2 * number]), (turned(x, lengths), weights[2 * number + 1])):
            # ..., biases, layers, dropout, training, both ways, batch first
            ways.append(layer(y, (zeros, zeros), own, True, 1, 0.0, recurrence.training, False, True)[0])
        x = torch.cat([ways[0], turned(ways[1], lengths)], dim=2)  # (B, T, 2H)
    return x
