"""Providers: who moves the rows of an exchange. The contract is `csrc/dpmodel_ghosts.h`.

    provider = MappingProvider(owner)              # ghost k copies owned row owner[k]
    graph = graph.replace(comm=Comm(handle=provider.handle))

The handle is an address: keep the provider alive while graphs that carry it are evaluated.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

__all__ = ["ABI", "FaultProvider", "MappingProvider", "Provider", "failure_of"]

MAGIC = 0x54534F48474D5044
ABI = 1
"""Version of the contract."""

_EXCHANGE = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_int64,
)


class GhostStruct(ctypes.Structure):
    """`dpmodel_ghosts` of the header."""

    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("abi", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
        ("ctx", ctypes.c_void_p),
        ("forward", _EXCHANGE),
        ("reverse", _EXCHANGE),
        ("max_bytes_per_row", ctypes.c_int64),
        ("n_forward", ctypes.c_uint64),
        ("n_reverse", ctypes.c_uint64),
        ("error", ctypes.c_int32),
        ("message", ctypes.c_char * 252),
    )


_ALIVE: set[int] = set()
"""Addresses of the structs of providers: memory behind any other address is not looked at."""


def failure_of(handle: np.ndarray) -> str | None:
    """Why an exchange through this handle failed, or would fail; None: all is well.

    Compiled code need not stop at an operator that failed (torch 2.11 goes on), so it is asked afterwards.
    """
    address = int(np.ravel(handle)[0])
    if not address:
        return "the handle is null: no exchange was set up for this graph"
    if address not in _ALIVE:
        return "the handle points to no exchange: was its provider deleted?"
    struct = GhostStruct.from_address(address)
    return str(struct.message.decode(errors="replace")) if struct.error else None


class Provider:
    """Base of providers written in Python. Subclasses implement `forward` and `reverse`.

    Exceptions in them do not pass through native code: they become the sticky error, which the operator raises as a
    RuntimeError, and the first one is kept in `exception`.
    """

    def __init__(self, *, max_bytes_per_row: int = 0) -> None:
        self.exception: BaseException | None = None
        self._callbacks = _EXCHANGE(self._call("forward")), _EXCHANGE(self._call("reverse"))
        self.struct = GhostStruct(
            magic=MAGIC,
            abi=ABI,
            bytes=ctypes.sizeof(GhostStruct),
            forward=self._callbacks[0],
            reverse=self._callbacks[1],
            max_bytes_per_row=max_bytes_per_row,
        )
        _ALIVE.add(ctypes.addressof(self.struct))
        weakref.finalize(self, _end, self.struct)

    def forward(self, rows: np.ndarray, n_owned: int) -> None:
        """Fill rows[n_owned:] (n_all - n_owned, width) with copies of their owners' rows."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def reverse(self, rows: np.ndarray, n_owned: int) -> None:
        """Add rows[n_owned:] to their owners' rows."""
        raise NotImplementedError(f"{type(self).__name__} does not define reverse()")

    def fold(self, rows: np.ndarray, n_owned: int) -> np.ndarray:
        """(n_owned, width): what the ghosts' rows of (n_all, width) add to their owners, wherever those are."""
        whole = np.array(rows, order="C")
        self.reverse(whole, n_owned)
        return whole[:n_owned]

    @property
    def handle(self) -> np.ndarray:
        """(1,) int64: what `Comm.handle` carries. Valid as long as this object lives."""
        return np.array([ctypes.addressof(self.struct)], np.int64)

    @property
    def n_forward(self) -> int:
        """Calls of `forward` so far."""
        return int(self.struct.n_forward)

    @property
    def n_reverse(self) -> int:
        """Calls of `reverse` so far."""
        return int(self.struct.n_reverse)

    @property
    def error(self) -> str | None:
        """Why an exchange failed; None: none has."""
        return failure_of(self.handle)

    def reset(self) -> None:
        """Forget counts and a failure."""
        self.exception = None
        self.struct.n_forward = self.struct.n_reverse = self.struct.error = 0
        self.struct.message = b""

    def _call(self, method: str) -> Callable[..., int]:
        reference = weakref.ref(self)  # the struct holds the callbacks: otherwise none of the three would ever go

        def run(_: Any, dtype: int, address: int | None, n_owned: int, n_all: int, width: int) -> int:
            provider = reference()
            if provider is None:
                return 1
            try:
                getattr(provider, method)(_rows(dtype, address, n_all, width), n_owned)
            except BaseException as problem:  # noqa: BLE001 - nothing may unwind through native code
                if provider.exception is None:
                    provider.exception = problem
                provider.struct.message = _cut(f"{type(problem).__name__}: {problem}")
                return 1
            return 0

        return run


