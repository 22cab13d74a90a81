"""TextCNN: its equation by hand and by torch, its padding, and what it can learn that no bag of words can."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zhixing.errors import InputError
from zhixing.models.textcnn import TextCNNClassifier, TextCNNSettings, convolve, max_over_time


def make(**changes: object) -> TextCNNClassifier:
    settings = TextCNNSettings(**{"vocab_size": 40, "n_labels": 3, "d_model": 8, "n_filters": 5, **changes})  # type: ignore[arg-type]
    return TextCNNClassifier(settings, torch.Generator().manual_seed(3)).eval()


def test_windows_by_hand() -> None:
    """One channel, width 2, the filter (1, 10): each window is its older word plus ten times its newer one."""
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    answers = convolve(x, torch.tensor([[[1.0, 10.0]]]), torch.tensor([0.5]))
    assert answers.tolist() == [[[10.5, 21.5, 32.5, 3.5]]]
    assert max_over_time(answers, torch.tensor([2])).item() == 21.5


def test_equation_of_the_paper() -> None:
    """Eq. 2 word by word, for a text without padding."""
    model = make()
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    x = F.pad(model.embed(ids)[0], (0, 0, 4, 4))  # (T + 8, D)
    strongest = []
    for layer in model.filters:
        width = layer.weight.shape[2]
        windows = [x[i : i + width] for i in range(4 - width + 1, 4 + 6)]
        answers = [F.relu((layer.weight * w.T).sum(dim=(1, 2)) + layer.bias) for w in windows]
        strongest.append(torch.stack(answers).amax(dim=0))
    expected = model.head(torch.cat(strongest))
    torch.testing.assert_close(model(ids, torch.ones(1, 6, dtype=torch.bool))[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("widths", [(3, 4, 5), (1,), (2, 7)])
def test_batch_equals_single(widths: tuple[int, ...]) -> None:
    model = make(widths=widths)
    torch.nn.init.normal_(model.filters[0].bias)  # a negative bias must not be beaten by padding
    with torch.no_grad():
        for layer in model.filters:
            layer.bias.fill_(-1.0)
    lengths = [9, 1, 4, 0]
    ids = torch.randint(40, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    together = model(ids, mask)
    for row, n in enumerate(lengths):
        n = max(n, 1)
        torch.testing.assert_close(
            together[row], model(ids[row : row + 1, :n], mask[row : row + 1, :n])[0], atol=1e-6, rtol=1e-5
        )
    noise = ids.masked_fill(~mask, 7)
    torch.testing.assert_close(model(noise, mask), together)


def test_given_vectors_and_freezing() -> None:
    model = make(freeze_embeddings=True)
    matrix = torch.randn(40, 8)
    model.load_embeddings(matrix)
    assert torch.equal(model.embedding.weight, matrix) and not model.embedding.weight.requires_grad
    with pytest.raises(InputError, match=r"model\.d_model = 9"):
        model.load_embeddings(torch.zeros(40, 9))
    with pytest.raises(InputError, match="widths"):
        TextCNNSettings(9, 2, widths=(0,))


def test_learns_the_order_of_words() -> None:
    """ "5 6" against "6 5" somewhere in noise: the same bag, another text."""
    generator = torch.Generator().manual_seed(0)

    def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(7, 40, (rows, 12), generator=generator)
        y = torch.randint(2, (rows,), generator=generator)
        place = torch.randint(11, (rows,), generator=generator)
        index = torch.arange(rows)
        ids[index, place], ids[index, place + 1] = 5 + y, 6 - y
        return ids, y

    model = make(n_labels=2, d_model=16, n_filters=16).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        ids, y = batch(64)
        loss = F.cross_entropy(model(ids, torch.ones_like(ids, dtype=torch.bool)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, y = batch(256)
    accuracy = (model.eval()(ids, torch.ones_like(ids, dtype=torch.bool)).argmax(-1) == y).float().mean().item()
    assert accuracy > 0.95
