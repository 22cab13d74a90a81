"""A person hears that loops are compiled: once, and not where the compiled ones are at hand."""

from __future__ import annotations

from typing import Any

import pytest
from numba import njit
from numba.core import event

from zhixing.models import compiling


def loops() -> Any:
    @njit
    def inner(x: int) -> int:
        return x + 1

    @njit
    def outer(x: int) -> int:
        return int(inner(x) * 2)

    return outer


@pytest.mark.parametrize("patience, lines", [(0.0, 1), (3600.0, 0)])
def test_it_is_said_once(
    patience: float, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "PATIENCE", patience)
    with event.install_listener("numba:compile", compiling.Compiling()) as listener:
        first, second = loops(), loops()
        assert first(1) == second(1) == 4
        spent = listener.spent
        assert first(2) == 6
    assert capsys.readouterr().err.count("compiling loops") == lines
    assert listener.depth == 0 and listener.spent == spent > 0, "compiled loops count for nothing"
