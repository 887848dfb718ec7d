#include "threads.h"

#include <algorithm>
#include <cstdlib>
#include <malloc.h>
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

void keep_freed_memory() {
#ifdef __GLIBC__
  for (const char *name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_",
                           "GLIBC_TUNABLES"})
    if (std::getenv(name) != nullptr) return;
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
#endif
}

}  // namespace dpmodel
