// The directory of an SsdStore outside its databases: the format file, which is also the lock.
#pragma once

#include <cstdint>
#include <string>

#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::storage {

// Makes the directory and its format file if there is none, and checks what is there; what an older
// release wrote is of this release's version from then on.  The file
// stays locked for as long as the descriptor lives.  Errors: kInvalidArgument (a newer format,
// contents that are not ours, in use), kNoSpace, kSystem.
Result<UniqueFd> LockSsdDirectory(const std::string& directory);

// The mark that the directory's contents may be trusted: a file that is there, so that taking it away
// works on a full disk as well.
bool SsdDirectoryTrusted(const std::string& directory);
Status TrustSsdDirectory(const std::string& directory);
Status DistrustSsdDirectory(const std::string& directory);

// Everything written to the directory so far, by whomever, survives a crash of the machine.
Status SyncSsdDirectory(const std::string& directory);

// Whether files of the directory can be opened with O_DIRECT.
bool DirectIoWorks(const std::string& directory);

// Of the machine's current boot; empty when the system does not tell.
std::string KernelBootId();

}  // namespace moonpool::storage
