// The exchange operators: schemas and kernels. Shapes of results for tracing and derivatives are in ghosts/ops.py.
//
// Each is linear, the adjoint of the other, and functional: the result is fresh and contiguous, inputs are not written.
// The provider is called whatever the sizes, so that all processes make equally many calls.

#include "dpmodel_ghosts.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <exception>
#include <string>

namespace {

enum class Kind { forward, reverse };

const char *name(Kind kind) { return kind == Kind::forward ? "forward" : "reverse"; }

const char *type_name(at::ScalarType type) {
  return type == at::kFloat ? "float32" : type == at::kDouble ? "float64" : c10::toString(type);
}

// Reads no more than the head of the struct until that is known to be one.
dpmodel_ghosts *provider_of(const at::Tensor &handle) {
  TORCH_CHECK(handle.device().is_cpu() && handle.scalar_type() == at::kLong && handle.numel() == 1,
              "dpmodel ghosts: the handle must be one int64 on the CPU, got ", handle.numel(), " of ",
              handle.scalar_type(), " on ", handle.device(), ". Keep `graph.comm.handle` on the CPU");
  auto *p = reinterpret_cast<dpmodel_ghosts *>(*handle.const_data_ptr<int64_t>());
  TORCH_CHECK(p != nullptr, "dpmodel ghosts: the handle is null: no exchange was set up for this graph");
  TORCH_CHECK(p->magic == DPMODEL_GHOSTS_MAGIC, "dpmodel ghosts: the handle points to no exchange (expected magic ",
              DPMODEL_GHOSTS_MAGIC, ", found ", p->magic, "): was its provider deleted?");
  TORCH_CHECK(p->abi == DPMODEL_GHOSTS_ABI && p->bytes == sizeof(dpmodel_ghosts),
              "dpmodel ghosts: the exchange was built for abi ", p->abi, " (", p->bytes, " bytes), this library is abi ",
              DPMODEL_GHOSTS_ABI, " (", sizeof(dpmodel_ghosts), " bytes): build both from one version of dpmodel");
  TORCH_CHECK(p->forward != nullptr && p->reverse != nullptr, "dpmodel ghosts: the exchange lacks a function");
  return p;
}

// One exchange: what it is called in messages, and the failure that sticks.
struct Exchange {
  dpmodel_ghosts *provider;
  Kind kind;
  std::string about;

  Exchange(dpmodel_ghosts *p, Kind k, const at::Tensor &x, int64_t n_owned, int64_t n_all, int64_t width)
      : provider(p), kind(k) {
    const auto number = (k == Kind::forward ? p->n_forward : p->n_reverse) + 1;
    about = std::string(name(k)) + " exchange " + std::to_string(number) + " (" + type_name(x.scalar_type()) +
            ", width " + std::to_string(width) + ", " + std::to_string(n_owned) + " owned of " +
            std::to_string(n_all) + " rows)";
  }

  [[noreturn]] void fail(int32_t code, const std::string &reason) const {
    if (provider->error == 0) provider->error = code == 0 ? 1 : code;
    auto text = about + ": " + reason;
    if (text.size() >= sizeof(provider->message)) {
      auto end = sizeof(provider->message) - 1;
      while (end > 0 && (text[end] & 0xC0) == 0x80) --end;  // whole characters of UTF-8
      text.resize(end);
    }
    text.copy(provider->message, text.size());
    provider->message[text.size()] = '\0';
    TORCH_CHECK(false, "dpmodel ghosts: ", provider->message);
  }

  void check_not_failed() const {
    TORCH_CHECK(provider->error == 0, "dpmodel ghosts: an earlier exchange failed: ", provider->message);
  }

