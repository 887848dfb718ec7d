#include "artefact.h"

#include "archive.h"
#include "dpmodel_ghosts.h"

#include <ATen/ATen.h>
#include <ATen/Version.h>
#include <caffe2/serialize/inline_container.h>
#include <json.h>  // LAMMPS's copy of nlohmann's JSON library
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <link.h>
#include <set>
#include <stdexcept>

namespace dpmodel {
namespace {

using LAMMPS_NS::json;
using Text = std::string;

constexpr int FORMAT_VERSION = 2;

[[noreturn]] void refuse(const Text &what) { throw std::runtime_error(what); }

const json &key(const json &tree, const char *name) {
  const auto at = tree.find(name);
  if (at == tree.end()) refuse(Text("its metadata lack '") + name + "': freeze the model again");
  return *at;
}

template <class T>
T get(const json &tree, const char *name) {
  try {
    return key(tree, name).get<T>();
  } catch (const json::exception &problem) {
    refuse(Text("its metadata hold a bad '") + name + "': " + problem.what());
  }
}

at::ScalarType scalar_type(const Text &name) {
  if (name == "float32") return at::kFloat;
  if (name == "float64") return at::kDouble;
  if (name == "int64") return at::kLong;
  if (name == "int32") return at::kInt;
  if (name == "bool") return at::kBool;
  refuse("its metadata name the unknown dtype '" + name + "'");
}

std::vector<ArrayInfo> arrays(const json &tree, const char *name) {
  std::vector<ArrayInfo> all;
  for (const auto &item : key(tree, name))
    all.push_back({get<Text>(item, "name"), scalar_type(get<Text>(item, "dtype")), get<std::vector<Text>>(item, "axes"),
                   get<std::vector<int64_t>>(item, "static")});
  return all;
}

Request request(const json &item) {
  Request made;
  made.rcut = get<double>(item, "rcut");
  made.sel = get<std::vector<int64_t>>(item, "sel");
  const auto layout = get<Text>(item, "layout");
  if (layout == "slots")
    made.layout = Layout::slots;
  else if (layout == "typed_slots")
    made.layout = Layout::typed_slots;
  else if (layout == "edges")
    made.layout = Layout::edges;
  else
    refuse("its metadata name the unknown layout '" + layout + "'");
  const auto &angles = key(item, "angles");
  if (!angles.is_null()) made.angles = AngleRequest{get<double>(angles, "rcut"), get<int64_t>(angles, "sel")};
  return made;
}

ExchangeInfo exchange(const json &item) {
  const auto op = get<Text>(item, "op"), dtype = get<Text>(item, "dtype");
  if ((op != "forward" && op != "reverse") || (dtype != "float32" && dtype != "float64"))
    refuse("its metadata hold the unknown exchange '" + op + "' of '" + dtype + "'");
  return {op == "reverse", dtype == "float64" ? 1 : 0, get<int64_t>(item, "width")};
}

std::vector<double> numbers(const json &tree, const char *name) {
  return key(tree, name).is_null() ? std::vector<double>() : get<std::vector<double>>(tree, name);
}

Metadata parse(const json &tree) {
  if (get<Text>(tree, "format") != "dpmodel.pt2") refuse("it is no model exported by dpmodel");
  const int version = get<int>(tree, "format_version"), abi = get<int>(tree, "op_abi");
  if (version != FORMAT_VERSION)
    refuse("it has format version " + std::to_string(version) + ", this plugin reads " + std::to_string(FORMAT_VERSION) +
           ": freeze the model with this version of dpmodel");
  if (abi != static_cast<int>(DPMODEL_GHOSTS_ABI))
    refuse("it was made for version " + std::to_string(abi) + " of the ghost exchange, this plugin has " +
           std::to_string(DPMODEL_GHOSTS_ABI) + ": freeze the model with this version of dpmodel");
  Metadata made;
  made.torch_version = get<Text>(tree, "torch_version");
  made.instruction_set = get<Text>(tree, "instruction_set");
  made.precision = get<Text>(tree, "precision");
  made.model_hash = get<Text>(tree, "model_hash");
  if (get<Text>(tree, "device") != "cpu")
    refuse("it was frozen for the device '" + get<Text>(tree, "device") + "'; this plugin runs on the CPU: freeze it there");
  made.type_map = get<std::vector<Text>>(tree, "type_map");
  made.rcut = get<double>(tree, "rcut");
  made.output = get<Text>(tree, "output");
  made.ntypes = get<int64_t>(tree, "ntypes");
  made.graph_types = get<int64_t>(tree, "graph_types");
  made.spin_scales = numbers(tree, "spin_scales");
  made.message_passing = get<bool>(tree, "message_passing");
  made.allow_overlap = get<bool>(tree, "allow_overlap");
  made.group_by_type = get<bool>(tree, "group_by_type");
  made.charge_spin = get<bool>(tree, "charge_spin");
  made.atomic_virial = get<bool>(tree, "atomic_virial");
  made.excluded = get<std::vector<std::pair<int64_t, int64_t>>>(tree, "pair_exclude_types");
  for (const auto &item : key(tree, "requests")) made.requests.push_back(request(item));
  made.dim_fparam = get<int64_t>(tree, "dim_fparam");
  made.dim_aparam = get<int64_t>(tree, "dim_aparam");
  made.default_fparam = numbers(tree, "default_fparam");
  made.default_charge_spin = numbers(tree, "default_charge_spin");
  made.inputs = arrays(tree, "inputs");
  made.outputs = arrays(tree, "outputs");
  for (const auto &item : key(tree, "exchanges")) made.exchanges.push_back(exchange(item));
  made.max_bytes_per_row = get<int64_t>(tree, "max_bytes_per_row");
  return made;
}

/* What the rest of the program takes for granted. */
void check(const Metadata &about) {
  if (about.output != "energy") refuse("it predicts '" + about.output + "': only models of energies can run in LAMMPS");
  if (static_cast<int64_t>(about.type_map.size()) != about.ntypes) refuse("its metadata name fewer or more types than it has");
  const bool spins = !about.spin_scales.empty();
  if (about.graph_types != (spins ? 2 : 1) * about.ntypes || (spins && static_cast<int64_t>(about.spin_scales.size()) != about.ntypes))
    refuse("its metadata do not have one scale of spins and one virtual type per type");
  double reach = 0.0;
  for (const auto &item : about.requests) {
    reach = std::max(reach, item.rcut);
    if (item.layout == Layout::typed_slots && static_cast<int64_t>(item.sel.size()) != about.graph_types)
      refuse("its metadata hold a sel that does not have one number per type");
  }
  if (!(reach <= about.rcut))
    refuse("its metadata contradict themselves: neighbours are needed up to " + std::to_string(reach) +
           " Å, the cutoff is " + std::to_string(about.rcut) + " Å");
  for (const auto &[a, b] : about.excluded)
    if (std::min(a, b) < 0 || std::max(a, b) >= about.graph_types) refuse("its metadata exclude pairs of types that it does not have");
  int64_t widest = 0;
  for (const auto &item : about.exchanges) widest = std::max(widest, item.width * (item.dtype == 1 ? 8 : 4));
  if (widest > about.max_bytes_per_row)
    refuse("its metadata contradict themselves: an exchange of " + std::to_string(widest) + " bytes per atom, at most " +
           std::to_string(about.max_bytes_per_row) + " are declared");
  std::set<Text> names;
  for (const auto &item : about.outputs) names.insert(item.name);
  if (spins) names.count("force_mag") ? void() : refuse("it takes spins and has no output 'force_mag'");
  for (const char *name : {"energy", "atom_energy", "force", "virial"})
    if (!names.count(name)) refuse(Text("it has no output '") + name + "', which LAMMPS needs");
  if (about.atomic_virial && !names.count("atom_virial")) refuse("its metadata promise an atomic virial that it does not have");
}

int level(const Text &instruction_set) {
  Text lower(instruction_set);
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  if (lower.find("avx512") != Text::npos) return 2;
  if (lower.find("avx2") != Text::npos) return 1;
  return 0;
}

void check_processor(const Metadata &about) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // What x86-64-v3 and v4 hold, for which models are compiled. (Compilers know these two names from gcc 12 on.)
  bool third = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
               __builtin_cpu_supports("bmi2");
#if __GNUC__ >= 11 || defined(__clang__)
  third = third && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
#endif
  const bool fourth = third && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512cd");
  const int here = fourth ? 2 : third ? 1 : 0;
  if (level(about.instruction_set) > here)
    refuse("it was compiled for " + about.instruction_set + " and this processor has " +
           (here == 1 ? "AVX2" : "neither AVX512 nor AVX2") + ": freeze the model on a machine like this one");
#endif
}

bool has_shape(const at::Tensor &tensor, const ArrayInfo &info) {
  const auto lead = info.axes.size();
  if (tensor.scalar_type() != info.dtype || static_cast<size_t>(tensor.dim()) != lead + info.fixed.size()) return false;
  for (size_t k = 0; k < info.fixed.size(); ++k)
    if (tensor.size(static_cast<int64_t>(lead + k)) != info.fixed[k]) return false;
  return true;
}

}  // namespace