def _end(struct: GhostStruct) -> None:
    """The provider is deleted: operators find no exchange as long as nothing else is in that memory."""
    struct.magic = 0
    _ALIVE.discard(ctypes.addressof(struct))


def _cut(text: str) -> bytes:
    """As much as the struct holds, in whole characters."""
    return text.encode()[:251].decode(errors="ignore").encode()


def _rows(dtype: int, address: int | None, n_all: int, width: int) -> np.ndarray:
    """The memory behind the address as an array (n_all, width)."""
    kind: Any = np.dtype(np.float32 if dtype == 0 else np.float64)
    if address is None or n_all * width == 0:
        return np.zeros((n_all, width), kind)
    memory: Any = (ctypes.c_char * (n_all * width * kind.itemsize)).from_address(address)
    return np.frombuffer(memory, kind).reshape(n_all, width)


class MappingProvider(Provider):
    """Exchange within one process: ghost k copies owned row `owner[k]`."""

    def __init__(self, owner: np.ndarray | None = None, *, max_bytes_per_row: int = 0) -> None:
        super().__init__(max_bytes_per_row=max_bytes_per_row)
        self.owner = np.zeros(0, np.int64) if owner is None else np.array(owner, np.int64)
        if self.owner.ndim != 1:
            raise ValueError(f"owner must have one axis, the ghosts; got shape {self.owner.shape}")

    def forward(self, rows: np.ndarray, n_owned: int) -> None:
        """See `Provider.forward`."""
        self._check(rows, n_owned)
        rows[n_owned:] = rows[:n_owned][self.owner]

    def reverse(self, rows: np.ndarray, n_owned: int) -> None:
        """See `Provider.reverse`."""
        self._check(rows, n_owned)
        np.add.at(rows[:n_owned], self.owner, rows[n_owned:])

    def _check(self, rows: np.ndarray, n_owned: int) -> None:
        if len(rows) - n_owned != len(self.owner):
            raise ValueError(f"the table is of {len(self.owner)} ghosts, the exchange of {len(rows) - n_owned}")
        if len(self.owner) and not (self.owner.min() >= 0 and self.owner.max() < n_owned):
            raise ValueError(f"owners must be in [0, {n_owned}), got [{self.owner.min()}, {self.owner.max()}]")


class FaultProvider(Provider):
    """Another provider, one exchange of which fails: for tests of what happens then."""

    def __init__(self, inner: Provider, *, fail_at: int, kind: Literal["forward", "reverse"] | None = None) -> None:
        """fail_at: which exchange fails, counted from 1, of that kind or (None) of both."""
        super().__init__(max_bytes_per_row=int(inner.struct.max_bytes_per_row))
        self.inner, self.fail_at, self.kind, self.seen = inner, fail_at, kind, 0

    def forward(self, rows: np.ndarray, n_owned: int) -> None:
        """See `Provider.forward`."""
        self._count("forward")
        self.inner.forward(rows, n_owned)

    def reverse(self, rows: np.ndarray, n_owned: int) -> None:
        """See `Provider.reverse`."""
        self._count("reverse")
        self.inner.reverse(rows, n_owned)

    def _count(self, kind: str) -> None:
        if self.kind in (None, kind):
            self.seen += 1
            if self.seen == self.fail_at:
                raise RuntimeError(f"injected fault in exchange {self.seen}")
