/* The exported model: its metadata, what must hold before it is run, and the run. No LAMMPS in here. */
#pragma once

#include "graph.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace torch::inductor {
class AOTIModelPackageLoader;
}

namespace dpmodel {

/* One array that goes into the compiled function or comes out of it. */
struct ArrayInfo {
  std::string name;
  at::ScalarType dtype;
  std::vector<std::string> axes;   // of sizes that depend on the atoms
  std::vector<int64_t> fixed;      // the sizes behind them
};

/* One exchange of rows with other processes. */
struct ExchangeInfo {
  bool reverse;
  int32_t dtype;  // 0: float, 1: double
  int64_t width;  // numbers per row
};

/* `extra/dpmodel.json` of the archive. */
struct Metadata {
  std::string torch_version, instruction_set, precision, model_hash, output;
  std::vector<std::string> type_map;
  double rcut = 0.0;
  int64_t ntypes = 0;
  int64_t graph_types = 0;          // those of the graph: twice as many where there are virtual atoms
  std::vector<double> spin_scales;  // by type, Å per unit of spin; empty: the model takes no spins
  bool message_passing = false, allow_overlap = false, group_by_type = false, charge_spin = false, atomic_virial = false;
  std::vector<std::pair<int64_t, int64_t>> excluded;
  std::vector<Request> requests;
  int64_t dim_fparam = 0, dim_aparam = 0;
  std::vector<double> default_fparam, default_charge_spin;  // empty: none
  std::vector<ArrayInfo> inputs, outputs;
  std::vector<ExchangeInfo> exchanges;
  int64_t max_bytes_per_row = 0;
};

/* All functions throw std::exception with a message for users. */
Metadata read_metadata(const std::string &path);
uint64_t hash_file(const std::string &path);

class Artefact {
 public:
  /* Checks archive, versions, instruction set and arrays, then loads. */
  explicit Artefact(const std::string &path);
  ~Artefact();

  const Metadata about;
  const uint64_t hash;

  /* Outputs by name. `arrays` must hold every input. */
  std::map<std::string, at::Tensor> run(const Arrays &arrays);

 private:
  static std::unique_ptr<torch::inductor::AOTIModelPackageLoader> load(const std::string &path);
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

}  // namespace dpmodel
