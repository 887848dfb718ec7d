#include "graph.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
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
                           std::vector<std::pair<int64_t, int64_t>> excluded, bool group_by_type, bool allow_overlap)
    : requests_(std::move(requests)), ntypes_(ntypes), group_by_type_(group_by_type), allow_overlap_(allow_overlap) {
  for (const auto &request : requests_) rcut_ = std::max(rcut_, request.rcut);
  if (!excluded.empty()) forbidden_.assign(ntypes * ntypes, 0);
  for (const auto &[a, b] : excluded) forbidden_[a * ntypes + b] = forbidden_[b * ntypes + a] = 1;
}

Arrays GraphBuilder::build(const Surroundings &here) {
  problem_ = Problem();
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
  const int64_t n = here.owned, m = here.all;
  auto atype = at::empty({m}, at::kLong);
  if (m > 0) std::memcpy(atype.data_ptr(), here.kind, m * sizeof(int64_t));
  int64_t real = 0;
  for (int64_t i = 0; i < n; ++i) real += here.kind[i] >= 0;
  const auto e = static_cast<int64_t>(centre_.size());
  auto vec = at::empty({e, 3}, at::kDouble);
  if (e > 0) std::memcpy(vec.data_ptr(), vec_.data(), e * sizeof(vec_[0]));
  arrays["atype"] = atype;
  arrays["frame"] = at::zeros({n}, at::kLong);
  arrays["natoms"] = at::full({1}, real, at::kLong);
  arrays["centre"] = integers(centre_);
  arrays["neighbour"] = integers(neighbour_);
  arrays["edge_vec"] = vec;
  arrays["edge_mask"] = all_true(centre_.size());
  for (size_t k = 0; k < requests_.size(); ++k)
    put_view(arrays, "views." + std::to_string(k), requests_[k], views[k], n);
  if (group_by_type_) put_groups(arrays, here);
  return arrays;
}

void GraphBuilder::clear_pairs() {
  centre_.clear();
  neighbour_.clear();
  kind_.clear();
  vec_.clear();
  distance_.clear();
  excluded_.clear();
}

void GraphBuilder::find_pairs(const Surroundings &here) {
  clear_pairs();
  for (int64_t i = 0; i < here.all; ++i) {
    if (here.kind[i] < 0 || (std::isfinite(here.x[i][0]) && std::isfinite(here.x[i][1]) && std::isfinite(here.x[i][2])))
      continue;
    problem_ = {"has coordinates that are NaN or infinite", i, -1};
    return;
  }
  // The comparison of squares only sorts out; the cutoff is applied to distances in Å, as in Python.
  const double reach = rcut_ * here.angstrom * (1.0 + 1e-12);
  const double reach_squared = reach * reach;
  for (int64_t i = 0; i < here.owned; ++i) {
    if (here.kind[i] < 0) continue;
    around_.clear();
    const double *xi = here.x[i];
    for (int jj = 0; jj < here.count[i]; ++jj) {
      const int64_t j = here.list[i][jj] & here.mask;
      const double dx = here.x[j][0] - xi[0], dy = here.x[j][1] - xi[1], dz = here.x[j][2] - xi[2];
      if (dx * dx + dy * dy + dz * dz > reach_squared || here.kind[j] < 0) continue;
      const double vx = dx / here.angstrom, vy = dy / here.angstrom, vz = dz / here.angstrom;
      const double distance = std::sqrt(vx * vx + vy * vy + vz * vz);
      if (distance <= rcut_) around_.push_back({distance, {vx, vy, vz}, j});
    }
    sort_around();
    for (const auto &[distance, k] : order_) {
      const auto &other = around_[k];
      centre_.push_back(i);
      neighbour_.push_back(other.row);
      kind_.push_back(here.kind[other.row]);
      vec_.push_back(other.vec);
      distance_.push_back(distance);
      if (!forbidden_.empty()) excluded_.push_back(forbidden_[here.kind[i] * ntypes_ + here.kind[other.row]]);
    }
  }
}

/* Nearest first; ties in the order of displacements, which is the same on every number of ranks. */
void GraphBuilder::sort_around() {
  order_.clear();
  for (size_t k = 0; k < around_.size(); ++k) order_.emplace_back(around_[k].distance, k);
  std::sort(order_.begin(), order_.end());
  for (size_t begin = 0, end = 0; begin < order_.size(); begin = end) {
    while (end < order_.size() && order_[end].first == order_[begin].first) ++end;
    if (end - begin > 1)
      std::sort(order_.begin() + begin, order_.begin() + end,
                [this](const auto &a, const auto &b) { return around_[a.second].vec < around_[b.second].vec; });
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
  problem_ = {"are at one place: energies and forces would be NaN or infinite", centre_[row], neighbour_[row]};
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

void GraphBuilder::put_groups(Arrays &arrays, const Surroundings &here) const {
  std::vector<Rows> members(ntypes_);
  for (int64_t i = 0; i < here.owned; ++i) members[std::max<int64_t>(here.kind[i], 0)].push_back(i);
  Rows place(here.owned, 0);
  int64_t at = 0;
  for (int64_t t = 0; t < ntypes_; ++t) {
    arrays["types.rows." + std::to_string(t)] = integers(members[t]);
    for (const int64_t row : members[t]) place[row] = at++;
  }
  arrays["types.place"] = integers(place);
}

}  // namespace dpmodel
