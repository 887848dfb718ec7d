#include "graph.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <tuple>
#include <utility>

namespace dpmodel {
namespace {

constexpr double SAME_PLACE = 1e-6;  // Å; nearer atoms make descriptors and their derivatives overflow

at::Tensor integers(const std::vector<int64_t> &values) {
  auto tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  if (!values.empty()) std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(int64_t));
  return tensor;
}

at::Tensor all_true(size_t count) { return at::ones({static_cast<int64_t>(count)}, at::kBool); }

/* Calls use(row, rank) for rows sorted by centre; rank: how many earlier rows have the same centre. */
template <class Use>
void ranked(const std::vector<int64_t> &rows, const std::vector<int64_t> &centre, Use use) {
  int64_t last = -1, rank = 0;
  for (const int64_t row : rows) {
    rank = centre[row] == last ? rank + 1 : 0;
    last = centre[row];
    use(row, rank);
  }
}

}  // namespace

GraphBuilder::GraphBuilder(std::vector<Request> requests, int64_t ntypes,
                           std::vector<std::pair<int64_t, int64_t>> excluded, bool group_by_type, bool allow_overlap,
                           std::vector<double> spin_scales)
    : requests_(std::move(requests)), ntypes_(ntypes), group_by_type_(group_by_type), allow_overlap_(allow_overlap),
      spin_scales_(std::move(spin_scales)) {
  for (const auto &request : requests_) rcut_ = std::max(rcut_, request.rcut);
  if (!excluded.empty()) forbidden_.assign(ntypes * ntypes, 0);
  for (const auto &[a, b] : excluded) forbidden_[a * ntypes + b] = forbidden_[b * ntypes + a] = 1;
}

Arrays GraphBuilder::build(const Surroundings &here) {
  problem_ = Problem();
  place_nodes(here);
  find_pairs(here);

  const auto select_all = [this] {
    std::vector<std::vector<Rows>> views;
    for (const auto &request : requests_) views.push_back(select(request));
    return views;
  };
  auto views = select_all();
  cut(views);
  if (!allow_overlap_) check_overlap();
  if (!problem_.text.empty()) {
    clear_pairs();
    views = select_all();
  }

  Arrays arrays;
  const int64_t n = nodes_.each * here.owned;
  int64_t real = 0;
  for (int64_t i = 0; i < here.owned; ++i) real += here.kind[i] >= 0;
  const auto e = static_cast<int64_t>(centre_.size());
  auto vec = at::empty({e, 3}, at::kDouble);
  if (e > 0) std::memcpy(vec.data_ptr(), vec_.data(), e * sizeof(vec_[0]));
  arrays["atype"] = integers(node_kind_);
  arrays["frame"] = at::zeros({n}, at::kLong);
  arrays["natoms"] = at::full({1}, real, at::kLong);
  arrays["centre"] = integers(centre_);
  arrays["neighbour"] = integers(neighbour_);
  arrays["edge_vec"] = vec;
  arrays["edge_mask"] = all_true(centre_.size());
  for (size_t k = 0; k < requests_.size(); ++k)
    put_view(arrays, "views." + std::to_string(k), requests_[k], views[k], n);
  if (group_by_type_) put_groups(arrays);
  if (!spin_scales_.empty()) put_virtual(arrays);
  return arrays;
}

/* Types of all rows, and where the virtual atoms are. */
void GraphBuilder::place_nodes(const Surroundings &here) {
  nodes_ = {here.owned, here.all, spin_scales_.empty() ? 1 : 2};
  node_kind_.assign(nodes_.each * here.all, -1);
  for (int64_t i = 0; i < here.all; ++i) node_kind_[nodes_.row(i, 0)] = here.kind[i];
  largest_shift_ = {0.0, -1};
  if (spin_scales_.empty()) return;
  shift_.assign(here.all, Vector{});
  scale_.assign(here.all, 0.0);
  const auto known = static_cast<int64_t>(spin_scales_.size());
  for (int64_t i = 0; i < here.all; ++i) {
    if (here.kind[i] < 0) continue;
    node_kind_[nodes_.row(i, 1)] = here.kind[i] + known;
    scale_[i] = spin_scales_[here.kind[i]];
    if (scale_[i] == 0.0) continue;  // LAMMPS makes a direction of NaN where none was given
    for (int k = 0; k < 3; ++k) shift_[i][k] = here.spin[i][k] * here.spin[i][3] * scale_[i];
    const double length = std::sqrt(shift_[i][0] * shift_[i][0] + shift_[i][1] * shift_[i][1] + shift_[i][2] * shift_[i][2]);
    if (i < here.owned && length > largest_shift_.first) largest_shift_ = {length, i};
  }
}

