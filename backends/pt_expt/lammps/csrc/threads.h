/* How many threads a rank uses, and what it does with freed memory. */
#pragma once

#include <mpi.h>

namespace dpmodel {

/* OMP_NUM_THREADS where it is set, else the processors that this rank may use, shared with the other ranks of its
   node, those of other partitions too. Collective over `world`. */
int threads_per_rank(MPI_Comm world);

/* What is freed stays with the process, as in Python (backends/pt/memory.py says why), unless the user has set glibc's
   variables for it. */
void keep_freed_memory();

}  // namespace dpmodel
