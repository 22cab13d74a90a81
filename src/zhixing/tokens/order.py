"""The order of the data: a shuffle that is a formula, so its whole state is one number.

A shuffled list of indices must be stored, restored and agreed on by all processes. A *pseudorandom permutation*
needs none of that: `permute(i, n, seed, epoch)` computes where the i-th sample of an epoch stands, in constant
time and memory, the same on every machine. A run that stopped before global sample 123,456 goes on with 123,456,
with any number of processes.

How: write i < a·b as a pair (l, r) = (i mod a, i div a), where a = ⌈√n⌉ and b = ⌈n/a⌉, and scramble the pair in
turns, each side by a hash of the other (a Feistel network with addition modulo the sizes, "FE1" of Bellare,
Ristenpart, Rogaway and Stegers 2009, Format-Preserving Encryption, section 4):

    l ← l + hash(r) mod a        r ← r + hash(l) mod b        and so on

Every turn can be undone by subtracting the same hash, so the whole is a bijection of range(a·b). If the result is
n or more, scramble it again until it is below n ("cycle walking"): this stays a bijection, of range(n). As
a·b - n < a, walking is rare (less than one in √n).

Worked example, n = 5: a = 3, b = 2, so range(6) is scrambled, say by 0→3 1→5 2→0 3→4 4→2 5→1. Index 1 goes to 5,
which is no member of range(5), so it walks on to 1. The order is 3 1 0 4 2: each of 0..4 once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8  # turns; 4 are the theoretical least for a good pseudorandom permutation
_MASK = (1 << 64) - 1


def permute(index: int, n: int, seed: int, epoch: int) -> int:
    """Which of the n samples comes at place `index` of this epoch; for fixed n, seed, epoch a bijection of range(n)."""
    if not 0 <= index < n:
        raise ValueError(f"expected an index in range({n}), got {index}")
    a, b = _sides(n)
    keys = _round_keys(n, seed, epoch)
    while True:
        left, right = index % a, index // a
        for turn in range(0, ROUNDS, 2):
            left = (left + _mix(right ^ keys[turn])) % a
            right = (right + _mix(left ^ keys[turn + 1])) % b
        index = left + right * a
        if index < n:
            return index


def permute_array(indices: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """`permute` of every element, as arrays: 1-d int64 in, 1-d int64 of the same length out."""
    if indices.size and (indices.min() < 0 or indices.max() >= n):
        raise ValueError(f"expected indices in range({n}), got {indices.min()}..{indices.max()}")
    a, b = (np.uint64(side) for side in _sides(n))
    keys = [np.uint64(key) for key in _round_keys(n, seed, epoch)]
    result = indices.astype(np.uint64)
    walking = np.arange(len(result))  # places whose value is not below n yet; at first all
    while walking.size:
        left, right = result[walking] % a, result[walking] // a
        for turn in range(0, ROUNDS, 2):
            left = (left + _mix_array(right ^ keys[turn]) % a) % a
            right = (right + _mix_array(left ^ keys[turn + 1]) % b) % b
        result[walking] = left + right * a
        walking = walking[result[walking] >= np.uint64(n)]
    return result.astype(np.int64)


def noise(seed: int, stream: int, samples: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """`count` uniform numbers in [0, 1) for each sample (B,) -> (B, count): a hash of seed, stream, sample and place.

    For what is drawn anew for every sample, as masking: no state, the same in any batch. `stream` tells apart the
    draws of one sample that must not depend on one another.
    """
    start = _mix(_mix(seed & _MASK) ^ (stream & _MASK))
    keys = _mix_array(samples.astype(np.uint64) ^ np.uint64(start))  # (B,)
    places = (keys[:, None] + np.arange(count, dtype=np.uint64)).astype(np.uint64)  # (B, count)
    bits = _mix_array(places)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _sides(n: int) -> tuple[int, int]:
    """a, b with a·b >= n and a·b - n < a."""
    a = math.isqrt(n - 1) + 1 if n > 1 else 1
    return a, -(-n // a)


def _round_keys(n: int, seed: int, epoch: int) -> list[int]:
    """One 64-bit key a turn, hashed from all that the order depends on."""
    key = 0
    for part in (n, seed, epoch):
        key = _mix((key ^ (part & _MASK)) & _MASK)
    return [_mix((key + turn + 1) & _MASK) for turn in range(ROUNDS)]


def _mix(x: int) -> int:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014): a bijection of 64-bit numbers that spreads every bit."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix` elementwise; uint64 wraps around by itself."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
