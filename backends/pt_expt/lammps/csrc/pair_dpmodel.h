/* pair_style dpmodel: a model exported by `dpmodel freeze` as a force field, on any number of ranks. */
#pragma once

#include "artefact.h"
#include "exchanging.h"
#include "graph.h"

#include <memory>
#include <string>
#include <vector>

namespace dpmodel {

class PairDPModel : public Exchanging {
 public:
  explicit PairDPModel(LAMMPS_NS::LAMMPS *lmp);
  ~PairDPModel() override;

  void settings(int narg, char **arg) override;
  void coeff(int narg, char **arg) override;
  void init_style() override;
  double init_one(int i, int j) override;
  void setup() override;
  void compute(int eflag, int vflag) override;

 private:
  /* What a frame has besides its atoms. */
  struct Parameters {
    std::vector<double> fparam, aparam, charge_spin;
    double max_spin = 0.0;  // 0: not given
  };

  std::unique_ptr<Artefact> load(const std::string &path);
  Parameters read_options(const Artefact &model, const std::string &path, int narg, char **arg);
  std::vector<double> read_numbers(int narg, char **arg, int &at, int64_t wanted) const;
  void need_model(const char *command);
  void find_spin_reach();
  double cutoff() const;  // of LAMMPS's neighbour list, in its units
  Arrays make_arrays();
  std::map<std::string, at::Tensor> run(const Arrays &arrays);
  void check_numbers(const std::map<std::string, at::Tensor> &outputs, std::string &problem) const;
  void add_results(const std::map<std::string, at::Tensor> &outputs);
  void say_once_that_sel_is_small(bool here);

  /* Collective: where any rank has a problem, that of the lowest such rank ends all of them, with one message. */
  void share(const std::string &problem);
  /* This rank alone has failed, and others may wait for it in an exchange: end them too. */
  [[noreturn]] void fail_alone(const std::string &problem);
  std::string name_of(int64_t row) const;

  // Of the last pair_style command that succeeded:
  std::string path_;
  std::unique_ptr<Artefact> model_;
  GraphBuilder builder_;
  std::vector<int64_t> type_of_;  // by type of LAMMPS, from 1: type of the model, -1 for NULL
  Parameters parameters_;
  double energy_unit_ = 1.0;  // 1 eV in units of LAMMPS
  double angstrom_ = 1.0;     // 1 Å in units of LAMMPS
  double spin_reach_ = 0.0;   // Å: how far virtual atoms may be from their atoms
  bool warned_ = false;
  // Of the atoms as they are now:
  std::vector<int64_t> kind_;
  std::vector<int> count_;
};

}  // namespace dpmodel
