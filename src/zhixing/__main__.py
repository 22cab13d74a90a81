"""`python -m zhixing`: the same as the command `zhixing`."""

from __future__ import annotations

import sys

from zhixing.cli import main

if __name__ == "__main__":
    sys.exit(main())
