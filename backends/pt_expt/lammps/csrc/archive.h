/* The names in a zip archive, read from its directory: they decide where files go when it is unpacked. */
#pragma once

#include <string>
#include <vector>

namespace dpmodel {

/* Names of all entries, the archive's own folder included. Throws std::runtime_error for what is no zip archive, and
   for a name that would lead out of the folder it is unpacked into. */
std::vector<std::string> entry_names(const std::string &path);

}  // namespace dpmodel
