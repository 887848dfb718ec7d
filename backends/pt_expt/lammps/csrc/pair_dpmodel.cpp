#include "pair_dpmodel.h"

#include "threads.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "fix.h"
#include "force.h"
#include "memory.h"
#include "modify.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <unistd.h>

#ifdef DPMODEL_TESTING
#include "faults.h"
#endif

namespace dpmodel {

using namespace LAMMPS_NS;

namespace {

// Rows of the tables of dpmodel/nn/charge_spin.py.
constexpr double LARGEST_CHARGE = 100.0, LARGEST_SPIN = 100.0;

constexpr double BOLTZMANN = 8.617343e-5;  // eV/K, as LAMMPS has it in units metal

/* `Comm::bordergroup` is protected: name it through a class that may. */
struct BorderGroup : Comm {
  static int of(Comm *comm) { return comm->*(&BorderGroup::bordergroup); }
};

std::string joined(const std::vector<std::string> &words) {
  std::string text;
  for (const auto &word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

}  // namespace

PairDPModel::PairDPModel(LAMMPS *lmp) : Exchanging(lmp) {
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  single_enable = 0;
  respa_enable = 0;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
}

PairDPModel::~PairDPModel() {
  if (!allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

// --- errors ---------------------------------------------------------------------------------------------------

void PairDPModel::share(const std::string &problem) {
  const int none = comm->nprocs;
  int mine = problem.empty() ? none : comm->me, first = none;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == none) return;
  char text[1024] = "";
  if (comm->me == first) std::strncpy(text, problem.c_str(), sizeof(text) - 1);
  MPI_Bcast(text, sizeof(text), MPI_CHAR, first, world);
  const auto where = comm->nprocs > 1 ? fmt::format(" (on rank {})", first) : std::string();
  error->all(FLERR, Error::NOLASTLINE, "Pair style dpmodel: {}{}", text, where);
}

void PairDPModel::fail_alone(const std::string &problem) {
  if (comm->nprocs == 1) error->one(FLERR, Error::NOLASTLINE, "Pair style dpmodel: {}", problem);
  // Where several ranks fail in the same way the first of them speaks for all, and ends the others before they do.
  sleep(std::min(comm->me, 5));
  try {
    error->one(FLERR, Error::NOLASTLINE, "Pair style dpmodel: {}", problem);
  } catch (...) {
    // Under `lmp` the exception would end the job. In a library it would end this rank, and leave the others waiting.
    // An abort takes what mpiexec has not yet read of the message with it.
    std::fflush(nullptr);
    usleep(300000);
    MPI_Abort(world, 1);
    std::abort();
  }
}

std::string PairDPModel::name_of(int64_t row) const {
  if (!atom->tag_enable) return fmt::format("row {}", row);
  return fmt::format("{}", atom->tag[row]);
}

// --- input script ---------------------------------------------------------------------------------------------

void PairDPModel::settings(int narg, char **arg) {
  if (narg < 1)
    error->all(FLERR, "Pair style dpmodel: expected a model: pair_style dpmodel model.pt2 [fparam v ...] [aparam v ...] "
                      "[charge_spin q s] [max_spin v]");
  // What can fail comes first: a program that goes on after an error has the style as it was.
  auto model = load(arg[0]);
  auto parameters = read_options(*model, arg[0], narg - 1, arg + 1);
  path_ = arg[0];
  model_ = std::move(model);
  parameters_ = std::move(parameters);
  warned_ = false;
  if (allocated)  // a second pair_style command: coefficients are to be given again
    for (int i = 1; i <= atom->ntypes; ++i)
      for (int j = 1; j <= atom->ntypes; ++j) setflag[i][j] = 0;
  const auto &about = model_->about;
  builder_ = GraphBuilder(about.requests, about.graph_types, about.excluded, about.group_by_type, about.allow_overlap,
                          about.spin_scales);
  declare_exchanges(about.exchanges, about.max_bytes_per_row, about.graph_types / about.ntypes);
  keep_freed_memory();
  const int threads = threads_per_rank(world);
  at::set_num_threads(threads);
  if (comm->me == 0)
    utils::logmesg(lmp, "  dpmodel: {} with {} types, cutoff {} A, {} precision, {} thread(s) per rank\n", path_,
                   about.ntypes, about.rcut, about.precision, threads);
}

std::unique_ptr<Artefact> PairDPModel::load(const std::string &path) {
  std::string problem;
  std::unique_ptr<Artefact> model;
  try {
    model = std::make_unique<Artefact>(path);
  } catch (const std::exception &reason) {
    problem = fmt::format("cannot use the model {}: {}", path, reason.what());
  }
  share(problem);
  const uint64_t hashes[2] = {model->hash, ~model->hash};
  uint64_t least[2];
  MPI_Allreduce(hashes, least, 2, MPI_UINT64_T, MPI_MIN, world);
  if (least[0] != ~least[1])
    error->all(FLERR, Error::NOLASTLINE,
               "Pair style dpmodel: {} is not the same file on every rank. Use one file that all nodes see, or equal copies",
               path);
  return model;
}

void PairDPModel::need_model(const char *command) {
  if (!model_)
    error->all(FLERR, "Pair style dpmodel: {} needs a model, and no pair_style dpmodel command has loaded one", command);
}

std::vector<double> PairDPModel::read_numbers(int narg, char **arg, int &at, int64_t wanted) const {
  const std::string name = arg[at++];
  std::vector<double> values;
  while (at < narg && utils::is_double(arg[at])) values.push_back(utils::numeric(FLERR, arg[at++], false, lmp));
  if (static_cast<int64_t>(values.size()) != wanted)
    error->all(FLERR, "Pair style dpmodel: {} expects {} number(s) for this model, got {}", name, wanted, values.size());
  return values;
}

PairDPModel::Parameters PairDPModel::read_options(const Artefact &model, const std::string &path, int narg, char **arg) {
  const auto &about = model.about;
  Parameters given = {about.default_fparam, {}, about.default_charge_spin, 0.0};
  for (int at = 0; at < narg;) {
    const std::string name = arg[at];
    if (name == "fparam" && about.dim_fparam > 0)
      given.fparam = read_numbers(narg, arg, at, about.dim_fparam);
    else if (name == "aparam" && about.dim_aparam > 0)
      given.aparam = read_numbers(narg, arg, at, about.dim_aparam);
    else if (name == "charge_spin" && about.charge_spin)
      given.charge_spin = read_numbers(narg, arg, at, 2);
    else if (name == "max_spin" && !about.spin_scales.empty())
      given.max_spin = read_numbers(narg, arg, at, 1)[0];
    else if (name == "fparam" || name == "aparam" || name == "charge_spin" || name == "max_spin")
      error->all(FLERR, "Pair style dpmodel: this model takes no {}", name == "max_spin" ? "spins" : name);
    else
      error->all(FLERR, "Pair style dpmodel: unknown option '{}'; known are fparam, aparam, charge_spin and max_spin. One model "
                        "can be given", name);
    if (name == "max_spin" && !(given.max_spin > 0.0 && std::isfinite(given.max_spin)))
      error->all(FLERR, "Pair style dpmodel: max_spin expects a length above 0, got {}", given.max_spin);
  }
  const char *missing = about.dim_fparam > 0 && given.fparam.empty()    ? "fparam"
                        : about.dim_aparam > 0 && given.aparam.empty()  ? "aparam"
                        : about.charge_spin && given.charge_spin.empty() ? "charge_spin"
                                                                         : nullptr;
  if (missing != nullptr)
    error->all(FLERR, "Pair style dpmodel: this model needs {}: pair_style dpmodel {} {} v ...", missing, path, missing);
  if (about.charge_spin) {
    const double charge = std::trunc(given.charge_spin[0]), spin = std::trunc(given.charge_spin[1]);
    if (!(std::fabs(charge) <= LARGEST_CHARGE && spin >= 0.0 && spin <= LARGEST_SPIN))
      error->all(FLERR, "Pair style dpmodel: charge_spin expects a charge from {} to {} and a spin from 0 to {}, got {} {}",
                 -LARGEST_CHARGE, LARGEST_CHARGE, LARGEST_SPIN, given.charge_spin[0], given.charge_spin[1]);
  }
  return given;
}

void PairDPModel::coeff(int narg, char **arg) {
  need_model("pair_coeff");
  const int ntypes = atom->ntypes;
  const auto &names = model_->about.type_map;
  const auto known = joined(names);
  if (narg < 2 || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
    error->all(FLERR, "Pair style dpmodel: expected pair_coeff * * [name of every type], got '{}'",
               narg > 1 ? fmt::format("{} {}", arg[0], arg[1]) : "");
  if (narg > 2 && narg - 2 != ntypes)
    error->all(FLERR, "Pair style dpmodel: pair_coeff names {} types, the simulation has {}: give one name (of {}) or NULL for each",
               narg - 2, ntypes, known);
  if (narg == 2 && ntypes > model_->about.ntypes)
    error->all(FLERR, "Pair style dpmodel: the simulation has {} types and the model {} ({}): name them in pair_coeff * *",
               ntypes, model_->about.ntypes, known);
  std::vector<int64_t> type_of(ntypes + 1, -1);
  for (int type = 1; type <= ntypes; ++type) {
    if (narg == 2) {
      type_of[type] = type - 1;
    } else if (std::strcmp(arg[type + 1], "NULL") != 0) {
      const auto at = std::find(names.begin(), names.end(), arg[type + 1]);
      if (at == names.end())
        error->all(FLERR, "Pair style dpmodel: the model has no type '{}'; it has {}", arg[type + 1], known);
      type_of[type] = at - names.begin();
    }
  }
  type_of_ = std::move(type_of);
  if (!allocated) {
    allocated = 1;
    memory->create(setflag, ntypes + 1, ntypes + 1, "pair:setflag");
    memory->create(cutsq, ntypes + 1, ntypes + 1, "pair:cutsq");
  }
  // Alone, this style answers for all types. Beside others, types that it does not know are theirs.
  const bool alone = !utils::strmatch(force->pair_style, "^hybrid");
  for (int i = 1; i <= ntypes; ++i)
    for (int j = 1; j <= ntypes; ++j) setflag[i][j] = alone || (type_of_[i] >= 0 && type_of_[j] >= 0);
}

void PairDPModel::init_style() {
  need_model("a run");
  if (std::strcmp(update->unit_style, "lj") == 0)
    error->all(FLERR, "Pair style dpmodel: units lj have no eV and no Angstrom; use units metal, real, ...");
  if (!force->newton_pair)
    error->all(FLERR, "Pair style dpmodel: forces on ghost atoms must be sent home: use newton on");
  if (BorderGroup::of(comm) != 0)
    error->all(FLERR, "Pair style dpmodel: comm_modify group leaves out neighbours: remove it");
  energy_unit_ = force->boltz / BOLTZMANN;
  angstrom_ = force->angstrom;
  // LAMMPS leaves a pair out where both of its factors are 0, and no long-range solver needs it.
  bool removed = false;
  for (int k = 1; k <= 3; ++k) removed = removed || (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0);
  if (atom->molecular != 0 && removed && force->kspace == nullptr && comm->me == 0)
    error->warning(FLERR, "Pair style dpmodel: special_bonds with factors of 0 remove bonded atoms from the neighbour list; "
                          "use special_bonds lj/coul 1.0e-50 1.0e-50 1.0e-50");
  if (!model_->about.spin_scales.empty()) find_spin_reach();
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

/* The list is of atoms, neighbours are wanted of virtual atoms too: it reaches further by twice their displacement. */
void PairDPModel::find_spin_reach() {
  if (!atom->sp_flag)
    error->all(FLERR, "Pair style dpmodel: this model takes spins: use atom_style spin (or hybrid spin ...) and set them");
  if (update->unit_style != std::string("metal"))
    error->all(FLERR, "Pair style dpmodel: spins need units metal, as all of LAMMPS's package SPIN");
  if (!modify->get_fix_by_style("^nve/spin").empty())
    error->all(FLERR, "Pair style dpmodel: fix nve/spin takes torques from LAMMPS's own pair styles alone and would leave out the "
                      "model's; min_style spin and fix nve work");
  double mine = 0.0;
  const auto &scales = model_->about.spin_scales;
  for (int i = 0; i < atom->nlocal; ++i)
    if (type_of_[atom->type[i]] >= 0)
      mine = std::max(mine, std::fabs(scales[type_of_[atom->type[i]]] * atom->sp[i][3]));
  for (const double scale : scales) mine = std::max(mine, std::fabs(scale) * parameters_.max_spin);
  MPI_Allreduce(&mine, &spin_reach_, 1, MPI_DOUBLE, MPI_MAX, world);
  spin_reach_ *= 1.0 + 1e-6;  // directions are of length 1 but for rounding
}

double PairDPModel::cutoff() const {
  return (model_->about.rcut + (model_->about.spin_scales.empty() ? 0.0 : 2.0 * spin_reach_)) * angstrom_;
}

double PairDPModel::init_one(int /*i*/, int /*j*/) { return cutoff(); }

void PairDPModel::setup() {
  double reach = comm->get_comm_cutoff();
#ifdef DPMODEL_TESTING
  reach = reach_of_ghosts(reach);
#endif
  if (reach < cutoff())
    error->all(FLERR, "Pair style dpmodel: ghost atoms reach {}, the model needs {}: raise comm_modify cutoff", reach, cutoff());
}

// --- a step ---------------------------------------------------------------------------------------------------

Arrays PairDPModel::make_arrays() {
  const int64_t owned = atom->nlocal, all = owned + atom->nghost;
  kind_.resize(all);
  for (int64_t i = 0; i < all; ++i) kind_[i] = type_of_[atom->type[i]];
  count_.assign(owned, 0);  // beside other styles a list may leave out atoms
  for (int ii = 0; ii < list->inum; ++ii) count_[list->ilist[ii]] = list->numneigh[list->ilist[ii]];
  Surroundings here;
  here.owned = owned;
  here.all = all;
  here.x = atom->x;
  here.spin = atom->sp;
  here.angstrom = angstrom_;
  here.kind = kind_.data();
  here.count = count_.data();
  here.list = list->firstneigh;
  here.mask = NEIGHMASK;
  auto arrays = builder_.build(here);
  const auto parameter = [](const std::vector<double> &values, int64_t rows) {
    return at::tensor(values, at::kDouble).expand({rows, static_cast<int64_t>(values.size())}).contiguous();
  };
  const auto &fparam = parameters_.fparam, &aparam = parameters_.aparam, &charge_spin = parameters_.charge_spin;
  if (!fparam.empty()) arrays["fparam"] = parameter(fparam, 1);
  if (!aparam.empty()) {
    const auto rows = parameter(aparam, owned);
    arrays["aparam"] = model_->about.spin_scales.empty() ? rows : at::cat({rows, at::zeros_like(rows)});
  }
  if (!charge_spin.empty()) arrays["charge_spin"] = parameter(charge_spin, 1);
  arrays["comm.handle"] = at::full({1}, reinterpret_cast<int64_t>(&ghosts_), at::kLong);
  return arrays;
}

std::map<std::string, at::Tensor> PairDPModel::run(const Arrays &arrays) {
  begin_exchanges();
#ifdef DPMODEL_TESTING
  dump_graph(arrays);
#endif
  std::string problem;
  try {
    auto outputs = model_->run(arrays);
    // torch 2.11 goes on where an exchange has failed: what it computed then is not to be used.
    if (ghosts_.error == 0 && all_exchanged()) return outputs;
    if (ghosts_.error == 0) problem = "the model left out exchanges that its metadata name";
  } catch (const std::exception &reason) {
    const std::string text = reason.what();
    problem = text.substr(0, text.find('\n'));
  }
  if (ghosts_.error != 0) problem = ghosts_.message;
  fail_alone(fmt::format("step {}: {}", update->ntimestep, problem));
}

void PairDPModel::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  if ((vflag_atom || cvflag_atom) && !model_->about.atomic_virial)
    error->all(FLERR, Error::NOLASTLINE, "Pair style dpmodel: per-atom virials are asked for, and {} was frozen without them: "
               "dpmodel freeze --atomic-virial", path_);
  // From here to the end of the last exchange every rank does the same, whatever it has found.
  std::map<std::string, at::Tensor> outputs;
  std::string problem;
  try {
    outputs = run(make_arrays());
  } catch (const LAMMPSException &) {
    throw;
  } catch (const std::exception &reason) {
    fail_alone(fmt::format("step {}: {}", update->ntimestep, reason.what()));
  }
  const auto &found = builder_.problem();
  const auto [shift, whose] = builder_.largest_shift();
  if (found.text.empty() && shift > spin_reach_)
    problem = fmt::format("step {}: the spin of atom {} moves its virtual atom by {} A, neighbours were looked for up to {} A: "
                          "spins have grown in the run, so say how long they may be (pair_style dpmodel {} max_spin v)",
                          update->ntimestep, name_of(whose), shift, spin_reach_, path_);
  else if (!found.text.empty())
    problem = fmt::format("step {}: atom{} {}{} {}", update->ntimestep, found.second >= 0 ? "s" : "", name_of(found.first),
                          found.second >= 0 ? " and " + name_of(found.second) : "", found.text);
  else
    check_numbers(outputs, problem);
  share(problem);
  add_results(outputs);
  if (!warned_ && neighbor->ago == 0) say_once_that_sel_is_small(builder_.truncated());
}

void PairDPModel::say_once_that_sel_is_small(bool here) {
  int mine = here, any = 0;
  MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, world);
  if (any == 0) return;
  warned_ = true;
  if (comm->me == 0)
    error->warning(FLERR, "Pair style dpmodel: atoms have more neighbours than the model's sel holds; the furthest are left out, "
                          "and energies jump where atoms enter or leave the list. This is said once");
}

}  // namespace dpmodel
