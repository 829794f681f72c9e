"""How the loops over symbols become machine code: numba, kept on disk after the first time, outside Python's lock.

Only integers are computed in them, so that every machine computes the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

numba.config.SLP_VECTORIZE = 1  # straight-line code in vector instructions: eight times the speed in `signs`
int64 = cast("Callable[[Any], int]", np.int64)
"""A number widened to 64 bits; without it numba works with what an array holds."""
Function = TypeVar("Function", bound="Callable[..., Any]")


def _digest_of_sources() -> str:
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


_SOURCES = _digest_of_sources()


def compiled(function: Function) -> Function:
    """`function` as machine code; it may call other compiled functions.

    numba looks for changes only in the file of the function itself, and would go on with the old code of those that
    it calls. So the name under which the machine code is kept says which sources it was made of.
    """
    return _machine_code(function, forceinline=False)


def inlined(function: Function) -> Function:
    """Like `compiled`, put into its callers: a call costs more than such a function does."""
    return _machine_code(function, forceinline=True)


def _machine_code(function: Function, *, forceinline: bool) -> Function:
    function.__qualname__ += f"_{_SOURCES}"
    made: Function = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=forceinline)(function)
    return made
