"""Coder 2 once more, from docs/wire-format.md alone: slow, in Python's integers, none of our code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

WORDS_BEFORE = 3


def _tables() -> tuple[list[int], list[int]]:
    log, power, half = list[int](), list[int](), [1 << 79]
    for _ in range(9):
        half.append(math.isqrt(half[-1] << 80))  # 2^-1/2, 2^-1/4, ...
    half = [math.isqrt(root << 80) for root in half]
    for i in range(1024):
        x, digits = (1 << 80) + (i << 70), 0
        for _ in range(26):
            x = x * x >> 80
            digits *= 2
            if x >= 1 << 81:
                x >>= 1
                digits += 1
        log.append(digits)
        product = 1 << 80
        for bit in range(10):
            if i >> (9 - bit) & 1:
                product = product * half[bit] >> 80
        power.append(product >> 50)
    return [*log, 1 << 26], [*power, 1 << 29]


LOG, POWER = _tables()


def log2(x: int) -> int:
    e = x.bit_length() - 1
    m = (x << 52 >> e) - (1 << 52)
    i, f = m >> 42, (m >> 22) % 2**20
    return e * 2**26 + LOG[i] + ((LOG[i + 1] - LOG[i]) * f >> 20)


def power(y: int) -> int:
    if y >> 26 > 30:
        return 0
    i, f = (y >> 16) % 2**10, y % 2**16
    return (POWER[i] - ((POWER[i] - POWER[i + 1]) * f >> 16)) >> (y >> 26)


LOGISTIC = [0] * 1025
for _i in range(513):
    LOGISTIC[512 + _i] = 2**42 // (2**30 + power(_i * 2**20))
    LOGISTIC[512 - _i] = 2**12 - LOGISTIC[512 + _i]


@dataclass
class Lane:
    """One lane's words, and all that is learned in it."""

    words: list[int]
    contexts: list[list[int]] = field(default_factory=lambda: [[2**15, 0] for _ in range(53)])
    chances: list[int] = field(default_factory=lambda: [16 * LOGISTIC[512 + 16 * (i - 16)] for i in range(33)])
    range: int = 2**48
    code: int = 0
    taken: int = 0
    low: int = 0x700

    def __post_init__(self) -> None:
        for _ in range(WORDS_BEFORE):
            self.code = self.code * 2**16 + self._word()

    def _word(self) -> int:
        self.taken += 1
        return self.words[self.taken - 1] if self.taken <= len(self.words) else 0

    def _narrow(self, first: int, span: int) -> None:
        self.code -= first
        self.range = span
        while self.range <= 2**32:
            self.code = self.code * 2**16 + self._word()
            self.range *= 2**16

    def bit(self, chance: int) -> int:
        bound = (self.range >> 16) * chance
        if self.code < bound:
            self._narrow(0, bound)
            return 1
        self._narrow(bound, self.range - bound)
        return 0

    def in_context(self, number: int) -> int:
        p, n = self.contexts[number]
        bit = self.bit(p)
        p += (bit * 2**16 - p) * (10 * 2**16 // (10 * n + 16)) >> 16
        self.contexts[number] = [min(max(p, 2**7), 2**16 - 2**7), min(n + 1, 60)]
        return bit

    def number(self, base: int, signed: bool) -> int:
        if not self.in_context(base):
            return 0
        sign = -1 if signed and self.in_context(base + 1) else 1
        size = 0
        while size < 16 and self.in_context(base + 2 + size):
            size += 1
        if size == 16:
            ones = 0
            while ones < 12 and self.bit(2**15):
                ones += 1
            rest = 1
            for _ in range(ones):
                rest = 2 * rest + self.bit(2**15)
            size += rest - 1
        return sign * (size + 1)

    def interval(self, cuts: list[int]) -> int:
        """Which of the intervals between neighbouring cuts."""
        unit = self.range >> 24
        t = min(self.code // unit, 2**24 - 1)
        x = next(x for x in range(len(cuts) - 1) if cuts[x] <= t < cuts[x + 1])
        first, stop = cuts[x], cuts[x + 1]
        self._narrow(unit * first, self.range - unit * first if stop == 2**24 else unit * (stop - first))
        return x


def _draw(count: int, x: int) -> list[list[int]]:
    drawn = []
    for _ in range(count):
        numbers = []
        for _ in range(8):
            x = (1103515245 * x + 12345) % 2**31
            numbers.append(((x >> 8) % 2**16 - 2**15) * 1250 >> 16)
        drawn.append(numbers)
    return drawn


def _learn(u: list[int], v: list[int], bit: int) -> None:
    z = sum(a * b for a, b in zip(u, v, strict=True)) >> 12
    e = (bit * 2**12 - LOGISTIC[min(max((z >> 6) + 512, 0), 1024)]) * 26 >> 5
    for k, (a, b) in enumerate(zip(u, v, strict=True)):
        u[k] = min(max(a + ((e * b - 250 * a) >> 12), 1 - 2**14), 2**14 - 1)
        v[k] = min(max(b + ((e * a - 250 * b) >> 12), 1 - 2**14), 2**14 - 1)


def decode_places(lane: Lane, n: int, rows: list[int], cols: list[int]) -> list[tuple[int, int]]:
    """n places of a chunk of len(rows) x len(cols) real values with these weights, which grow."""
    real = [(i, j) for i in range(len(rows)) for j in range(len(cols))]
    found: list[tuple[int, int]] = []
    present, a = 0, 2**24 - 2**16
    for left in range(n, 0, -1):
        rest = real[present:]
        weights = [rows[i] * cols[j] for i, j in rest]
        whole, before, cuts = sum(weights), 0, [0]
        for d in range(len(rest) - left + 1):
            before += weights[d]
            if d == len(rest) - left:
                cuts.append(2**24)
            else:
                cuts.append(a - (power(left * (log2(whole) - log2(whole - before))) * a >> 30) + d + 1)
        x = lane.interval(cuts)
        i, j = rest[x]
        found.append((i, j))
        rows[i] += 8 if rows[i] < 2**18 else 0
        cols[j] += 8 if cols[j] < 2**18 else 0
        present += x + 1
    return found


def decode_slab(
    lane: Lane, shape: tuple[int, int], side: tuple[int, int], k: int, code_bits: int
) -> list[tuple[list[int], list[int], list[int]]]:
    """(levels, places, codes) of every chunk of a slab of `shape` real values in blocks of `side`."""
    (height, width), (all_rows, all_cols), chunks = side, shape, []
    vector = height == 1
    u, v = _draw(all_rows, 1), _draw(all_cols, 2)
    seen: list[tuple[int, int, int]] = []
    col_weights = [16] * all_cols
    above = lane.low
    for top in range(0, all_rows, height):
        row_weights = [16] * min(height, all_rows - top)
        lane.low = above
        for left in range(0, all_cols, width):
            lane.low = (lane.low + lane.number(0, signed=True)) % 2**12
            levels, distance = [lane.low], 0
            if code_bits == 2:
                distance = lane.number(18, signed=False)
                levels.append((lane.low + distance) % 2**12)
            if left == 0:
                above = lane.low
            cols = col_weights[left : left + width]
            if vector:
                row_weights = [16]
            found = decode_places(lane, min(k, len(row_weights) * len(cols)), row_weights, cols)
            col_weights[left : left + width] = cols
            codes = []
            for i, j in found:
                codes.append(lane.in_context(52) if vector else _sign(lane, u, v, (top + i, left + j), seen))
                if code_bits == 2:
                    codes[-1] += 2 * lane.in_context(36 + min(distance, 15))
            chunks.append((levels, [i * width + j for i, j in found], codes))
    return chunks


def _sign(
    lane: Lane, u: list[list[int]], v: list[list[int]], place: tuple[int, int], seen: list[tuple[int, int, int]]
) -> int:
    i, j = place
    z = sum(a * b for a, b in zip(u[i], v[j], strict=True)) >> 12
    number = min(max((z + 512) >> 10, -16), 16) + 16
    bit = lane.bit(min(max(lane.chances[number], 2**10), 2**16 - 2**10))
    lane.chances[number] += (bit * 2**16 - lane.chances[number]) >> 6
    _learn(u[i], v[j], bit)
    seen.append((i, j, bit))
    for r in range(4):
        y = (4 * len(seen) + r) * 2654435761 % 2**32
        a, b, again = seen[y * len(seen) >> 32]
        _learn(u[a], v[b], again)
    return bit
