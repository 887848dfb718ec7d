#include "archive.h"

#include <caffe2/serialize/inline_container.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <stdexcept>

namespace dpmodel {
namespace {

using Text = std::string;

[[noreturn]] void damaged() { throw std::runtime_error("it is damaged or incomplete: freeze the model again, or copy it again"); }

template <class T>
T number(const Text &bytes, uint64_t at) {
  T value;
  if (at > bytes.size() || bytes.size() - at < sizeof(value)) damaged();
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

uint32_t crc32(const char *data, size_t size) {
  static const auto table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t k = 0; k < 256; ++k) {
      made[k] = k;
      for (int bit = 0; bit < 8; ++bit) made[k] = (made[k] >> 1) ^ (made[k] & 1 ? 0xEDB88320u : 0u);
    }
    return made;
  }();
  uint32_t crc = ~0u;
  for (size_t k = 0; k < size; ++k) crc = table[(crc ^ static_cast<unsigned char>(data[k])) & 255] ^ (crc >> 8);
  return ~crc;
}

/* Checksums by full name, of the directory at the end of the file. */
std::map<Text, uint32_t> directory(const Text &bytes) {
  const auto end = bytes.rfind("PK\5\6");
  if (end == Text::npos) damaged();
  uint64_t count = number<uint16_t>(bytes, end + 10), at = number<uint32_t>(bytes, end + 16);
  if (at == 0xFFFFFFFFu || count == 0xFFFFu) {  // of a file beyond 4 GB
    if (end < 20) damaged();
    const auto large = number<uint64_t>(bytes, end - 12);
    count = number<uint64_t>(bytes, large + 32);
    at = number<uint64_t>(bytes, large + 48);
  }
  std::map<Text, uint32_t> sums;
  for (uint64_t k = 0; k < count; ++k) {
    if (number<uint32_t>(bytes, at) != 0x02014b50u) damaged();
    const uint64_t size = number<uint16_t>(bytes, at + 28);
    const uint64_t more = uint64_t(number<uint16_t>(bytes, at + 30)) + number<uint16_t>(bytes, at + 32);
    if (bytes.size() - at < 46 + size + more) damaged();
    const auto name = bytes.substr(at + 46, size);
    if (!sums.emplace(name, number<uint32_t>(bytes, at + 16)).second)
      throw std::runtime_error("its entry '" + name + "' occurs twice");
    at += 46 + size + more;
  }
  return sums;
}

}  // namespace

void check_archive(const Text &path) {
  // As in backends/pt_expt/export/archive.py.
  static const std::regex known(
      "[A-Za-z0-9_\\-]+/(version|byteorder|archive_format|archive_version|\\.data/[A-Za-z0-9_]+|\\.format_version"
      "|\\.storage_alignment|data/aotinductor/model/[A-Za-z0-9_][A-Za-z0-9_.\\-]*|extra/dpmodel\\.json|data/dpmodel/model\\.dp)");
  std::ifstream file(path, std::ios::binary);
  const Text bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto sums = directory(bytes);
  Text root;
  for (const auto &[name, sum] : sums) {
    if (!std::regex_match(name, known) || name.find("..") != Text::npos)
      throw std::runtime_error("its entry '" + name + "' has a name that no exported model has");
    const auto folder = name.substr(0, name.find('/') + 1);
    if (!root.empty() && folder != root) throw std::runtime_error("it holds more than one folder");
    root = folder;
  }
  caffe2::serialize::PyTorchStreamReader reader(path);
  const auto records = reader.getAllRecords();
  if (records.size() != sums.size()) damaged();
  for (const auto &name : records) {
    const auto found = sums.find(root + name);
    if (found == sums.end()) damaged();  // torch reads another directory than the one that was checked
    const auto [data, size] = reader.getRecord(name);
    if (crc32(static_cast<const char *>(data.get()), size) != found->second)
      throw std::runtime_error("its entry '" + found->first + "' is damaged: freeze the model again, or copy it again");
  }
}

}  // namespace dpmodel
