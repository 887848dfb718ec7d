#include "exchanging.h"

#include "artefact.h"

#include "atom.h"
#include "comm.h"

#include <cstdio>
#include <cstring>
#include <utility>

#ifdef DPMODEL_TESTING
#include "faults.h"
#endif

namespace dpmodel {

using namespace LAMMPS_NS;

Exchanging::Exchanging(LAMMPS *lmp) : Pair(lmp), ghosts_() {
  ghosts_.magic = DPMODEL_GHOSTS_MAGIC;
  ghosts_.abi = DPMODEL_GHOSTS_ABI;
  ghosts_.bytes = sizeof(ghosts_);
  ghosts_.ctx = this;
  ghosts_.forward = &Exchanging::forward;
  ghosts_.reverse = &Exchanging::reverse;
}

void Exchanging::declare_exchanges(std::vector<ExchangeInfo> schedule, int64_t max_bytes_per_row) {
  schedule_ = std::move(schedule);
  ghosts_.max_bytes_per_row = max_bytes_per_row;
  comm_forward = comm_reverse = static_cast<int>((max_bytes_per_row + 7) / 8);
}

void Exchanging::begin_exchanges() {
  done_ = 0;
  ghosts_.error = 0;
  ghosts_.n_forward = ghosts_.n_reverse = 0;  // messages count from the beginning of the step
  ghosts_.message[0] = '\0';
}

bool Exchanging::all_exchanged() const { return done_ == schedule_.size(); }

int32_t Exchanging::forward(void *self, int32_t dtype, void *rows, int64_t owned, int64_t all, int64_t width) {
  return static_cast<Exchanging *>(self)->exchange(false, dtype, rows, owned, all, width);
}

int32_t Exchanging::reverse(void *self, int32_t dtype, void *rows, int64_t owned, int64_t all, int64_t width) {
  return static_cast<Exchanging *>(self)->exchange(true, dtype, rows, owned, all, width);
}

int32_t Exchanging::refuse(const char *reason) noexcept {
  std::snprintf(ghosts_.message, sizeof(ghosts_.message), "%s", reason);
  return 1;
}

int32_t Exchanging::exchange(bool reverse, int32_t dtype, void *rows, int64_t owned, int64_t all,
                             int64_t width) noexcept {
  if (owned != atom->nlocal || all != static_cast<int64_t>(atom->nlocal) + atom->nghost) {
    std::snprintf(ghosts_.message, sizeof(ghosts_.message),
                  "the model exchanges %lld of %lld rows, LAMMPS has %d atoms and %d ghosts",
                  static_cast<long long>(owned), static_cast<long long>(all), atom->nlocal, atom->nghost);
    return 1;
  }
  if (done_ >= schedule_.size() || schedule_[done_].reverse != reverse || schedule_[done_].dtype != dtype ||
      schedule_[done_].width != width)
    return refuse("the model makes another exchange than its metadata say");
  is_double_ = dtype == DPMODEL_GHOSTS_FLOAT64;
  width_ = width;
  row_bytes_ = static_cast<size_t>(width) * (is_double_ ? sizeof(double) : sizeof(float));
  row_doubles_ = static_cast<int>((row_bytes_ + 7) / 8);
  if (row_doubles_ > (reverse ? comm_reverse : comm_forward))
    return refuse("its rows are wider than the buffers of LAMMPS, which were made by the model's metadata");
#ifdef DPMODEL_TESTING
  if (exchange_must_fail(comm->me, done_)) return refuse("a failure made for tests");
#endif
  ++done_;
  if (row_doubles_ == 0) return 0;  // LAMMPS takes a width of 0 for "the widest"; every rank has the same width
  table_ = static_cast<char *>(rows);
  int32_t status = 0;
  try {
    if (reverse)
      comm->reverse_comm(this, row_doubles_);
    else
      comm->forward_comm(this, row_doubles_);
  } catch (const std::exception &problem) {
    status = refuse(problem.what());
  } catch (...) {
    status = refuse("LAMMPS's communication failed");
  }
  table_ = nullptr;
  return status;
}

int Exchanging::pack_forward_comm(int count, int *rows, double *buffer, int /*pbc_flag*/, int * /*pbc*/) {
  for (int k = 0; k < count; ++k) {
    double *to = buffer + static_cast<size_t>(k) * row_doubles_;
    if (row_bytes_ % 8) to[row_doubles_ - 1] = 0.0;  // the unused half
    std::memcpy(to, table_ + static_cast<size_t>(rows[k]) * row_bytes_, row_bytes_);
  }
  return count * row_doubles_;
}

void Exchanging::unpack_forward_comm(int count, int first, double *buffer) {
  for (int k = 0; k < count; ++k)
    std::memcpy(table_ + static_cast<size_t>(first + k) * row_bytes_, buffer + static_cast<size_t>(k) * row_doubles_,
                row_bytes_);
}

int Exchanging::pack_reverse_comm(int count, int first, double *buffer) {
  for (int k = 0; k < count; ++k) {
    double *to = buffer + static_cast<size_t>(k) * row_doubles_;
    if (row_bytes_ % 8) to[row_doubles_ - 1] = 0.0;
    std::memcpy(to, table_ + static_cast<size_t>(first + k) * row_bytes_, row_bytes_);
  }
  return count * row_doubles_;
}

template <class T>
static void add_rows(int count, const int *rows, const double *buffer, int row_doubles, int64_t width, char *table) {
  for (int k = 0; k < count; ++k) {
    T *to = reinterpret_cast<T *>(table) + static_cast<size_t>(rows[k]) * width;
    const T *from = reinterpret_cast<const T *>(buffer + static_cast<size_t>(k) * row_doubles);
    for (int64_t c = 0; c < width; ++c) to[c] += from[c];
  }
}

void Exchanging::unpack_reverse_comm(int count, int *rows, double *buffer) {
  if (is_double_)
    add_rows<double>(count, rows, buffer, row_doubles_, width_, table_);
  else
    add_rows<float>(count, rows, buffer, row_doubles_, width_, table_);
}

}  // namespace dpmodel