Metadata read_metadata(const Text &path) {
  if (!std::ifstream(path)) refuse("the file cannot be read");
  std::unique_ptr<caffe2::serialize::PyTorchStreamReader> reader;
  try {
    reader = std::make_unique<caffe2::serialize::PyTorchStreamReader>(path);
  } catch (const std::exception &) {
    refuse("it is no exported model (expected a zip archive), or is damaged or incomplete");
  }
  auto &archive = *reader;
  if (!archive.hasRecord("extra/dpmodel.json"))
    refuse("it holds no extra/dpmodel.json: it is no model exported by dpmodel (`dpmodel freeze -o model.pt2`)");
  check_archive(path);
  const auto [data, size] = archive.getRecord("extra/dpmodel.json");
  const auto *text = static_cast<const char *>(data.get());
  json tree;
  try {
    tree = json::parse(text, text + size);
  } catch (const json::exception &problem) {
    refuse(Text("its metadata are no JSON: ") + problem.what());
  }
  auto about = parse(tree);
  check(about);
  return about;
}

/* FNV-1a over words of 8 bytes: tells different files apart, nothing more. */
uint64_t hash_file(const Text &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse("the file cannot be read");
  uint64_t hash = 14695981039346656037ull;
  std::vector<char> block(1 << 20);
  while (file) {
    file.read(block.data(), static_cast<std::streamsize>(block.size()));
    const auto count = static_cast<size_t>(file.gcount());
    std::fill(block.begin() + static_cast<std::ptrdiff_t>(count), block.end(), '\0');
    for (size_t at = 0; at < count; at += 8) {
      uint64_t word;
      std::memcpy(&word, block.data() + at, 8);
      hash = (hash ^ word) * 1099511628211ull;
      hash ^= hash >> 29;
    }
    hash = (hash ^ count) * 1099511628211ull;
  }
  return hash;
}