void GraphBuilder::clear_pairs() {
  centre_.clear();
  neighbour_.clear();
  kind_.clear();
  vec_.clear();
  distance_.clear();
  excluded_.clear();
}

bool GraphBuilder::all_finite(const Surroundings &here) {
  const auto finite = [](const auto &v) { return std::isfinite(v[0]) && std::isfinite(v[1]) && std::isfinite(v[2]); };
  for (int64_t i = 0; i < here.all; ++i) {
    if (here.kind[i] < 0) continue;
    if (!finite(here.x[i]))
      problem_ = {"has coordinates that are NaN or infinite", i, -1};
    else if (nodes_.each == 2 && !finite(shift_[i]))
      problem_ = {"has a spin that is NaN or infinite", i, -1};
    else
      continue;
    return false;
  }
  return true;
}

void GraphBuilder::find_pairs(const Surroundings &here) {
  clear_pairs();
  if (!all_finite(here)) return;
  for (int64_t which = 0; which < nodes_.each; ++which)
    for (int64_t i = 0; i < here.owned; ++i) {
      if (here.kind[i] < 0) continue;
      look_around(here, i, which);
      sort_around();
      const int64_t row = nodes_.row(i, which), kind = node_kind_[row];
      for (const auto &[distance, k] : order_) {
        const auto &other = around_[k];
        centre_.push_back(row);
        neighbour_.push_back(other.row);
        kind_.push_back(node_kind_[other.row]);
        vec_.push_back(other.vec);
        distance_.push_back(distance);
        if (!forbidden_.empty()) excluded_.push_back(forbidden_[kind * ntypes_ + node_kind_[other.row]]);
      }
    }
}

/* All that an owned atom (which 0), or its virtual atom (1), sees. */
void GraphBuilder::look_around(const Surroundings &here, int64_t i, int64_t which) {
  // The comparison of squares only sorts out; the cutoff is applied to distances in Å, as in Python.
  const double reach = rcut_ * here.angstrom * (1.0 + 1e-12);
  const double reach_squared = reach * reach, unit = here.angstrom;
  around_.clear();
  const auto see = [&](int64_t row, double dx, double dy, double dz) {
    if (dx * dx + dy * dy + dz * dz > reach_squared || node_kind_[row] < 0) return;
    const double vx = dx / unit, vy = dy / unit, vz = dz / unit;
    const double distance = std::sqrt(vx * vx + vy * vy + vz * vz);
    if (distance <= rcut_) around_.push_back({distance, {vx, vy, vz}, row});
  };
  const double *xi = here.x[i];
  if (nodes_.each == 1) {
    for (int jj = 0; jj < here.count[i]; ++jj) {
      const int64_t j = here.list[i][jj] & here.mask;
      see(j, here.x[j][0] - xi[0], here.x[j][1] - xi[1], here.x[j][2] - xi[2]);
    }
    return;
  }
  const Vector own = shift_[i], none{};
  const auto see_both = [&](int64_t j, const Vector &from) {
    for (int64_t other = 0; other < 2; ++other) {
      if (j == i && other == which) continue;
      const Vector &to = other == 1 ? shift_[j] : none;
      see(nodes_.row(j, other), here.x[j][0] - xi[0] + (to[0] - from[0]) * unit,
          here.x[j][1] - xi[1] + (to[1] - from[1]) * unit, here.x[j][2] - xi[2] + (to[2] - from[2]) * unit);
    }
  };
  const Vector &from = which == 1 ? own : none;
  see_both(i, from);
  for (int jj = 0; jj < here.count[i]; ++jj) see_both(here.list[i][jj] & here.mask, from);
}

/* Nearest first; ties in the order of displacements, which is the same on every number of ranks. At one place an atom
   comes before the virtual atom that has not moved from it. */
