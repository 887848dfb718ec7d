/* The archive of an artefact: names and checksums of its entries. */
#pragma once

#include <string>

namespace dpmodel {

/* Throws std::exception where the archive, as torch reads it, holds an entry that no exported model has, or is damaged.
   torch's reader compares no checksums and drops the name of the archive's folder, by which its loader unpacks. */
void check_archive(const std::string &path);

}  // namespace dpmodel
