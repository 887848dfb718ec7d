"""The exchange operators with providers of one process: numbers, derivatives, faults."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
import pytest
import torch

from dpmodel.backends.pt_expt.ghosts import FaultProvider, MappingProvider, failure_of, library, load_ops
from dpmodel.backends.pt_expt.ghosts.providers import ABI, MAGIC, GhostStruct
from dpmodel.errors import BackendError

from .exchanges import OWNER, Elsewhere, M, N, each_dtype, handle_of

each_kind = pytest.mark.parametrize("kind", ["forward", "reverse"])


@pytest.fixture(scope="module")
def ops() -> Any:
    load_ops()
    return torch.ops.dpmodel


def rows(shape, dtype, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator, **options)


def operator(ops, kind):
    """The operator, rows that it takes, and the number of rows that it is asked for."""
    return (ops.ghost_forward.default, N, M) if kind == "forward" else (ops.ghost_reverse.default, M, N)


# --- numbers ---------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("tail", [(), (1,), (7,), (64,), (128,), (3, 4), (0,)], ids=str)
def test_numbers(ops, dtype, tail):
    provider = MappingProvider(OWNER)
    x, g = rows((N, *tail), dtype), rows((M, *tail), dtype, seed=1)
    out = ops.ghost_forward(x, handle_of(provider), M)
    assert torch.equal(out, torch.cat([x, x[OWNER]]))  # bitwise
    back = ops.ghost_reverse(g, handle_of(provider), N)
    expected = g[:N].clone()
    for k, row in enumerate(OWNER):
        expected[row] += g[N + k]
    torch.testing.assert_close(back, expected, rtol=1e-6 if dtype == torch.float32 else 1e-15, atol=0)
    left, right = (torch.sum(a.double() * b.double()).item() for a, b in ((g, out), (back, x)))
    scale = torch.sum(torch.abs(g.double() * out.double())).item()
    assert abs(left - right) <= (1e-6 if dtype == torch.float32 else 1e-14) * scale
    for result in (out, back):
        assert result.dtype == dtype
        assert result.is_contiguous()
    assert (provider.n_forward, provider.n_reverse, provider.error) == (1, 1, None)


@each_kind
@each_dtype
def test_inputs_are_not_written_and_results_are_fresh(ops, kind, dtype):
    op, given, asked = operator(ops, kind)
    x = rows((given, 6), dtype)
    before, handle = x.clone(), handle_of(provider := MappingProvider(OWNER))
    out = op(x, handle, asked)
    assert torch.equal(x, before)
    assert torch.equal(handle, handle_of(provider))
    assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    out.fill_(7.0)
    assert torch.equal(x, before)
    nothing = MappingProvider()  # no ghosts: still no alias
    same = op(x, handle_of(nothing), given)
    assert torch.equal(same, x)
    assert same.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


@each_kind
def test_strided_inputs(ops, kind):
    op, given, asked = operator(ops, kind)
    handle = handle_of(provider := MappingProvider(OWNER))
    wide = rows((4, given, 2), torch.float64)
    strided = wide.permute(1, 2, 0)[:, :, ::2]
    assert not strided.is_contiguous()
    out = op(strided, handle, asked)
    assert out.is_contiguous()
    assert torch.equal(out, op(strided.contiguous(), handle, asked))
    assert provider.error is None


@pytest.mark.parametrize(("n", "ghosts"), [(0, 0), (3, 0), (1, 1)])
@each_dtype
def test_small_sizes_call_the_provider_all_the_same(ops, dtype, n, ghosts):
    provider = MappingProvider(np.zeros(ghosts, np.int64))
    handle = handle_of(provider)
    out = ops.ghost_forward(rows((n, 4), dtype), handle, n + ghosts)
    assert out.shape == (n + ghosts, 4)
    assert ops.ghost_reverse(out, handle, n).shape == (n, 4)
    assert (provider.n_forward, provider.n_reverse) == (1, 1)


def test_ghosts_without_owned_rows(ops):
    provider = Elsewhere()
    handle, x = handle_of(provider), torch.zeros((0, 2), dtype=torch.float64, requires_grad=True)
    out = ops.ghost_forward(x, handle, 3)
    assert torch.equal(out, torch.ones((3, 2), dtype=torch.float64))
    (slope,) = torch.autograd.grad((out * torch.arange(6.0).reshape(3, 2)).sum(), x)
    assert slope.shape == (0, 2)
    assert np.array_equal(provider.sent, np.arange(6.0).reshape(3, 2))


# --- derivatives -------------------------------------------------------------------------------------------


@each_kind
@each_dtype
def test_opcheck(ops, kind, dtype):
    op, given, asked = operator(ops, kind)
    handle = handle_of(provider := MappingProvider(OWNER))
    for x in (rows((given, 3), dtype, requires_grad=True), rows((given, 2, 3), dtype)):
        done = torch.library.opcheck(op, (x, handle, asked))
        assert set(done.values()) == {"SUCCESS"}, done
        assert len(done) == 4
    assert provider.error is None


@each_kind
@pytest.mark.parametrize("n", [0, N])
def test_derivatives(ops, kind, n):
    owner = OWNER if n else OWNER[:0]
    handle = handle_of(provider := MappingProvider(owner))
    m = n + len(owner)
    op, given, asked = (ops.ghost_forward, n, m) if kind == "forward" else (ops.ghost_reverse, m, n)
    x = rows((given, 2), torch.float64, requires_grad=True)

    def function(x):  # not linear, so that second derivatives are not zero
        return op(x * x, handle, asked) ** 2

    if given:
        assert torch.autograd.gradcheck(function, (x,))
        assert torch.autograd.gradgradcheck(function, (x,))
    first = torch.autograd.grad(function(x).sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(first.sum(), x)[0].shape == x.shape
    assert provider.error is None
    assert provider.n_forward > 0
    assert provider.n_reverse > 0


def test_each_is_the_gradient_of_the_other(ops):
    handle = handle_of(provider := MappingProvider(OWNER))
    x, g = rows((N, 3), torch.float64, requires_grad=True), rows((M, 3), torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(ops.ghost_forward(x, handle, M), x, g.detach())
    assert (provider.n_forward, provider.n_reverse) == (1, 1)
    assert torch.equal(dx, ops.ghost_reverse(g.detach(), handle, N))
    (dg,) = torch.autograd.grad(ops.ghost_reverse(g, handle, N), g, x.detach())
    assert torch.equal(dg, ops.ghost_forward(x.detach(), handle, M))


def test_expanded_gradients(ops):
    """The gradient of a sum has stride 0."""
    handle = handle_of(provider := MappingProvider(OWNER))
    x = rows((N, 3), torch.float64, requires_grad=True)
    ops.ghost_forward(x, handle, M).sum().backward()
    expected = 1.0 + np.bincount(OWNER, minlength=N)[:, None] * np.ones((1, 3))
    assert np.array_equal(x.grad.numpy(), expected)
    assert provider.error is None


def test_no_batches(ops):
    handle = handle_of(provider := MappingProvider(OWNER))
    with pytest.raises(RuntimeError, match="cannot be batched by vmap"):
        torch.func.vmap(lambda x: ops.ghost_forward(x, handle, M))(rows((2, N, 3), torch.float64))
    assert provider.n_forward == 0


# --- faults --------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_failed_exchange_sticks(ops, kind, at):
    inner = MappingProvider(OWNER)
    provider = FaultProvider(inner, fail_at=at, kind=kind)
    handle, (op, given, asked) = handle_of(provider), operator(ops, kind)
    x = rows((given, 3), torch.float32)
    other, other_given, other_asked = operator(ops, "reverse" if kind == "forward" else "forward")
    other(rows((other_given, 3), torch.float32), handle, other_asked)  # another kind is not counted
    for _ in range(at - 1):
        op(x, handle, asked)
    named = rf"{kind} exchange {at} \(float32, width 3, {N} owned of {M} rows\): RuntimeError: injected fault"
    with pytest.raises(RuntimeError, match="dpmodel ghosts: " + named):
        op(x, handle, asked)
    calls = provider.n_forward, provider.n_reverse
    for late, rows_given, rows_asked in (operator(ops, "forward"), operator(ops, "reverse")):
        with pytest.raises(RuntimeError, match="an earlier exchange failed: " + named):
            late(rows((rows_given, 3), torch.float32), handle, rows_asked)
    assert (provider.n_forward, provider.n_reverse) == calls  # nobody was called
    assert re.match(named, provider.error)
    assert provider.struct.error == 1
    assert isinstance(provider.exception, RuntimeError)
    provider.reset()
    op(x, handle, asked)
    assert (provider.error, provider.exception) == (None, None)


def test_a_failed_exchange_inside_a_backward_pass(ops):
    provider = FaultProvider(MappingProvider(OWNER), fail_at=1, kind="reverse")
    x = rows((N, 3), torch.float64, requires_grad=True)
    out = ops.ghost_forward(x, handle_of(provider), M)
    with pytest.raises(RuntimeError, match=r"reverse exchange 1 \(float64, width 3, .*injected fault"):
        out.sum().backward()


@pytest.mark.parametrize("before", ["", "x", "xy"])
def test_long_messages_are_cut_between_characters(ops, before):
    class Talkative(MappingProvider):
        def forward(self, rows, n_owned):
            raise ValueError(before + "€" * 400)

    provider = Talkative(OWNER)
    with pytest.raises(RuntimeError, match=rf"forward exchange 1 .*ValueError: {before}€+$"):
        ops.ghost_forward(rows((N, 1), torch.float64), handle_of(provider), M)
    assert provider.struct.message.decode() == provider.error
    assert 249 <= len(provider.struct.message) <= 251


def test_a_table_that_does_not_fit(ops):
    for owner, message in ((OWNER[:-1], "the table is of 5 ghosts, the exchange of 6"), (OWNER + 2, r"\[0, 5\), got")):
        with pytest.raises(RuntimeError, match=message):
            ops.ghost_forward(rows((N, 1), torch.float64), handle_of(p := MappingProvider(owner)), M)
        assert p.error


@each_kind
def test_handles_that_are_none(ops, kind):
    op, given, asked = operator(ops, kind)
    x = rows((given, 2), torch.float64)
    for handle, message in (
        (torch.zeros(1, dtype=torch.int64), "the handle is null"),
        (torch.zeros(2, dtype=torch.int64), r"must be one int64 on the CPU, got 2 of Long"),
        (torch.zeros(0, dtype=torch.int64), r"got 0 of Long"),
        (torch.zeros(1, dtype=torch.float64), r"got 1 of Double on cpu"),
    ):
        with pytest.raises(RuntimeError, match=message):
            op(x, handle, asked)


@each_kind
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"magic": 1}, rf"expected magic {MAGIC}, found 1\): was its provider deleted"),
        ({"abi": 2}, r"built for abi 2 \(320 bytes\), this library is abi 1 \(320 bytes\)"),
        ({"bytes": 312}, r"built for abi 1 \(312 bytes\)"),
        ({"forward": type(GhostStruct().forward)()}, "lacks a function"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_structs_that_are_others(ops, kind, change, message):
    op, given, asked = operator(ops, kind)
    provider = MappingProvider(OWNER)
    for field, value in change.items():
        setattr(provider.struct, field, value)
    with pytest.raises(RuntimeError, match=message):
        op(rows((given, 2), torch.float64), handle_of(provider), asked)


@each_kind
def test_providers_that_are_deleted(ops, kind):
    """The memory is kept here: whether it is used again is not ours to say."""
    op, given, asked = operator(ops, kind)
    provider = MappingProvider(OWNER)
    handle, memory = handle_of(provider), provider.struct
    assert failure_of(handle) is None
    del provider
    assert memory.magic == 0
    with pytest.raises(RuntimeError, match=rf"expected magic {MAGIC}, found 0\): was its provider deleted"):
        op(rows((given, 2), torch.float64), handle, asked)
    assert "was its provider deleted" in failure_of(handle)


@pytest.mark.parametrize("address", [8, 2**46])
def test_addresses_of_nobody_are_not_read(address):
    assert "the handle points to no exchange" in failure_of(np.array([address]))


def test_the_struct_is_that_of_the_header():
    assert ctypes.sizeof(GhostStruct) == 320
    assert ABI == 1
    header = (library.CSRC / "dpmodel_ghosts.h").read_text()
    assert f"#define DPMODEL_GHOSTS_MAGIC {MAGIC:#x}ull" in header
    assert f"#define DPMODEL_GHOSTS_ABI {ABI}u" in header


@each_kind
def test_rows_wider_than_the_provider_carries(ops, kind):
    op, given, asked = operator(ops, kind)
    provider = MappingProvider(OWNER, max_bytes_per_row=8 * 4)
    op(rows((given, 4), torch.float64), handle_of(provider), asked)
    op(rows((given, 2, 4), torch.float32), handle_of(provider), asked)
    with pytest.raises(RuntimeError, match=r"width 5, .*40 bytes a row, the provider carries at most 32"):
        op(rows((given, 5), torch.float64), handle_of(provider), asked)
    assert provider.error  # it sticks as well
    assert provider.n_forward + provider.n_reverse == 2


def test_arguments_that_do_not_fit(ops):
    for x, rows_asked, message in (
        (rows((N, 2), torch.float64), N - 1, "owned rows must be among all rows"),
        (rows((N, 2), torch.float64), -1, "owned rows must be among all rows"),
        (torch.zeros((N, 2), dtype=torch.int64), N, "Long.*only float32 and float64 are carried"),
        (torch.zeros((N, 2), dtype=torch.float16), N, "Half.*only float32 and float64 are carried"),
    ):
        provider = MappingProvider()
        with pytest.raises(RuntimeError, match=message):
            ops.ghost_forward(x, handle_of(provider), rows_asked)
        assert provider.error
    handle = handle_of(provider := MappingProvider())
    with pytest.raises(RuntimeError, match="rows are expected, got a scalar"):
        ops.ghost_forward(torch.tensor(1.0), handle, 1)
    with pytest.raises(RuntimeError, match="owned rows must be among all rows"):
        ops.ghost_reverse(rows((N, 2), torch.float64), handle, N + 1)
    assert "reverse exchange 1 " in provider.error


def test_a_broken_library_is_named_with_versions(tmp_path, monkeypatch):
    broken = tmp_path / "libdpmodel_ops.so"
    broken.write_bytes(b"\x7fELF, but not much more")
    (tmp_path / "built_for.txt").write_text("torch 1.2.3\n")
    monkeypatch.setattr(library, "_loaded", [])
    monkeypatch.setattr(library, "ops_library", lambda: broken)
    monkeypatch.setattr(torch.ops, "dpmodel", object())
    version = re.escape(str(torch.__version__))
    with pytest.raises(BackendError, match=rf"{broken}.*Expected .* torch {version}, found .* torch 1\.2\.3\. Delete"):
        load_ops()


def test_loading_twice(ops):
    assert load_ops() == load_ops()
    assert load_ops().name == "libdpmodel_ops.so"