void GraphBuilder::sort_around() {
  order_.clear();
  for (size_t k = 0; k < around_.size(); ++k) order_.emplace_back(around_[k].distance, k);
  std::sort(order_.begin(), order_.end());
  for (size_t begin = 0, end = 0; begin < order_.size(); begin = end) {
    while (end < order_.size() && order_[end].first == order_[begin].first) ++end;
    if (end - begin > 1)
      std::sort(order_.begin() + begin, order_.begin() + end,
                [this](const auto &a, const auto &b) {
                  const auto &one = around_[a.second], &other = around_[b.second];
                  return std::tie(one.vec, one.row) < std::tie(other.vec, other.row);
                });
  }
}

/* Rows of the pairs that the request sees: one list per neighbour type, or a single one. */
std::vector<GraphBuilder::Rows> GraphBuilder::select(const Request &request) {
  Rows within;
  for (size_t row = 0; row < distance_.size(); ++row)
    if (distance_[row] <= request.rcut) within.push_back(static_cast<int64_t>(row));
  int64_t total = 0;
  for (const int64_t k : request.sel) total += k;
  Rows nearest;
  ranked(within, centre_, [&](int64_t row, int64_t rank) {
    if (rank < total) nearest.push_back(row);
  });
  size_t kept = nearest.size();
  std::vector<Rows> groups;
  if (request.layout == Layout::typed_slots) {
    std::vector<Rows> by_type(ntypes_);
    for (const int64_t row : nearest) by_type[kind_[row]].push_back(row);
    groups.resize(ntypes_);
    kept = 0;
    for (int64_t t = 0; t < ntypes_; ++t) {
      ranked(by_type[t], centre_, [&](int64_t row, int64_t rank) {
        if (rank < request.sel[t]) groups[t].push_back(row);
      });
      kept += groups[t].size();
    }
  } else {
    groups.push_back(std::move(nearest));
  }
  truncated_ = truncated_ || kept < within.size();
  if (!forbidden_.empty())
    for (auto &group : groups)
      group.erase(std::remove_if(group.begin(), group.end(), [this](int64_t row) { return excluded_[row] != 0; }),
                  group.end());
  return groups;
}

/* Keep only the pairs that a view uses. */
void GraphBuilder::cut(std::vector<std::vector<Rows>> &views) {
  std::vector<char> used(centre_.size(), 0);
  for (const auto &view : views)
    for (const auto &group : view)
      for (const int64_t row : group) used[row] = 1;
  if (std::all_of(used.begin(), used.end(), [](char u) { return u != 0; })) return;
  Rows place(centre_.size(), 0);
  size_t kept = 0;
  for (size_t row = 0; row < used.size(); ++row) {
    place[row] = static_cast<int64_t>(kept);
    if (!used[row]) continue;
    centre_[kept] = centre_[row];
    neighbour_[kept] = neighbour_[row];
    vec_[kept] = vec_[row];
    distance_[kept] = distance_[row];
    ++kept;
  }
  centre_.resize(kept);
  neighbour_.resize(kept);
  vec_.resize(kept);
  distance_.resize(kept);
  for (auto &view : views)
    for (auto &group : view)
      for (int64_t &row : group) row = place[row];
}

/* Of the pairs that some view uses: others may be at one place. */
void GraphBuilder::check_overlap() {
  const auto nearest = std::min_element(distance_.begin(), distance_.end());
  if (nearest == distance_.end() || *nearest >= SAME_PLACE) return;
  const auto row = nearest - distance_.begin();
  const int64_t one = nodes_.atom(centre_[row]), other = nodes_.atom(neighbour_[row]);
  if (one == other)
    problem_ = {"has no spin, or hardly any, and the model no numbers for that: its virtual atom is at its place", one, -1};
  else
    problem_ = {"are at one place: energies and forces would be NaN or infinite", one, other};
}

