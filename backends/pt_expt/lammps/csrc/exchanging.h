/* A pair style that can fill ghost rows of a table, and add them to their owners, by LAMMPS's own communication.

   LAMMPS relays: rows received in one direction are sent on in the next, so packing reads the table that unpacking
   writes. It works the same for bricks, tiles, images of a rank's own atoms, and ranks without atoms. */
#pragma once

#include "dpmodel_ghosts.h"
#include "graph.h"

#include "pair.h"

#include <cstdint>
#include <vector>

namespace dpmodel {

struct ExchangeInfo;

class Exchanging : public LAMMPS_NS::Pair {
 public:
  explicit Exchanging(LAMMPS_NS::LAMMPS *lmp);

  int pack_forward_comm(int count, int *rows, double *buffer, int pbc_flag, int *pbc) override;
  void unpack_forward_comm(int count, int first, double *buffer) override;
  int pack_reverse_comm(int count, int first, double *buffer) override;
  void unpack_reverse_comm(int count, int *rows, double *buffer) override;

 protected:
  /* Before any `init`: buffers are made there, for the widest rows. each: rows of the table for an atom (`Nodes`). */
  void declare_exchanges(std::vector<ExchangeInfo> schedule, int64_t max_bytes_per_row, int64_t each = 1);
  /* Before every run of the model. */
  void begin_exchanges();
  /* After it: whether every exchange of the schedule has been made. */
  bool all_exchanged() const;
  /* One exchange; for tests too. Returns 0, or not 0 with the reason in `ghosts_.message`. */
  int32_t exchange(bool reverse, int32_t dtype, void *rows, int64_t owned, int64_t all, int64_t width) noexcept;

  dpmodel_ghosts ghosts_;

 private:
  static int32_t forward(void *self, int32_t dtype, void *rows, int64_t owned, int64_t all, int64_t width);
  static int32_t reverse(void *self, int32_t dtype, void *rows, int64_t owned, int64_t all, int64_t width);
  int32_t refuse(const char *reason) noexcept;
  template <class Atom, class Use>
  void each_row(int count, double *buffer, Atom atom_at, Use use) const;
  template <class Atom>
  int pack(int count, double *buffer, Atom atom_at) const;

  std::vector<ExchangeInfo> schedule_;
  size_t done_ = 0;
  int64_t each_ = 1;
  // Of the exchange that is going on:
  char *table_ = nullptr;
  int64_t width_ = 0;
  bool is_double_ = true;
  size_t row_bytes_ = 0;
  int row_doubles_ = 0;  // one row in LAMMPS's buffers, which are of doubles; an atom sends `each_` rows
  Nodes nodes_;
};

}  // namespace dpmodel
