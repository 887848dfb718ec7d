/* pair_style dpmodel/exchange CUTOFF WIDTH float32|float64: the exchange alone.

   Prints one line a step: EXCHANGE copies=<ghost rows that differ from their owner's> adjoint=<relative difference of
   <y, A x> and <A^T y, x> over all ranks> ghosts=<their number over all ranks>. */

#include "artefact.h"
#include "exchanging.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neighbor.h"
#include "utils.h"

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

using namespace LAMMPS_NS;

namespace {

class PairExchange : public dpmodel::Exchanging {
 public:
  explicit PairExchange(LAMMPS *lmp) : Exchanging(lmp) {
    restartinfo = single_enable = 0;
    one_coeff = manybody_flag = no_virial_fdotr_compute = 1;
  }
  ~PairExchange() override {
    if (!allocated) return;
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
  void settings(int, char **arg) override {
    cutoff_ = utils::numeric(FLERR, arg[0], false, lmp);
    width_ = utils::inumeric(FLERR, arg[1], false, lmp);
    is_double_ = std::strcmp(arg[2], "float64") == 0;
    const int32_t dtype = is_double_ ? 1 : 0;
    declare_exchanges({{false, dtype, width_}, {true, dtype, width_}}, width_ * (is_double_ ? 8 : 4));
  }
  void coeff(int, char **) override {
    const int n = atom->ntypes;
    if (!allocated) {
      allocated = 1;
      memory->create(setflag, n + 1, n + 1, "pair:setflag");
      memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
    }
    for (int i = 1; i <= n; ++i)
      for (int j = 1; j <= n; ++j) setflag[i][j] = 1;
  }
  void init_style() override { neighbor->add_request(this, NeighConst::REQ_FULL); }
  double init_one(int, int) override { return cutoff_; }
  void compute(int eflag, int vflag) override {
    ev_init(eflag, vflag);
    is_double_ ? test<double>() : test<float>();
  }

 private:
  template <class T>
  void test() {
    const int64_t owned = atom->nlocal, all = owned + atom->nghost;
    const int32_t dtype = is_double_ ? 1 : 0;
    std::vector<T> x(all * width_, T(-1)), y(all * width_);
    for (int64_t i = 0; i < owned; ++i) fill(x, i);
    begin_exchanges();
    if (exchange(false, dtype, x.data(), owned, all, width_) != 0) error->one(FLERR, ghosts_.message);
    std::vector<T> expected(all * width_);
    for (int64_t i = 0; i < all; ++i) fill(expected, i);
    long long wrong = 0;
    for (int64_t i = 0; i < all; ++i)
      wrong += std::memcmp(x.data() + i * width_, expected.data() + i * width_, width_ * sizeof(T)) != 0;
    std::mt19937 random(7 + comm->me);
    std::uniform_real_distribution<double> uniform(-1.0, 1.0);
    double sums[4] = {0.0, 0.0, static_cast<double>(wrong), static_cast<double>(all - owned)}, total[4];
    for (int64_t k = 0; k < all * width_; ++k) {
      y[k] = static_cast<T>(uniform(random));
      sums[0] += static_cast<double>(y[k]) * x[k];
    }
    if (exchange(true, dtype, y.data(), owned, all, width_) != 0) error->one(FLERR, ghosts_.message);
    for (int64_t k = 0; k < owned * width_; ++k) sums[1] += static_cast<double>(y[k]) * x[k];
    MPI_Allreduce(sums, total, 4, MPI_DOUBLE, MPI_SUM, world);
    const double scale = std::max(std::fabs(total[0]), 1.0);
    if (comm->me == 0)
      utils::logmesg(lmp, "EXCHANGE copies={} adjoint={} ghosts={} style={} complete={}\n", total[2],
                     std::fabs(total[0] - total[1]) / scale, total[3], comm->style == Comm::BRICK ? "brick" : "tiled",
                     all_exchanged());
  }
  template <class T>
  void fill(std::vector<T> &rows, int64_t i) {
    for (int k = 0; k < width_; ++k) rows[i * width_ + k] = static_cast<T>(std::sin(1.7 * atom->tag[i] + k));
  }

  double cutoff_ = 0.0;
  int width_ = 0;
  bool is_double_ = true;
};

}  // namespace

Pair *create_exchange_test(LAMMPS *lmp) { return new PairExchange(lmp); }