void GraphBuilder::put_view(Arrays &arrays, const std::string &path, const Request &request,
                            const std::vector<Rows> &rows, int64_t owned) {
  if (request.layout == Layout::edges) {
    arrays[path + ".row"] = integers(rows[0]);
    arrays[path + ".mask"] = all_true(rows[0].size());
    if (request.angles) put_angles(arrays, path + ".angles", *request.angles, rows[0]);
    return;
  }
  for (size_t t = 0; t < rows.size(); ++t) {
    int64_t width = 0;
    ranked(rows[t], centre_, [&](int64_t, int64_t rank) { width = std::max(width, rank + 1); });
    auto edge = at::zeros({owned, width}, at::kLong);
    auto mask = at::zeros({owned, width}, at::kBool);
    auto *edges = edge.data_ptr<int64_t>();
    auto *masks = mask.data_ptr<bool>();
    ranked(rows[t], centre_, [&](int64_t row, int64_t rank) {
      edges[centre_[row] * width + rank] = row;
      masks[centre_[row] * width + rank] = true;
    });
    const auto own = request.layout == Layout::typed_slots ? path + "." + std::to_string(t) : path;
    arrays[own + ".edge"] = edge;
    arrays[own + ".mask"] = mask;
  }
}

/* All ordered pairs of the nearest edges of each centre; positions count within the view. */
void GraphBuilder::put_angles(Arrays &arrays, const std::string &path, const AngleRequest &angles, const Rows &rows) {
  Rows chosen;
  int64_t last = -1, rank = 0;
  for (size_t k = 0; k < rows.size(); ++k) {
    if (!(distance_[rows[k]] < angles.rcut)) continue;
    rank = centre_[rows[k]] == last ? rank + 1 : 0;
    last = centre_[rows[k]];
    if (rank < angles.sel)
      chosen.push_back(static_cast<int64_t>(k));
    else
      truncated_ = true;
  }
  const auto end_of_centre = [&](size_t begin) {
    size_t end = begin;
    while (end < chosen.size() && centre_[rows[chosen[end]]] == centre_[rows[chosen[begin]]]) ++end;
    return end;
  };
  int64_t count = 0;
  for (size_t begin = 0, end = 0; begin < chosen.size(); begin = end) {
    end = end_of_centre(begin);
    count += static_cast<int64_t>((end - begin) * (end - begin));
  }
  auto ij = at::empty({count}, at::kLong), ik = at::empty({count}, at::kLong);
  auto *first = ij.data_ptr<int64_t>(), *second = ik.data_ptr<int64_t>();
  for (size_t begin = 0, end = 0; begin < chosen.size(); begin = end) {
    end = end_of_centre(begin);
    for (size_t a = begin; a < end; ++a, first += end - begin, second += end - begin) {
      std::fill_n(first, end - begin, chosen[a]);
      std::copy_n(chosen.begin() + static_cast<std::ptrdiff_t>(begin), end - begin, second);
    }
  }
  arrays[path + ".ij"] = ij;
  arrays[path + ".ik"] = ik;
  arrays[path + ".mask"] = all_true(static_cast<size_t>(count));
}

void GraphBuilder::put_groups(Arrays &arrays) const {
  const int64_t n = nodes_.each * nodes_.owned;
  std::vector<Rows> members(ntypes_);
  for (int64_t i = 0; i < n; ++i) members[std::max<int64_t>(node_kind_[i], 0)].push_back(i);
  Rows place(n, 0);
  int64_t at = 0;
  for (int64_t t = 0; t < ntypes_; ++t) {
    arrays["types.rows." + std::to_string(t)] = integers(members[t]);
    for (const int64_t row : members[t]) place[row] = at++;
  }
  arrays["types.place"] = integers(place);
}

/* A pair for every atom, in their order. */
void GraphBuilder::put_virtual(Arrays &arrays) const {
  const int64_t all = nodes_.all;
  Rows real(all), moved(all), owned(nodes_.owned);
  for (int64_t i = 0; i < all; ++i) {
    real[i] = nodes_.row(i, 0);
    moved[i] = nodes_.row(i, 1);
  }
  std::iota(owned.begin(), owned.end(), int64_t(0));
  auto shift = at::empty({all, 3}, at::kDouble), scale = at::empty({all}, at::kDouble);
  if (all > 0) {
    std::memcpy(shift.data_ptr(), shift_.data(), all * sizeof(Vector));
    std::memcpy(scale.data_ptr(), scale_.data(), all * sizeof(double));
  }
  arrays["virtual.real"] = integers(real);
  arrays["virtual.virtual"] = integers(moved);
  arrays["virtual.shift"] = shift;
  arrays["virtual.scale"] = scale;
  arrays["virtual.frame"] = at::zeros({all}, at::kLong);
  arrays["virtual.owned"] = integers(owned);
}

}  // namespace dpmodel
