"""What this machine has, what zhixing will make of it, and how to mend what is missing (`zhixing doctor`).

A check never fails: what cannot be found out is said to be unknown. torch is imported inside, so that a broken torch
is a line of the table and not a traceback.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zhixing.cores import usable_cores
from zhixing.progress import quantity
from zhixing.recipe import recipe_names
from zhixing.text.catalogue import cache_folder
from zhixing.training.plan import (
    compiler_state,
    matmul_speed,
    memory_available,
    memory_total,
    native_bf16,
    processor_flags,
)

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 10)
GOOD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
EXTRAS = {
    "pyarrow": "parquet files",
    "tensorboard": "train.tensorboard = true",
    "transformers": "checking an export",
    "ctranslate2": "zhixing export --to ctranslate2",
    "gguf": "zhixing export --to gguf",
}
EXTRA_OF = {
    "pyarrow": "pip install 'zhixing[parquet]'",
    "tensorboard": "pip install 'zhixing[tensorboard]'",
    "ctranslate2": "pip install 'zhixing[ctranslate2]'",
    "gguf": "pip install 'zhixing[gguf]'",
}
MARKS = {"good": "✓", "note": "·", "bad": "✗"}
COLOURS = {"good": "32", "note": "33", "bad": "31"}


@dataclass(frozen=True)
class Check:
    """One thing looked at. `note`: it works, but could be better; `bad`: zhixing will not work; `mend`: what to do."""

    name: str
    value: str
    state: Literal["good", "note", "bad"] = "good"
    mend: str = ""


def diagnose() -> list[Check]:
    """Every check, in the order a person reads them; takes about a second and torch's import."""
    checks = [_python(), _zhixing(), *_torch(), _cores()]
    if checks[2].state != "bad":
        checks.append(_threads())
    checks += [
        _processor(),
        _precision(measure=checks[2].state != "bad"),
        _compiler(),
        _memory(),
        _disk(Path.cwd()),
        _cache(),
    ]
    checks += [_extra(module, purpose) for module, purpose in EXTRAS.items()]
    return [*checks, _recipes()]


def render(checks: list[Check], *, colour: bool | None = None) -> str:
    """The checks as a table: mark, name, value, and below what to do. Colours on a terminal unless NO_COLOR is set."""
    if colour is None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        mark = MARKS[check.state]
        if colour:
            mark = f"\033[{COLOURS[check.state]}m{mark}\033[0m"
        lines.append(f"{mark} {check.name:<{width}}  {check.value}")
        if check.mend:
            lines.append(f"  {'':<{width}}  → {check.mend}")
    bad = [check.name for check in checks if check.state == "bad"]
    lines += ["", f"mend first: {', '.join(bad)}" if bad else "zhixing can train here. Next: zhixing demo"]
    return "\n".join(lines)


def _python() -> Check:
    version, wanted = platform.python_version(), ".".join(map(str, OLDEST_PYTHON))
    place = f"{platform.python_implementation()} {version} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("Python", place, "bad", f"zhixing needs Python {wanted} or newer")
    return Check("Python", place)


def _zhixing() -> Check:
    version = _version("zhixing")
    return Check("zhixing", version or f"not installed, run from {Path(__file__).parent}")


def _torch() -> list[Check]:
    try:
        import torch
    except Exception as error:
        return [
            Check(
                "torch", f"does not load: {error}".splitlines()[0], "bad", "pip install torch (the CPU build is enough)"
            )
        ]
    version = torch.__version__
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers < OLDEST_TORCH:
        return [Check("torch", version, "bad", f"pip install 'torch>={'.'.join(map(str, OLDEST_TORCH))}'")]
    checks = [Check("torch", version)]
    if torch.cuda.is_available():
        checks.append(Check("GPU", f"{torch.cuda.get_device_name(0)}; zhixing trains on the processor", "note"))
    return checks


def _cores() -> Check:
    usable, all_cores = usable_cores(), os.cpu_count() or 1
    return Check("cores", str(usable) if usable == all_cores else f"{usable} of {all_cores} may be used here")


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), usable_cores()
    variable = next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name)), "")
    value = str(threads) + (f" ({variable} says so)" if variable else "")
    if threads > cores:
        return Check(
            "threads", f"{value}, more than the cores", "note", 'leave train.threads = "auto": it takes the cores'
        )
    if threads < cores and variable:
        return Check(
            "threads", f"{value}, fewer than the cores", "note", f"unset {variable}, or set train.threads = {cores}"
        )
    return Check("threads", value)


def _processor() -> Check:
    name, flags = _processor_name(), processor_flags()
    known = [flag for flag in GOOD_FLAGS if flag in flags]
    if platform.machine().lower() in ("x86_64", "amd64") and flags and "avx2" not in flags:
        return Check(
            "processor", f"{name}, without avx2", "note", "training is several times slower here; take a newer machine"
        )
    return Check("processor", f"{name}: {', '.join(known)}" if known else name)


def _precision(*, measure: bool) -> Check:
    native = native_bf16()
    said = "bf16 in hardware" if native else "no bf16 in hardware: fp32"
    if not measure:
        return Check("numbers", said)
    fp32, bf16 = matmul_speed("float32", 0.15, 768), matmul_speed("bfloat16", 0.15, 768)
    value = f"{said}; products measured: fp32 {quantity(fp32, 'FLOP/s')}, bf16 {quantity(bf16, 'FLOP/s')}"
    if native and bf16 < fp32:
        return Check("numbers", value, "note", "bf16 is slower here although the processor has it: train.bf16 = false")
    return Check("numbers", value)


def _compiler() -> Check:
    compiler, mend = compiler_state()
    if compiler is None:
        return Check("compiler", "none: torch.compile stays off, training is slower", "note", mend)
    return Check("compiler", f"{compiler}: torch.compile can be used")


def _memory() -> Check:
    total, free = memory_total(), memory_available()
    if total is None or free is None:
        return Check("memory", "unknown", "note")
    value = f"{quantity(free, 'B')} free of {quantity(total, 'B')}"
    if free < 2 * 10**9:
        return Check(
            "memory", value, "note", "the recipes need about 2 GB: end other programs, or lower the batch size"
        )
    return Check("memory", value)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    value = f"{quantity(free, 'B')} free in this folder"
    if free < 10**9:
        return Check(
            "disk", value, "note", "a run takes a few hundred MB: free some space, or give --out on another disk"
        )
    return Check("disk", value)


def _cache() -> Check:
    folder = cache_folder()
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not os.access(place, os.W_OK):
        return Check("cache", f"{folder} cannot be written", "note", "set ZHIXING_CACHE to a folder that can")
    if not folder.exists():
        return Check("cache", f"{folder} (made when a data set is first fetched)")
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return Check("cache", f"{folder}, {quantity(size, 'B')}")


def _extra(module: str, purpose: str) -> Check:
    version = _version(module)
    if version is None or importlib.util.find_spec(module) is None:
        return Check(
            module, f"not installed (optional: {purpose})", "note", EXTRA_OF.get(module, f"pip install {module}")
        )
    return Check(module, f"{version} (optional: {purpose})")


def _recipes() -> Check:
    names = _quietly(recipe_names) or []
    return (
        Check("recipes", ", ".join(names)) if names else Check("recipes", "none found", "bad", "install zhixing again")
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _quietly(function: Callable[[], list[str]]) -> list[str] | None:
    try:
        return function()
    except OSError:
        return None
