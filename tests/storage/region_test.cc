#include "storage/region.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "storage/generation_table.h"
#include "tests/storage/store.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace moonpool::storage {
namespace {

constexpr int kReadWrite = PROT_READ | PROT_WRITE;

std::unique_ptr<Region> MakeRegion(Region::Kind kind, size_t bytes = 2 * kMiB) {
  RegionOptions options;
  options.huge_pages = RegionOptions::HugePages::kNo;
  auto region = Region::Create(7, kind, bytes, options);
  MOONPOOL_CHECK(region.has_value());
  return std::move(*region);
}

// A mapping as a client makes it.
class Mapping {
 public:
  Mapping(int fd, size_t bytes, int protection)
      : bytes_(bytes), data_(MapAligned(fd, bytes, protection)), error_(data_ ? 0 : errno) {}
  ~Mapping() { Unmap(); }
  Mapping(const Mapping&) = delete;
  void Unmap() {
    if (data_ != nullptr) munmap(std::exchange(data_, nullptr), bytes_);
  }
  explicit operator bool() const { return data_ != nullptr; }
  char* data() const { return data_; }
  int error() const { return error_; }

 private:
  const size_t bytes_;
  char* data_;
  int error_;
};

UniqueFd Reopen(int fd, int flags) {
  return UniqueFd(open(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags | O_CLOEXEC));
}

// Everything a client might try with a file it holds.
void ExpectReadOnly(int fd, size_t bytes) {
  EXPECT_FALSE(Mapping(fd, bytes, kReadWrite));
  EXPECT_TRUE(errno == EPERM || errno == EACCES) << errno;
  EXPECT_FALSE(Mapping(fd, bytes, PROT_WRITE));
  Mapping reader(fd, bytes, PROT_READ);
  ASSERT_TRUE(reader);
  EXPECT_NE(mprotect(reader.data(), bytes, kReadWrite), 0);
  EXPECT_EQ(errno, EACCES);
  EXPECT_NE(mprotect(reader.data(), 4096, PROT_WRITE), 0);
  EXPECT_NE(madvise(reader.data(), 4096, MADV_REMOVE), 0);  // punches a hole
  char byte = 'x';
  EXPECT_EQ(pwrite(fd, &byte, 1, 0), -1);
  EXPECT_EQ(pwrite(fd, &byte, 1, static_cast<off_t>(bytes)), -1);
  EXPECT_NE(ftruncate(fd, 0), 0);
  EXPECT_NE(ftruncate(fd, static_cast<off_t>(bytes * 2)), 0);
  EXPECT_NE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  EXPECT_NE(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 4096), 0);
  EXPECT_NE(fallocate(fd, 0, static_cast<off_t>(bytes), 4096), 0);
}

TEST(RegionTest, SharedRegionsAreReadOnlyForEverybodyElse) {
  const auto region = MakeRegion(Region::Kind::kShared);
  std::memset(region->data(), 'a', region->bytes());
  const UniqueFd by_read = Reopen(region->read_fd(), O_RDONLY);
  // A memfd may be reopened for writing by whoever holds it: the seal must hold all the same.
  const UniqueFd by_reopen = Reopen(region->read_fd(), O_RDWR);
  ASSERT_TRUE(by_read);
  ASSERT_TRUE(by_reopen);
  for (const int fd : {region->fd(), region->read_fd(), by_read.get(), by_reopen.get()}) {
    ASSERT_NO_FATAL_FAILURE(ExpectReadOnly(fd, region->bytes()));
    // No seal can be added, so nobody can keep the server from writing either.
    EXPECT_NE(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
  }
  EXPECT_EQ(fcntl(region->fd(), F_GET_SEALS),
            F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE);
  // The server writes on, and readers see it.
  Mapping reader(region->read_fd(), region->bytes(), PROT_READ);
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader.data()[12345], 'a');
  std::memset(region->data(), 'b', region->bytes());
  EXPECT_EQ(reader.data()[12345], 'b');
  for (size_t i = 0; i < region->bytes(); i += 4096) ASSERT_EQ(reader.data()[i], 'b');
}

TEST(RegionTest, MappingsOutliveTheRegion) {
  auto region = MakeRegion(Region::Kind::kShared);
  std::memset(region->data(), 'a', region->bytes());
  Mapping reader(region->read_fd(), region->bytes(), PROT_READ);
  region.reset();
  EXPECT_EQ(reader.data()[2 * kMiB - 1], 'a');
}

