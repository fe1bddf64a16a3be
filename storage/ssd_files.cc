#include "storage/ssd_files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <string_view>
#include <system_error>

namespace moonpool::storage {

namespace {

constexpr std::string_view kMagic = "moonpool-ssd ";
constexpr unsigned kVersion = 3;

tl::unexpected<Error> FailHere(const std::string& what) {
  const bool full = errno == ENOSPC || errno == EDQUOT;
  Error error = FailErrno(what).value();
  if (full) error.code = ErrorCode::kNoSpace;
  return tl::unexpected<Error>(std::move(error));
}

// Refuses a directory that somebody else put something into.
Status CheckEmpty(const std::string& directory) {
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename();
    // A file system of its own has one; a format file that was being made is ours.
    if (name == "lost+found" || name == "format.new") continue;
    return Fail(ErrorCode::kInvalidArgument,
                directory + " holds '" + name +
                    "' but no format file, so it is not a moonpool SSD "
                    "store: name another directory, or empty this one");
  }
  if (error) return Fail(ErrorCode::kSystem, directory + ": " + error.message());
  return {};
}

// In place of the old one or not at all, and durable.
Status WriteFormat(const std::string& directory) {
  const std::string path = directory + "/format";
  const std::string fresh = directory + "/format.new";
  const std::string text = std::string(kMagic) + std::to_string(kVersion) + "\n";
  const UniqueFd fd(open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640));
  if (!fd) return FailHere(fresh);
  if (write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      fsync(fd.get()) != 0 || rename(fresh.c_str(), path.c_str()) != 0) {
    return FailHere(fresh);
  }
  const UniqueFd folder(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || fsync(folder.get()) != 0) return FailHere(directory);
  return {};
}

// Nothing but the file itself changes: the lock is on it, and another name of it is the mark of trust.
// One byte of it differs, which is on disk or is not.
Status UpgradeFormat(const std::string& path) {
  const std::string text = std::string(kMagic) + std::to_string(kVersion) + "\n";
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd || pwrite(fd.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
      fsync(fd.get()) != 0) {
    return FailHere(path);
  }
  return {};
}

// The version that the file says, if this release can read it.
Result<unsigned> CheckFormat(const std::string& path, std::string_view text) {
  unsigned version = 0;
  if (text.starts_with(kMagic)) {
    const std::string_view number = text.substr(kMagic.size());
    std::from_chars(number.data(), number.data() + number.size(), version);
  }
  if (version == 0) {
    return Fail(ErrorCode::kInvalidArgument,
                path + " is not a moonpool SSD store's: name another directory");
  }
  if (version > kVersion) {
    return Fail(ErrorCode::kInvalidArgument,
                path + " says version " + std::to_string(version) + ", and this release knows " +
                    std::to_string(kVersion) +
                    ": run the newer release, name another directory, or delete this one");
  }
  return version;
}

}  // namespace

Result<UniqueFd> LockSsdDirectory(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return Fail(ErrorCode::kSystem, "making " + directory + ": " + error.message());
  const std::string path = directory + "/format";
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd && errno == ENOENT) {
    if (Status empty = CheckEmpty(directory); !empty) return tl::unexpected(empty.error());
    if (Status made = WriteFormat(directory); !made) return tl::unexpected(made.error());
    fd = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  }
  if (!fd) return FailHere(path);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return FailHere("locking " + path);
    return Fail(ErrorCode::kInvalidArgument,
                directory + " is in use by another process: stop it, or name another directory");
  }
  char text[64];
  const ssize_t length = read(fd.get(), text, sizeof(text));
  if (length < 0) return FailHere(path);
  const auto version = CheckFormat(path, {text, static_cast<size_t>(length)});
  if (!version) return tl::unexpected(version.error());
  if (*version < kVersion) {
    if (Status upgraded = UpgradeFormat(path); !upgraded) return tl::unexpected(upgraded.error());
  }
  return fd;
}

bool SsdDirectoryTrusted(const std::string& directory) {
  return access((directory + "/trusted").c_str(), F_OK) == 0;
}

Status TrustSsdDirectory(const std::string& directory) {
  const std::string path = directory + "/trusted";
  if (link((directory + "/format").c_str(), path.c_str()) != 0 && errno != EEXIST) {
    return FailHere(path);
  }
  return {};
}

Status DistrustSsdDirectory(const std::string& directory) {
  const std::string path = directory + "/trusted";
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return FailHere(path);
  return {};
}

Status SyncSsdDirectory(const std::string& directory) {
  const UniqueFd folder(open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || syncfs(folder.get()) != 0) return FailHere("syncing " + directory);
  return {};
}

bool DirectIoWorks(const std::string& directory) {
  const std::string path = directory + "/format";
  return static_cast<bool>(UniqueFd(open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)));
}

std::string KernelBootId() {
  const UniqueFd fd(open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  char text[64];
  const ssize_t length = fd ? read(fd.get(), text, sizeof(text)) : 0;
  std::string id(text, length > 0 ? static_cast<size_t>(length) : 0);
  while (!id.empty() && id.back() == '\n') id.pop_back();
  return id;
}

}  // namespace moonpool::storage
