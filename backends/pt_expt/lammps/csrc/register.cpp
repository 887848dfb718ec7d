/* What the loaded library offers to LAMMPS. Called by loader.cpp after its checks. */

#include "pair_dpmodel.h"
#include "plugin.h"

#include "lammps.h"

namespace {

template <class Style>
void *create(void *lmp) {
  return static_cast<LAMMPS_NS::Pair *>(new Style(static_cast<LAMMPS_NS::LAMMPS *>(lmp)));
}

}  // namespace

#ifdef DPMODEL_TESTING
LAMMPS_NS::Pair *create_exchange_test(LAMMPS_NS::LAMMPS *lmp);
static void *create_test(void *lmp) { return create_exchange_test(static_cast<LAMMPS_NS::LAMMPS *>(lmp)); }
#endif

extern "C" void dpmodel_register_styles(void *lmp, void *handle, void *function) {
  const auto add = reinterpret_cast<dpmodel_register>(function);
  dpmodel_plugin plugin = {static_cast<LAMMPS_NS::LAMMPS *>(lmp)->version,
                           "pair",
                           "dpmodel",
                           "models exported by dpmodel freeze",
                           "the dpmodel developers",
                           &create<dpmodel::PairDPModel>,
                           handle};
  add(&plugin, lmp);
#ifdef DPMODEL_TESTING
  plugin.name = "dpmodel/exchange";
  plugin.info = "ghost exchange alone, for tests";
  plugin.create = &create_test;
  add(&plugin, lmp);
#endif
}
