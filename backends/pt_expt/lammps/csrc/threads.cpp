#include "threads.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <malloc.h>
#include <sched.h>
#include <unistd.h>

namespace dpmodel {

int threads_per_rank(MPI_Comm world) {
  cpu_set_t own[8] = {}, together[8] = {};  // 8192 processors, as many as Linux can be built for
  constexpr size_t bytes = sizeof(own);
  if (sched_getaffinity(0, bytes, own) != 0)
    for (long k = 0; k < std::max(1l, sysconf(_SC_NPROCESSORS_ONLN)); ++k) CPU_SET_S(k, bytes, own);
  MPI_Comm node;
  int ranks = 1;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_size(node, &ranks);
  // Ranks may be bound to processors of their own, or all may use all.
  MPI_Allreduce(own, together, static_cast<int>(bytes), MPI_BYTE, MPI_BOR, node);
  MPI_Comm_free(&node);
  // With `-partition` the node has ranks of other simulations too. mpiexec of mpich says how many there are in all.
  if (const char *local = std::getenv("MPI_LOCALNRANKS")) ranks = std::max(ranks, std::atoi(local));
  const char *given = std::getenv("OMP_NUM_THREADS");
  const int wanted = given == nullptr ? 0 : std::atoi(given);
  if (wanted > 0) return wanted;
  return std::max(1, std::min(CPU_COUNT_S(bytes, own), CPU_COUNT_S(bytes, together) / ranks));
}

void keep_freed_memory() {
#ifdef __GLIBC__
  for (const char *name : {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"})
    if (std::getenv(name) != nullptr) return;
  const char *tunables = std::getenv("GLIBC_TUNABLES");
  if (tunables != nullptr && std::strstr(tunables, "malloc") != nullptr) return;
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
#endif
}

}  // namespace dpmodel
