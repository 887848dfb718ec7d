/* What the pair style does with the numbers that a model gives. */
#include "pair_dpmodel.h"

#include <ATen/ATen.h>

#include "atom.h"
#include "comm.h"
#include "force.h"
#include "update.h"

#include <cmath>

#ifdef DPMODEL_TESTING
#include "faults.h"
#endif

namespace dpmodel {

constexpr double TWO_PI = 6.283185307179586;

void PairDPModel::check_numbers(const std::map<std::string, at::Tensor> &outputs, std::string &problem) const {
#ifdef DPMODEL_TESTING
  poison_force(outputs.at("force"), comm->me, update->ntimestep);
#endif
  int64_t bad = -1;
  for (const char *name : {"force", "force_mag"}) {
    const auto found = outputs.find(name);
    if (found == outputs.end()) continue;
    const double *f = found->second.data_ptr<double>();
    for (int64_t k = 0; k < found->second.numel() && bad < 0; ++k)
      if (!std::isfinite(f[k])) bad = k / 3;
  }
  bool energy_is_bad = !std::isfinite(outputs.at("energy").data_ptr<double>()[0]);
#ifdef DPMODEL_TESTING
  energy_is_bad = energy_is_bad || energy_must_be_nan(comm->me, update->ntimestep);
#endif
  if (bad < 0 && !energy_is_bad) return;
  problem = fmt::format("step {}: {} NaN or infinite. Look for atoms too close to each other, a time step too long, or a "
                        "configuration far from what the model was trained on", update->ntimestep,
                        bad >= 0 ? "the force on atom " + name_of(bad) + " is" : "the energy is");
}

void PairDPModel::add_results(const std::map<std::string, at::Tensor> &outputs) {
  const int64_t owned = atom->nlocal, all = owned + atom->nghost;
  const double force_unit = energy_unit_ / angstrom_;
  const double *forces = outputs.at("force").data_ptr<double>();
  double **f = atom->f;
  for (int64_t i = 0; i < all; ++i)
    for (int k = 0; k < 3; ++k) f[i][k] += force_unit * forces[3 * i + k];
  if (!model_->about.spin_scales.empty()) {
    // LAMMPS keeps -dE/d(direction of the spin) / hbar.
    const double unit = energy_unit_ / (force->hplanck / TWO_PI);
    const double *slope = outputs.at("force_mag").data_ptr<double>();
    for (int64_t i = 0; i < all; ++i)
      if (kind_[i] >= 0 && model_->about.spin_scales[kind_[i]] != 0.0)
        for (int k = 0; k < 3; ++k) atom->fm[i][k] += unit * atom->sp[i][3] * slope[3 * i + k];
  }
  if (eflag_global) eng_vdwl += energy_unit_ * outputs.at("energy").data_ptr<double>()[0];
  if (eflag_atom) {
    const double *energies = outputs.at("atom_energy").data_ptr<double>();
    for (int64_t i = 0; i < owned; ++i) eatom[i] += energy_unit_ * energies[i];
  }
  // LAMMPS: xx yy zz xy xz yz yx zx zy. Ours: rows are force components. The shares of single ranks and atoms are not
  // symmetric, their sum is.
  static constexpr int ROW[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2}, COLUMN[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};
  const auto symmetric = [](const double *w, int k) { return 0.5 * (w[3 * ROW[k] + COLUMN[k]] + w[3 * COLUMN[k] + ROW[k]]); };
  if (vflag_global) {
    const double *w = outputs.at("virial").data_ptr<double>();
    for (int k = 0; k < 6; ++k) virial[k] += energy_unit_ * symmetric(w, k);
  }
  if (!vflag_atom && !cvflag_atom) return;
  const double *shares = outputs.at("atom_virial").data_ptr<double>();
  for (int64_t i = 0; i < all; ++i) {
    const double *w = shares + 9 * i;
    if (vflag_atom)
      for (int k = 0; k < 6; ++k) vatom[i][k] += energy_unit_ * symmetric(w, k);
    if (cvflag_atom)
      for (int k = 0; k < 9; ++k) cvatom[i][k] += energy_unit_ * w[3 * COLUMN[k] + ROW[k]];
  }
}

}  // namespace dpmodel
