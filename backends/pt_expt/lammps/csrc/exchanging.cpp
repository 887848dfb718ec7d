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

void Exchanging::declare_exchanges(std::vector<ExchangeInfo> schedule, int64_t max_bytes_per_row, int64_t each) {
  schedule_ = std::move(schedule);
  each_ = each;
  ghosts_.max_bytes_per_row = max_bytes_per_row;
  comm_forward = comm_reverse = static_cast<int>(each * ((max_bytes_per_row + 7) / 8));
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
  nodes_ = {atom->nlocal, static_cast<int64_t>(atom->nlocal) + atom->nghost, each_};
  if (owned != each_ * nodes_.owned || all != each_ * nodes_.all) {
    std::snprintf(ghosts_.message, sizeof(ghosts_.message),
                  "the model exchanges %lld of %lld rows, LAMMPS has %d atoms and %d ghosts with %lld rows each",
                  static_cast<long long>(owned), static_cast<long long>(all), atom->nlocal, atom->nghost,
                  static_cast<long long>(each_));
    return 1;
  }
  if (done_ >= schedule_.size() || schedule_[done_].reverse != reverse || schedule_[done_].dtype != dtype ||
      schedule_[done_].width != width)
    return refuse("the model makes another exchange than its metadata say");
  is_double_ = dtype == DPMODEL_GHOSTS_FLOAT64;
  width_ = width;
  row_bytes_ = static_cast<size_t>(width) * (is_double_ ? sizeof(double) : sizeof(float));
  row_doubles_ = static_cast<int>((row_bytes_ + 7) / 8);
  const int atom_doubles = static_cast<int>(each_) * row_doubles_;
  if (atom_doubles > (reverse ? comm_reverse : comm_forward))
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
      comm->reverse_comm(this, atom_doubles);
    else
      comm->forward_comm(this, atom_doubles);
  } catch (const std::exception &problem) {
    status = refuse(problem.what());
  } catch (...) {
    status = refuse("LAMMPS's communication failed");
  }
  table_ = nullptr;
  return status;
}

/* Calls use(row of the table, place in the buffer) for all rows of some atoms. atom_at: of the k-th of them. */
template <class Atom, class Use>
void Exchanging::each_row(int count, double *buffer, Atom atom_at, Use use) const {
  for (int k = 0; k < count; ++k)
    for (int64_t which = 0; which < each_; ++which, buffer += row_doubles_)
      use(static_cast<size_t>(nodes_.row(atom_at(k), which)), buffer);
}

template <class Atom>
int Exchanging::pack(int count, double *buffer, Atom atom_at) const {
  each_row(count, buffer, atom_at, [this](size_t row, double *to) {
    if (row_bytes_ % 8) to[row_doubles_ - 1] = 0.0;  // the unused half
    std::memcpy(to, table_ + row * row_bytes_, row_bytes_);
  });
  return count * static_cast<int>(each_) * row_doubles_;
}

int Exchanging::pack_forward_comm(int count, int *rows, double *buffer, int /*pbc_flag*/, int * /*pbc*/) {
  return pack(count, buffer, [rows](int k) { return rows[k]; });
}

void Exchanging::unpack_forward_comm(int count, int first, double *buffer) {
  each_row(count, buffer, [first](int k) { return first + k; },
           [this](size_t row, const double *from) { std::memcpy(table_ + row * row_bytes_, from, row_bytes_); });
}

int Exchanging::pack_reverse_comm(int count, int first, double *buffer) {
  return pack(count, buffer, [first](int k) { return first + k; });
}

template <class T>
static void add_row(char *to, const double *from, int64_t width) {
  for (int64_t c = 0; c < width; ++c) reinterpret_cast<T *>(to)[c] += reinterpret_cast<const T *>(from)[c];
}

void Exchanging::unpack_reverse_comm(int count, int *rows, double *buffer) {
  const auto add = is_double_ ? add_row<double> : add_row<float>;
  each_row(count, buffer, [rows](int k) { return rows[k]; },
           [this, add](size_t row, const double *from) { add(table_ + row * row_bytes_, from, width_); });
}

}  // namespace dpmodel
