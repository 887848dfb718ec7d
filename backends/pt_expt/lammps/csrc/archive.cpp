#include "archive.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace dpmodel {
namespace {

/* A little-endian number in a buffer. */
template <class T>
T number(const std::vector<char> &bytes, size_t at) {
  if (at > bytes.size() || bytes.size() - at < sizeof(T)) throw std::runtime_error("the archive is cut short");
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

std::vector<char> read(std::ifstream &file, uint64_t at, uint64_t count) {
  std::vector<char> bytes(count);
  file.seekg(static_cast<std::streamoff>(at));
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  if (!file) throw std::runtime_error("the archive is cut short");
  return bytes;
}

bool leads_out(const std::string &name) {
  if (name.empty() || name[0] == '/' || name.find('\\') != std::string::npos || name.find('\0') != std::string::npos)
    return true;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace

std::vector<std::string> entry_names(const std::string &path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error("the file cannot be read");
  const auto size = static_cast<uint64_t>(file.tellg());
  const uint64_t tail = std::min<uint64_t>(size, 65557 + 20);
  const auto end = read(file, size - tail, tail);
  size_t at = std::string::npos;
  for (size_t k = tail >= 22 ? tail - 22 + 1 : 0; k-- > 0;)
    if (number<uint32_t>(end, k) == 0x06054b50u) {
      at = k;
      break;
    }
  if (at == std::string::npos) throw std::runtime_error("it is no exported model (expected a zip archive)");
  uint64_t entries = number<uint16_t>(end, at + 10), bytes = number<uint32_t>(end, at + 12);
  uint64_t begin = number<uint32_t>(end, at + 16);
  if (at >= 20 && number<uint32_t>(end, at - 20) == 0x07064b50u) {  // zip64
    const auto large = read(file, number<uint64_t>(end, at - 20 + 8), 56);
    entries = number<uint64_t>(large, 32);
    bytes = number<uint64_t>(large, 40);
    begin = number<uint64_t>(large, 48);
  }
  if (begin > size || bytes > size - begin) throw std::runtime_error("the archive is cut short");
  const auto directory = read(file, begin, bytes);
  std::vector<std::string> names;
  size_t here = 0;
  for (uint64_t k = 0; k < entries; ++k) {
    if (number<uint32_t>(directory, here) != 0x02014b50u) throw std::runtime_error("the archive's directory is damaged");
    const size_t length = number<uint16_t>(directory, here + 28);
    const size_t more = static_cast<size_t>(number<uint16_t>(directory, here + 30)) + number<uint16_t>(directory, here + 32);
    if (directory.size() - here - 46 < length) throw std::runtime_error("the archive is cut short");
    names.emplace_back(directory.data() + here + 46, length);
    if (leads_out(names.back()))
      throw std::runtime_error("its entry '" + names.back() + "' would be unpacked outside its folder");
    here += 46 + length + more;
  }
  return names;
}

}  // namespace dpmodel
