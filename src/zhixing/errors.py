"""The one error a user can mend: what is wrong, where, why, and what to do about it.

The command line prints it without a traceback and leaves with exit code 2; any other exception is our
bug and leaves with exit code 1.
"""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used.

    `what` is one sentence. `where` names the place (``file:line``, ``file, byte 1234``, a key, a row),
    `why` the reason if it is not plain from `what`, `mend` the next thing to try.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", mend: str = "") -> None:
        self.what, self.where, self.why, self.mend = what, where, why, mend
        super().__init__(self.message())

    def message(self) -> str:
        lines = [self.what]
        parts = (("where", self.where), ("why", self.why), ("mend", self.mend))
        lines += [f"  {name}: {text}" for name, text in parts if text]
        return "\n".join(lines)