static Metadata checked(const Text &path) {
  auto about = read_metadata(path);
  if (about.torch_version != DPMODEL_TORCH_VERSION)
    refuse("it was compiled for torch " + about.torch_version + ", this plugin is linked to torch " DPMODEL_TORCH_VERSION
           ": freeze the model with that torch, or build the plugin (`dpmodel lammps build`) with the other");
  check_processor(about);
  return about;
}

/* Loaded libraries that were unpacked from an exported model. */
static std::set<Text> unpacked() {
  std::set<Text> files;
  dl_iterate_phdr(
      [](dl_phdr_info *info, size_t, void *to) {
        const Text name = info->dlpi_name;
        if (name.find("/data/aotinductor/model/") != Text::npos) static_cast<std::set<Text> *>(to)->insert(name);
        return 0;
      },
      &files);
  return files;
}

/* Removes what torch has unpacked for a library that is loaded: it stays in memory. torch does so when the model is
   destroyed, which a process that is aborted never does. Of the folders above only those go that are empty. */
static void remove_unpacked(const std::filesystem::path &library) {
  std::error_code ignored;
  auto folder = library.parent_path();
  std::filesystem::remove_all(folder, ignored);
  for (int level = 0; level < 4 && !ignored; ++level) {
    folder = folder.parent_path();
    std::filesystem::remove(folder, ignored);
  }
}

Artefact::Artefact(const Text &path)
    : about(checked(path)),
      hash(hash_file(path)),
      loader_(load(path)) {}

std::unique_ptr<torch::inductor::AOTIModelPackageLoader> Artefact::load(const Text &path) {
  const auto before = unpacked();
  auto loader = std::make_unique<torch::inductor::AOTIModelPackageLoader>(path, "model", false, 1, -1);
  for (const auto &file : unpacked())
    if (!before.count(file)) remove_unpacked(file);
  return loader;
}

Artefact::~Artefact() = default;

std::map<Text, at::Tensor> Artefact::run(const Arrays &arrays) {
  c10::InferenceMode no_gradients;
  std::vector<at::Tensor> inputs;
  for (const auto &info : about.inputs) {
    const auto at = arrays.find(info.name);
    if (at == arrays.end()) refuse("the model needs the input '" + info.name + "', which this plugin does not make");
    if (!has_shape(at->second, info)) refuse("the input '" + info.name + "' has not the shape or dtype that the model was frozen with");
    inputs.push_back(at->second.contiguous());
  }
  const auto results = loader_->run(inputs);
  if (results.size() != about.outputs.size())
    refuse("the model gave " + std::to_string(results.size()) + " outputs, its metadata name " +
           std::to_string(about.outputs.size()));
  std::map<Text, at::Tensor> outputs;
  for (size_t k = 0; k < results.size(); ++k) {
    const auto &info = about.outputs[k];
    if (!results[k].defined() || !has_shape(results[k], info)) refuse("the model's output '" + info.name + "' has not the shape or dtype of its metadata");
    outputs[info.name] = results[k].contiguous();
  }
  return outputs;
}

}  // namespace dpmodel
