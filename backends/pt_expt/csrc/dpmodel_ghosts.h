// The contract between the exchange operators and whoever moves the rows: LAMMPS, mpi4py, a table in one process.
//
// `dpmodel::ghost_forward(x, handle, n_all)` and `dpmodel::ghost_reverse(g, handle, n_owned)` receive the address of
// this struct as the one element of `handle` (int64, CPU). Rows 0..n_owned are the owned atoms, rows n_owned..n_all
// the ghosts, each a copy of an owned atom of this or another process.
//
//   forward: rows of owned atoms are set; the provider fills the ghosts' rows with copies of their owners' rows.
//   reverse: all rows are set; the provider adds every ghost's row to its owner's. What it leaves in the ghosts' rows
//            is not read.
//
// Both are collective: every process makes the same calls in the same order, with 0 rows too. A provider lets no
// exception out: it returns 0, or writes its reason into `message` and returns anything else. The operator then puts
// the name of the exchange in front of the message and sets `error`; while `error` is set no later exchange calls the
// provider. Callers look at `error` after a run, because torch 2.11 ignores the failure of an operator in compiled code.
#ifndef DPMODEL_GHOSTS_H
#define DPMODEL_GHOSTS_H

#include <stdint.h>

#define DPMODEL_GHOSTS_MAGIC 0x54534f48474d5044ull /* "DPMGHOST" */
#define DPMODEL_GHOSTS_ABI 1u
#define DPMODEL_GHOSTS_FLOAT32 0
#define DPMODEL_GHOSTS_FLOAT64 1
#define DPMODEL_GHOSTS_MESSAGE 252

#ifdef __cplusplus
extern "C" {
#endif

/* rows: (n_all, width) row-major on the host, of float or double by `dtype`; may be null where it has no elements. */
typedef int32_t (*dpmodel_ghost_exchange)(void *ctx, int32_t dtype, void *rows, int64_t n_owned, int64_t n_all,
                                          int64_t width);

typedef struct dpmodel_ghosts {
  uint64_t magic; /* DPMODEL_GHOSTS_MAGIC */
  uint32_t abi;   /* DPMODEL_GHOSTS_ABI */
  uint32_t bytes; /* sizeof(dpmodel_ghosts) */
  void *ctx;      /* handed to the functions */
  dpmodel_ghost_exchange forward;
  dpmodel_ghost_exchange reverse;
  int64_t max_bytes_per_row; /* the widest exchange that the provider can carry; 0: any */
  uint64_t n_forward;        /* calls of `forward` so far */
  uint64_t n_reverse;        /* calls of `reverse` so far */
  int32_t error;             /* not 0: an exchange failed; the first failure stays */
  char message[DPMODEL_GHOSTS_MESSAGE];
} dpmodel_ghosts;

#ifdef __cplusplus
}
static_assert(sizeof(dpmodel_ghosts) == 320, "the layout of abi 1");
#endif

#endif
