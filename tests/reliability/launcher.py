"""Start `zhixing` commands without paying for the import of torch each time.

Most of a short command is that import. Here it is paid once; then each line of stdin, {"arguments": [...], "log": FILE},
is one command, run by the real entry point in a forked copy of this process, which can be killed like any other.
Answered on stdout: its process id, and when it has ended its exit code (negative: the signal that ended it).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType


class Launcher:
    """One command at a time: `start`, then `running`, `kill`, `wait`."""

    def __init__(self, root: Path) -> None:
        paths = os.pathsep.join([str(root / "src"), str(root / "tests")])
        env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "reliability.launcher"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env)
        self.pid = 0

    def start(self, arguments: list[str], log: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"arguments": arguments, "log": str(log)}).encode() + b"\n")
        self.pid = self._answer()

    def running(self) -> bool:
        assert self.process.stdout is not None
        return not select.select([self.process.stdout], [], [], 0)[0]

    def send(self, number: int) -> None:
        """A signal to the command; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code."""
        return self._answer()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the launcher ended with {self.process.wait()}")
        return int(line)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        if error is not None and self.pid and self.running():
            self.send(9)
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    import torch

    import zhixing.run  # noqa: F401 - what `train` imports, and with the first optimizer most of what torch imports late
    from zhixing.cli import main

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            try:
                code = main(job["arguments"])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(pid, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(code, flush=True)


if __name__ == "__main__":
    serve()