TEST(RegionTest, AnArenaBelongsToTheWriterThatMappedItBeforeTheSeal) {
  const auto region = MakeRegion(Region::Kind::kArena);
  Mapping writer(region->fd(), region->bytes(), kReadWrite);
  ASSERT_TRUE(writer);
  ASSERT_TRUE(region->SealArena());
  ASSERT_TRUE(region->SealArena());  // again is no harm
  const UniqueFd by_reopen = Reopen(region->read_fd(), O_RDWR);
  const UniqueFd writers_own = Reopen(region->fd(), O_RDWR);
  for (const int fd : {region->fd(), region->read_fd(), by_reopen.get(), writers_own.get()}) {
    ASSERT_NO_FATAL_FAILURE(ExpectReadOnly(fd, region->bytes()));
  }
  // The mapping from before keeps working; the server reads what it writes.
  std::memset(writer.data(), 'w', region->bytes());
  EXPECT_EQ(region->data()[0], 'w');
  EXPECT_EQ(region->data()[2 * kMiB - 1], 'w');
  EXPECT_FALSE(region->ProveNoWriters());
  std::memset(writer.data(), 'x', region->bytes());  // the attempt took nothing away
  EXPECT_EQ(region->data()[4096], 'x');
  writer.Unmap();
  EXPECT_TRUE(region->ProveNoWriters());
  EXPECT_TRUE(region->ProveNoWriters());
  EXPECT_EQ(region->data()[4096], 'x');
}

TEST(RegionTest, TheServerMapsArenasReadOnly) {
  const auto region = MakeRegion(Region::Kind::kArena);
  EXPECT_EQ(region->data()[0], 0);
  EXPECT_NE(mprotect(region->data(), 4096, kReadWrite), 0);
  EXPECT_TRUE(region->ProveNoWriters());  // its own mapping does not count
}

TEST(RegionTest, ClosingTheFileProvesNothing) {
  const auto region = MakeRegion(Region::Kind::kArena);
  std::optional<Mapping> writer;
  {
    const UniqueFd fd = Reopen(region->fd(), O_RDWR);
    writer.emplace(fd.get(), region->bytes(), kReadWrite);
  }
  ASSERT_TRUE(region->SealArena());
  EXPECT_FALSE(region->ProveNoWriters());
  writer->data()[0] = 'x';
  EXPECT_EQ(region->data()[0], 'x');
  // Not even a part of it may stay.
  munmap(writer->data(), region->bytes() - 4096);
  EXPECT_FALSE(region->ProveNoWriters());
  munmap(writer->data() + region->bytes() - 4096, 4096);
  EXPECT_TRUE(region->ProveNoWriters());
}

TEST(RegionTest, AForkedChildIsAWriterToo) {
  const auto region = MakeRegion(Region::Kind::kArena);
  Mapping writer(region->fd(), region->bytes(), kReadWrite);
  ASSERT_TRUE(region->SealArena());
  int go[2];
  ASSERT_EQ(pipe(go), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    close(go[1]);
    char byte;
    (void)!read(go[0], &byte, 1);  // until the parent closes its end
    _exit(0);
  }
  close(go[0]);
  writer.Unmap();
  EXPECT_FALSE(region->ProveNoWriters());
  close(go[1]);
  int status;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(region->ProveNoWriters());
}

TEST(RegionTest, AReadMappingThroughTheWritableFileCountsAsAWriter) {
  // Made before the seal it could be turned writable; that is why readers get read_fd().
  const auto region = MakeRegion(Region::Kind::kArena);
  {
    Mapping reader(region->read_fd(), region->bytes(), PROT_READ);
    Mapping could_write(region->fd(), region->bytes(), PROT_READ);
    ASSERT_TRUE(region->SealArena());
    EXPECT_FALSE(region->ProveNoWriters());
    could_write.Unmap();
    EXPECT_TRUE(region->ProveNoWriters());
  }
  EXPECT_TRUE(region->ProveNoWriters());
}

TEST(RegionTest, AClientThatSealsTheSealsProvesNothing) {
  // It holds a writable file, so it may add F_SEAL_SEAL; the arena is then never proven free.
  const auto region = MakeRegion(Region::Kind::kArena);
  Mapping writer(region->fd(), region->bytes(), kReadWrite);
  ASSERT_EQ(fcntl(region->fd(), F_ADD_SEALS, F_SEAL_SEAL), 0);
  const Status sealed = region->SealArena();
  ASSERT_FALSE(sealed);
  EXPECT_EQ(sealed.error().code, ErrorCode::kSystem);
  EXPECT_FALSE(region->ProveNoWriters());
  writer.Unmap();
  EXPECT_FALSE(region->ProveNoWriters());
}

