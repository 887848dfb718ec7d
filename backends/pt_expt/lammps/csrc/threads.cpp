#include "threads.h"

#include <algorithm>
#include <cstdlib>
#include <sched.h>

namespace dpmodel {

int threads_per_rank(MPI_Comm world) {
  cpu_set_t own, together;
  CPU_ZERO(&own);
  CPU_ZERO(&together);
  if (sched_getaffinity(0, sizeof(own), &own) != 0) CPU_SET(0, &own);
  MPI_Comm node;
  int ranks = 1;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_size(node, &ranks);
  // Ranks may be bound to processors of their own, or all may use all.
  MPI_Allreduce(&own, &together, static_cast<int>(sizeof(own)), MPI_BYTE, MPI_BOR, node);
  MPI_Comm_free(&node);
  // With `-partition` the node has ranks of other simulations too. mpiexec of mpich says how many there are in all.
  if (const char *local = std::getenv("MPI_LOCALNRANKS")) ranks = std::max(ranks, std::atoi(local));
  const char *given = std::getenv("OMP_NUM_THREADS");
  const int wanted = given == nullptr ? 0 : std::atoi(given);
  if (wanted > 0) return wanted;
  return std::max(1, std::min(CPU_COUNT(&own), CPU_COUNT(&together) / ranks));
}

}  // namespace dpmodel
