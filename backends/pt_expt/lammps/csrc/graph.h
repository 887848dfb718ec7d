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

/* Rows of the graph by atom of LAMMPS. A model of spins has two for each: the atom, and the virtual atom that stands for
   its spin. All owned ones come first: owned atoms, their virtual atoms, ghosts, virtual atoms of ghosts. */
struct Nodes {
  int64_t owned = 0, all = 0;  // atoms
  int64_t each = 1;            // rows for an atom

  int64_t row(int64_t atom, int64_t which) const {
    return atom < owned ? which * owned + atom : each * owned + which * (all - owned) + atom - owned;
  }
  int64_t atom(int64_t row) const {
    return row < each * owned ? row % owned : owned + (row - each * owned) % (all - owned);
  }
};

/* Atoms and their full neighbour list: owned atoms, then ghosts. */
struct Surroundings {
  int64_t owned = 0;
  int64_t all = 0;
  const double *const *x = nullptr;  // (all, 3), in the units of the program
  const double *const *spin = nullptr;  // (all, 4): direction and length; read where the model takes spins
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
               bool group_by_type, bool allow_overlap, std::vector<double> spin_scales = {});

  /* All arrays that depend on the atoms, by their paths in `Graph`. Where the atoms cannot be used, `problem` says
     why and the graph has no edges, so that this rank can still take part in every exchange. */
  Arrays build(const Surroundings &here);

  /* Why the last graph has no edges; empty: all is well. With the atoms that it is about. */
  struct Problem {
    std::string text;
    int64_t first = -1;
    int64_t second = -1;
  };
  const Problem &problem() const { return problem_; }
  /* Whether `sel` has cut off neighbours since the beginning. */
  bool truncated() const { return truncated_; }
  /* The largest displacement of a virtual atom of the last graph's owned atoms, and whose it is. */
  std::pair<double, int64_t> largest_shift() const { return largest_shift_; }

 private:
  using Rows = std::vector<int64_t>;

  using Vector = std::array<double, 3>;

  void place_nodes(const Surroundings &here);
  bool all_finite(const Surroundings &here);
  void find_pairs(const Surroundings &here);
  void look_around(const Surroundings &here, int64_t i, int64_t which);
  void put_virtual(Arrays &arrays) const;
  void clear_pairs();
  void sort_around();
  std::vector<Rows> select(const Request &request);
  void cut(std::vector<std::vector<Rows>> &views);
  void check_overlap();
  void put_view(Arrays &arrays, const std::string &path, const Request &request, const std::vector<Rows> &rows,
                int64_t owned);
  void put_angles(Arrays &arrays, const std::string &path, const AngleRequest &angles, const Rows &rows);
  void put_groups(Arrays &arrays) const;

  struct Neighbour {
    double distance;
    Vector vec;
    int64_t row;
  };

  std::vector<Request> requests_;
  int64_t ntypes_ = 0;
  std::vector<char> forbidden_;  // (ntypes, ntypes); empty: no pair is
  bool group_by_type_ = false;
  bool allow_overlap_ = false;
  std::vector<double> spin_scales_;  // by type of an atom, Å per unit of spin; empty: no virtual atoms
  double rcut_ = 0.0;
  bool truncated_ = false;
  Problem problem_;

  // Of the atoms as they are now:
  Nodes nodes_;
  Rows node_kind_;             // by row
  std::vector<Vector> shift_;  // by atom, Å: displacement of its virtual atom
  std::vector<double> scale_;  // by atom
  std::pair<double, int64_t> largest_shift_{0.0, -1};
  // All pairs within the largest cutoff, sorted by centre, then distance.
  Rows centre_, neighbour_, kind_;
  std::vector<Vector> vec_;
  std::vector<double> distance_;
  std::vector<char> excluded_;
  // Of one centre:
  std::vector<Neighbour> around_;
  std::vector<std::pair<double, size_t>> order_;  // distance and place in around_, nearest first
};

}  // namespace dpmodel