  void run(int32_t dtype, void *rows, int64_t n_owned, int64_t n_all, int64_t width) const {
    auto *p = provider;
    p->message[0] = '\0';
    int32_t code = 1;
    std::string thrown;
    try {
      if (kind == Kind::forward) {
        ++p->n_forward;
        code = p->forward(p->ctx, dtype, rows, n_owned, n_all, width);
      } else {
        ++p->n_reverse;
        code = p->reverse(p->ctx, dtype, rows, n_owned, n_all, width);
      }
    } catch (const std::exception &problem) {
      thrown = problem.what();
    } catch (...) {
      thrown = "an exception that is no std::exception";
    }
    if (code == 0 && p->error == 0) return;
    p->message[sizeof(p->message) - 1] = '\0';
    const std::string said = p->message;
    fail(code, !thrown.empty() ? thrown : !said.empty() ? said : "the provider returned " + std::to_string(code));
  }
};

at::Tensor exchange(Kind kind, const at::Tensor &x, const at::Tensor &handle, int64_t rows) {
  auto *p = provider_of(handle);
  TORCH_CHECK(x.dim() >= 1, "dpmodel ghosts: rows are expected, got a scalar");
  const bool forward = kind == Kind::forward;
  const int64_t given = x.size(0);
  const int64_t n_owned = forward ? given : rows;
  const int64_t n_all = forward ? rows : given;
  auto shape = x.sizes().vec();
  int64_t width = 1;
  for (size_t d = 1; d < shape.size(); ++d) width *= shape[d];

  const Exchange call(p, kind, x, n_owned, n_all, width);
  call.check_not_failed();
  if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble) call.fail(1, "only float32 and float64 are carried");
  if (n_owned < 0 || n_all < n_owned) call.fail(1, "owned rows must be among all rows");
  const int64_t bytes = width * static_cast<int64_t>(x.element_size());
  if (p->max_bytes_per_row > 0 && bytes > p->max_bytes_per_row) {
    call.fail(1, std::to_string(bytes) + " bytes a row, the provider carries at most " +
                     std::to_string(p->max_bytes_per_row));
  }
  const int32_t dtype = x.scalar_type() == at::kFloat ? DPMODEL_GHOSTS_FLOAT32 : DPMODEL_GHOSTS_FLOAT64;
  const int64_t n_ghost = n_all - n_owned;
  const bool staged = !x.device().is_cpu();

  // The rows that the provider sees: the result itself on the CPU, pinned host memory for a device.
  shape[0] = n_all;
  auto host = staged ? at::empty(shape, at::TensorOptions(x.scalar_type()).device(at::kCPU).pinned_memory(true))
                     : at::empty(shape, x.options());
  if (!staged) {
    host.narrow(0, 0, given).copy_(x);
    call.run(dtype, host.data_ptr(), n_owned, n_all, width);
    return forward ? host : host.narrow(0, 0, n_owned);
  }

  // Everything below is ordered by the current stream; before the host reads, that stream is waited for. Copies that
  // are still under way when `host` goes out of scope are safe: torch's pinned memory is reused behind an event only.
  const c10::impl::VirtualGuardImpl device(x.device().type());
  const auto stream = device.getStream(x.device());
  if (forward) {
    auto result = at::empty(shape, x.options());
    result.narrow(0, 0, n_owned).copy_(x);
    host.narrow(0, 0, n_owned).copy_(x, /*non_blocking=*/true);
    device.synchronizeStream(stream);
    call.run(dtype, host.data_ptr(), n_owned, n_all, width);
    result.narrow(0, n_owned, n_ghost).copy_(host.narrow(0, n_owned, n_ghost), /*non_blocking=*/true);
    return result;
  }
  // The exchange is linear: ghosts' shares are gathered onto zeros, and added to the owned rows on the device.
  host.narrow(0, 0, n_owned).zero_();
  host.narrow(0, n_owned, n_ghost).copy_(x.narrow(0, n_owned, n_ghost), /*non_blocking=*/true);
  device.synchronizeStream(stream);
  call.run(dtype, host.data_ptr(), n_owned, n_all, width);
  shape[0] = n_owned;
  auto result = at::empty(shape, x.options());
  result.copy_(host.narrow(0, 0, n_owned), /*non_blocking=*/true);
  return result.add_(x.narrow(0, 0, n_owned));
}

at::Tensor ghost_forward(const at::Tensor &x, const at::Tensor &handle, int64_t n_all) {
  return exchange(Kind::forward, x, handle, n_all);
}

at::Tensor ghost_reverse(const at::Tensor &g, const at::Tensor &handle, int64_t n_owned) {
  return exchange(Kind::reverse, g, handle, n_owned);
}

at::Tensor ghost_after(const at::Tensor &handle, const at::Tensor & /*before*/) { return handle.clone(); }

}  // namespace

TORCH_LIBRARY(dpmodel, library) {
  library.def("ghost_forward(Tensor x, Tensor handle, SymInt n_all) -> Tensor");
  library.def("ghost_reverse(Tensor g, Tensor handle, SymInt n_owned) -> Tensor");
  // The handle, once `before` has been computed: exchanges through it come later, whatever a compiler rearranges.
  library.def("ghost_after(Tensor handle, Tensor before) -> Tensor");
}

TORCH_LIBRARY_IMPL(dpmodel, CompositeExplicitAutograd, library) { library.impl("ghost_after", ghost_after); }

// Explicit keys: a composite kernel would be taken apart by torch.export and read memory of fake tensors.
TORCH_LIBRARY_IMPL(dpmodel, CPU, library) {
  library.impl("ghost_forward", ghost_forward);
  library.impl("ghost_reverse", ghost_reverse);
}

TORCH_LIBRARY_IMPL(dpmodel, CUDA, library) {
  library.impl("ghost_forward", ghost_forward);
  library.impl("ghost_reverse", ghost_reverse);
}
