/* From a LAMMPS neighbour list to the arrays of `dpmodel.graph.Graph`, exactly as dpmodel/geometry/build.py makes them. */
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace dpmodel {

enum class Layout { slots, typed_slots, edges };

struct AngleRequest {
  double rcut;  // Å; edges shorter than this, strictly, span angles
  int64_t sel;
};

/* What a descriptor needs of the neighbour list (`dpmodel.graph.NeighbourRequest`). */
struct Request {
  double rcut;  // Å
  std::vector<int64_t> sel;
  Layout layout;
  std::optional<AngleRequest> angles;
};

/* Atoms and their full neighbour list. Rows: owned atoms, then ghosts. */
struct Surroundings {
  int64_t owned = 0;
  int64_t all = 0;
  const double *const *x = nullptr;  // (all, 3), in the units of the program
  double angstrom = 1.0;             // length of 1 Å in those units
  const int64_t *kind = nullptr;     // (all): type of the model, -1: not an atom of the model
  const int *count = nullptr;        // by owned row: number of neighbours (0 where the row has no list)
  const int *const *list = nullptr;  // by owned row: rows of its neighbours, special bonds in the upper bits
  int mask = -1;                     // what remains of an entry without those bits
};

using Arrays = std::unordered_map<std::string, at::Tensor>;

class GraphBuilder {
 public:
  GraphBuilder() = default;
  GraphBuilder(std::vector<Request> requests, int64_t ntypes, std::vector<std::pair<int64_t, int64_t>> excluded,
               bool group_by_type, bool allow_overlap);

  /* All arrays that depend on the atoms, by their paths in `Graph`. Where the atoms cannot be used, `problem` says
     why and the graph has no edges, so that this rank can still take part in every exchange. */
  Arrays build(const Surroundings &here);

  /* Why the last graph has no edges; empty: all is well. The rows are those of the atoms it is about. */
  struct Problem {
    std::string text;
    int64_t first = -1;
    int64_t second = -1;
  };
  const Problem &problem() const { return problem_; }
  /* Whether `sel` has cut off neighbours since the beginning. */
  bool truncated() const { return truncated_; }

 private:
  using Rows = std::vector<int64_t>;

  void find_pairs(const Surroundings &here);
  void clear_pairs();
  void sort_around();
  std::vector<Rows> select(const Request &request);
  void cut(std::vector<std::vector<Rows>> &views);
  void check_overlap();
  void put_view(Arrays &arrays, const std::string &path, const Request &request, const std::vector<Rows> &rows,
                int64_t owned);
  void put_angles(Arrays &arrays, const std::string &path, const AngleRequest &angles, const Rows &rows);
  void put_groups(Arrays &arrays, const Surroundings &here) const;

  struct Neighbour {
    double distance;
    std::array<double, 3> vec;
    int64_t row;
  };

  std::vector<Request> requests_;
  int64_t ntypes_ = 0;
  std::vector<char> forbidden_;  // (ntypes, ntypes); empty: no pair is
  bool group_by_type_ = false;
  bool allow_overlap_ = false;
  double rcut_ = 0.0;
  bool truncated_ = false;
  Problem problem_;

  // All pairs within the largest cutoff, sorted by centre, then distance.
  Rows centre_, neighbour_, kind_;
  std::vector<std::array<double, 3>> vec_;
  std::vector<double> distance_;
  std::vector<char> excluded_;
  // Of one centre:
  std::vector<Neighbour> around_;
  std::vector<std::pair<double, size_t>> order_;  // distance and place in around_, nearest first
};

}  // namespace dpmodel
