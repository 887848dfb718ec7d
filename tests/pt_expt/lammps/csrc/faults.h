/* What tests ask for through the environment; compiled into the test plugin alone. */
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <unordered_map>

namespace dpmodel {

/* "rank:number" in the variable; "-rank:number" is asked of that rank and all after it. */
inline bool asked(const char *variable, long rank, long number) {
  const char *text = std::getenv(variable);
  long who = 0, which = 0;
  return text != nullptr && std::sscanf(text, "%ld:%ld", &who, &which) == 2 && which == number &&
         (who == rank || (who < 0 && rank >= -who));
}

inline bool exchange_must_fail(int rank, std::size_t number) {
  return asked("DPMODEL_TEST_FAIL_EXCHANGE", rank, static_cast<long>(number));
}

inline bool energy_must_be_nan(int rank, long step) { return asked("DPMODEL_TEST_NAN", rank, step); }

/* The last force of a rank: that of a ghost, where there are ghosts. */
inline void poison_force(const at::Tensor &force, int rank, long step) {
  if (asked("DPMODEL_TEST_NAN_FORCE", rank, step)) force.data_ptr<double>()[force.numel() - 1] = std::nan("");
}

/* How far ghosts are said to reach. */
inline double reach_of_ghosts(double reach) {
  const char *text = std::getenv("DPMODEL_TEST_REACH");
  return text == nullptr ? reach : std::atof(text);
}

/* All arrays of a graph as text, a line each: name, number of axes, sizes, numbers. */
inline void dump_graph(const std::unordered_map<std::string, at::Tensor> &arrays) {
  const char *path = std::getenv("DPMODEL_TEST_DUMP");
  if (path == nullptr) return;
  std::ofstream file(path);
  file.precision(std::numeric_limits<double>::max_digits10);
  for (const auto &[name, tensor] : arrays) {
    file << name << ' ' << tensor.dim();
    for (const auto size : tensor.sizes()) file << ' ' << size;
    const auto numbers = tensor.to(at::kDouble).contiguous();
    for (int64_t k = 0; k < numbers.numel(); ++k) file << ' ' << numbers.data_ptr<double>()[k];
    file << '\n';
  }
}

}  // namespace dpmodel
