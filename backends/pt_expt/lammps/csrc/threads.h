/* How many threads a rank uses. */
#pragma once

#include <mpi.h>

namespace dpmodel {

/* OMP_NUM_THREADS where it is set, else the processors that this rank may use, shared with the other ranks of its
   node, those of other partitions too. Collective over `world`. */
int threads_per_rank(MPI_Comm world);

}  // namespace dpmodel