TEST(RegionTest, SizesAreWholeHugePagesAndMappingsAligned) {
  for (const size_t bytes : {size_t{1}, 2 * kMiB - 1, 2 * kMiB, 2 * kMiB + 1, 10 * kMiB}) {
    const auto region = MakeRegion(Region::Kind::kShared, bytes);
    EXPECT_EQ(region->bytes() % kHugePageBytes, 0u);
    EXPECT_GE(region->bytes(), bytes);
    EXPECT_LT(region->bytes(), bytes + kHugePageBytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(region->data()) % kHugePageBytes, 0u);
    region->data()[region->bytes() - 1] = 'x';
    EXPECT_EQ(region->id(), 7u);
    EXPECT_FALSE(region->huge_pages());
  }
}

TEST(RegionTest, MapAlignedFailsCleanly) {
  errno = 0;
  EXPECT_EQ(MapAligned(-1, 2 * kMiB, PROT_READ), nullptr);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(MapAligned(-1, size_t{1} << 62, PROT_READ), nullptr);
  EXPECT_EQ(errno, ENOMEM);
}

TEST(RegionTest, ReservedHugePagesOrAnError) {
  RegionOptions options;
  options.huge_pages = RegionOptions::HugePages::kYes;
  const auto region = Region::Create(1, Region::Kind::kShared, 2 * kMiB, options);
  if (region) {
    EXPECT_TRUE((*region)->huge_pages());
    (*region)->data()[0] = 'x';
  } else {
    EXPECT_EQ(region.error().code, ErrorCode::kSystem);
  }
  options.huge_pages = RegionOptions::HugePages::kAuto;
  EXPECT_TRUE(Region::Create(2, Region::Kind::kShared, 2 * kMiB, options));
}

TEST(RegionTest, ANumaNodeThatIsNotThereIsAnError) {
  RegionOptions options;
  options.huge_pages = RegionOptions::HugePages::kNo;
  options.numa_node = 5000;
  const auto beyond = Region::Create(1, Region::Kind::kShared, 2 * kMiB, options);
  ASSERT_FALSE(beyond);
  EXPECT_EQ(beyond.error().code, ErrorCode::kInvalidArgument);
  options.numa_node = 1000;
  const auto absent = Region::Create(1, Region::Kind::kShared, 2 * kMiB, options);
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, ErrorCode::kSystem);
}

// The VmFlags of the mapping that starts at `data`; empty when they are not told.
std::string FlagsOf(const char* data) {
  char start[32];
  std::snprintf(start, sizeof(start), "%lx-", reinterpret_cast<unsigned long>(data));
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.rfind(start, 0) == 0) inside = true;
    if (inside && line.rfind("VmFlags:", 0) == 0) return line + " ";
  }
  return "";
}

TEST(RegionTest, ValuesAreKeptOutOfCoreDumps) {
  for (const auto kind : {Region::Kind::kShared, Region::Kind::kArena}) {
    const auto region = MakeRegion(kind);
    const std::string flags = FlagsOf(region->data());
    if (flags.empty()) GTEST_SKIP() << "no VmFlags in /proc/self/smaps";
    EXPECT_NE(flags.find(" dd "), std::string::npos) << flags;
  }
}

// --- faulting in ---------------------------------------------------------------------------------

size_t ResidentPages(const char* data, size_t bytes) {
  std::vector<unsigned char> pages(bytes / 4096);
  EXPECT_EQ(mincore(const_cast<char*>(data), bytes, pages.data()), 0);
  size_t resident = 0;
  for (const unsigned char page : pages) resident += page & 1;
  return resident;
}

TEST(RegionPopulateTest, MakesMemoryResident) {
  for (const auto kind : {Region::Kind::kShared, Region::Kind::kArena}) {
    const auto region = MakeRegion(kind, 8 * kMiB);
    EXPECT_EQ(ResidentPages(region->data(), region->bytes()), 0u);
    ASSERT_TRUE(region->Populate(2 * kMiB, 4 * kMiB));
    EXPECT_EQ(ResidentPages(region->data(), 2 * kMiB), 0u);
    EXPECT_EQ(ResidentPages(region->data() + 2 * kMiB, 4 * kMiB), 1024u);
    EXPECT_EQ(ResidentPages(region->data() + 6 * kMiB, 2 * kMiB), 0u);
    // The rest, and what is beyond the end.
    ASSERT_TRUE(region->Populate(0, 100 * kMiB));
    EXPECT_EQ(ResidentPages(region->data(), region->bytes()), 2048u);
    ASSERT_TRUE(region->Populate(8 * kMiB, 2 * kMiB));
    for (size_t i = 0; i < region->bytes(); i += 512) ASSERT_EQ(region->data()[i], 0);
  }
}

