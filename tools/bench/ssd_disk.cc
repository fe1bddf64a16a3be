#include "tools/bench/ssd_disk.h"

#include <fcntl.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <thread>
#include <vector>

#include "protocol/crc32c.h"
#include "protocol/seqlock.h"
#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/memory_block.h"
#include "tools/bench/pattern.h"

namespace moonpool::bench {

namespace {

constexpr uint64_t kBlock = 1 << 20;

std::string Errno() {
  return std::strerror(errno);
}

// The magic numbers of linux/magic.h, and of XFS, ZFS.
std::string NameOfFileSystem(const std::string& path) {
  struct statfs found {};
  if (statfs(path.c_str(), &found) != 0) throw Failure("statfs " + path + ": " + Errno());
  switch (static_cast<uint32_t>(found.f_type)) {
    case 0x01021994:
      return "tmpfs";
    case 0x858458f6:
      return "ramfs";
    case 0xef53:
      return "ext4";
    case 0x58465342:
      return "xfs";
    case 0x9123683e:
      return "btrfs";
    case 0xf2f52010:
      return "f2fs";
    case 0x2fc12fc1:
      return "zfs";
    case 0x794c7630:
      return "overlay";
    case 0x6969:
      return "nfs";
    default:
      return "a file system";
  }
}

UniqueFd OpenDirect(const std::string& path) {
  return UniqueFd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600));
}

}  // namespace

DiskFolder::DiskFolder(const std::string& parent) {
  std::error_code error;
  const std::string base =
      parent.empty() ? std::filesystem::temp_directory_path(error).string() : parent;
  std::filesystem::create_directories(base, error);
  path_ = base + "/moonpool-bench-ssd-XXXXXX";
  if (mkdtemp(path_.data()) == nullptr)
    throw Failure("cannot make a folder in " + base + ": " + Errno());
  file_system_ = NameOfFileSystem(path_);
  std::string refused;
  if (file_system_ == "tmpfs" || file_system_ == "ramfs") {
    refused = base + " is " + file_system_ + ", in memory";
  } else if (!OpenDirect(path_ + "/probe")) {
    refused = "the file system of " + base + " (" + file_system_ + ") refuses direct I/O";
  }
  unlink((path_ + "/probe").c_str());
  if (refused.empty()) return;
  rmdir(path_.c_str());
  throw Failure(refused + ": the disk would not be measured; give --directory on a disk");
}

DiskFolder::~DiskFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

uint64_t DiskFolder::free_bytes() const {
  struct statvfs found {};
  if (statvfs(path_.c_str(), &found) != 0) return 0;
  return uint64_t{found.f_bavail} * found.f_frsize;
}

DirectFile::DirectFile(const std::string& path) : fd_(OpenDirect(path)) {
  if (!fd_) throw Failure("cannot make " + path + ": " + Errno());
  unlink(path.c_str());
}

double DirectFile::Append(uint64_t bytes) {
  const MemoryBlock block = MemoryBlock::Anonymous(kBlock);
  FillPattern(block.data(), kBlock, size_, 1);
  const Stopwatch watch;
  for (const uint64_t end = size_ + bytes; size_ < end; size_ += kBlock) {
    if (pwrite(fd_.get(), block.data(), kBlock, static_cast<off_t>(size_)) != kBlock) {
      throw Failure("writing to the disk: " + Errno());
    }
  }
  if (fdatasync(fd_.get()) != 0) throw Failure("writing to the disk: " + Errno());
  return static_cast<double>(bytes) / watch.seconds() / 1e9;
}

template <typename To, typename Done>
double DirectFile::ReadBlocks(uint64_t offset, uint64_t bytes, int depth, To to, Done done) const {
  std::atomic<uint64_t> next{0};
  std::atomic<bool> failed{false};
  const Stopwatch watch;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < depth; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t block; (block = next.fetch_add(1)) < bytes / kBlock;) {
        const auto at = static_cast<off_t>(offset + block * kBlock);
        if (pread(fd_.get(), to(thread, block), kBlock, at) != kBlock) failed = true;
        done(block);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failed) throw Failure("reading from the disk failed");
  return static_cast<double>(bytes) / watch.seconds() / 1e9;
}

double DirectFile::Read(uint64_t offset, uint64_t bytes, int depth) const {
  const MemoryBlock memory = MemoryBlock::Anonymous(static_cast<size_t>(depth) * kBlock);
  return ReadBlocks(
      offset, bytes, depth,
      [&](int thread, uint64_t) { return memory.data() + static_cast<size_t>(thread) * kBlock; },
      [](uint64_t) {});
}

double DirectFile::ReadCheckAndCopy(uint64_t offset, uint64_t bytes, int depth,
                                    uint64_t memory_bytes) const {
  const MemoryBlock from = MemoryBlock::Anonymous(memory_bytes);
  const MemoryBlock to = MemoryBlock::Anonymous(memory_bytes);
  const auto place = [&](uint64_t block) { return block * kBlock % memory_bytes; };
  // What checksums there are is no matter, as long as they are computed.
  std::atomic<uint32_t> sum{0};
  return ReadBlocks(
      offset, bytes, depth, [&](int, uint64_t block) { return from.data() + place(block); },
      [&](uint64_t block) {
        sum ^= protocol::Crc32c(0, from.data() + place(block), kBlock);
        protocol::RacyCopyStreaming(to.data() + place(block), from.data() + place(block), kBlock);
      });
}

}  // namespace moonpool::bench