TEST(RegionPopulateTest, KeepsWhatIsThere) {
  const auto shared = MakeRegion(Region::Kind::kShared, 6 * kMiB);
  // All of one huge page, a little of another, nothing of the third.
  std::memset(shared->data(), 'a', 2 * kMiB);
  std::memset(shared->data() + 3 * kMiB, 'b', 4096);
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(shared->Populate(0, shared->bytes()));
    for (size_t i = 0; i < 6 * kMiB; ++i) {
      const char expected = i < 2 * kMiB ? 'a' : i >= 3 * kMiB && i < 3 * kMiB + 4096 ? 'b' : 0;
      ASSERT_EQ(shared->data()[i], expected) << i;
    }
  }
  const auto arena = MakeRegion(Region::Kind::kArena, 4 * kMiB);
  Mapping writer(arena->fd(), arena->bytes(), kReadWrite);
  std::memset(writer.data() + kMiB, 'w', 2 * kMiB);
  ASSERT_TRUE(arena->SealArena());
  ASSERT_TRUE(arena->Populate(0, arena->bytes()));
  for (size_t i = 0; i < 4 * kMiB; ++i) {
    ASSERT_EQ(writer.data()[i], i >= kMiB && i < 3 * kMiB ? 'w' : 0) << i;
    ASSERT_EQ(arena->data()[i], writer.data()[i]);
  }
}

TEST(RegionPopulateTest, LosesNoWriteThatHappensMeanwhile) {
  // Populate collapses small pages into a huge one under the feet of writers.
  for (int round = 0; round < (kSanitized ? 5 : 50); ++round) {
    const auto region = MakeRegion(Region::Kind::kShared, 4 * kMiB);
    auto* words = reinterpret_cast<std::atomic<uint64_t>*>(region->data());
    const size_t count = region->bytes() / 8;
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> passes{0};
    std::thread writer([&] {
      do {
        const uint64_t pass = passes + 1;
        for (size_t i = 0; i < count; i += 64) {
          // Each word counts the passes: one that went back to zero has lost a write.
          if (words[i].fetch_add(1, std::memory_order_relaxed) + 1 != pass) {
            ADD_FAILURE() << "a write was lost at word " << i;
            return;
          }
        }
        passes = pass;
      } while (!stop);
    });
    for (int again = 0; again < 5; ++again) EXPECT_TRUE(region->Populate(0, region->bytes()));
    stop = true;
    writer.join();
    for (size_t i = 0; i < count; i += 64) ASSERT_EQ(words[i], passes);
  }
}

// --- the generation table ------------------------------------------------------------------------

TEST(GenerationTableTest, ClientsReadItAndCannotWriteIt) {
  const auto table = GenerationTable::Create(5000);
  ASSERT_TRUE(table);
  EXPECT_GE((*table)->bytes(), 5000 * sizeof(uint64_t));
  ASSERT_NO_FATAL_FAILURE(ExpectReadOnly((*table)->fd(), (*table)->bytes()));
  const UniqueFd reopened = Reopen((*table)->fd(), O_RDWR);
  ASSERT_NO_FATAL_FAILURE(ExpectReadOnly(reopened.get(), (*table)->bytes()));
  Mapping client((*table)->fd(), (*table)->bytes(), PROT_READ);
  ASSERT_TRUE(client);
  const auto* counters = reinterpret_cast<const protocol::GenerationCounter*>(client.data());
  EXPECT_EQ(protocol::LoadGeneration(counters[4999]), 0u);
  protocol::BumpGeneration((*table)->counter(4999));
  EXPECT_EQ(protocol::LoadGeneration(counters[4999]), 1u);
  EXPECT_EQ(protocol::LoadGeneration(counters[4998]), 0u);
}

TEST(GenerationTableTest, SlotsAreHandedOutOnceAndKeepCounting) {
  const auto table = GenerationTable::Create(3);
  ASSERT_TRUE(table);
  const auto a = (*table)->Take(), b = (*table)->Take(), c = (*table)->Take();
  ASSERT_TRUE(a && b && c);
  EXPECT_TRUE(*a != *b && *b != *c && *a != *c);
  EXPECT_EQ((*table)->Take(), std::nullopt);
  EXPECT_EQ((*table)->slots_used(), 3u);
  protocol::BumpGeneration((*table)->counter(*b));
  (*table)->GiveBack(*b);
  EXPECT_EQ((*table)->slots_used(), 2u);
  EXPECT_EQ((*table)->Take(), *b);
  EXPECT_EQ((*table)->counter(*b), 1u);
}

}  // namespace
}  // namespace moonpool::storage
