// What is left when a process, or the machine, stops without warning.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <random>
#include <vector>

#include "protocol/unique_fd.h"
#include "storage/ssd_store.h"
#include "tests/storage/ssd_crash_child.h"
#include "tests/storage/ssd_directory.h"

namespace moonpool::storage {
namespace {

// A process of its own, since RocksDB's threads would not be there in a child of a fork alone.
pid_t StartChild(const std::string& mode, const SsdOptions& options, uint64_t seed = 0,
                 int ledger_fd = -1) {
  const std::string program =
      std::filesystem::read_symlink("/proc/self/exe").parent_path() / "moonpool-ssd-crash-child";
  const std::string log = std::to_string(options.log_payload);
  const std::string sync = std::to_string(options.sync);
  const std::string seed_text = std::to_string(seed), fd = std::to_string(ledger_fd);
  const pid_t child = fork();
  if (child == 0) {
    if (ledger_fd >= 0) {
      execl(program.c_str(), program.c_str(), mode.c_str(), options.directory.c_str(),
            options.boot_id.c_str(), log.c_str(), sync.c_str(), seed_text.c_str(), fd.c_str(),
            nullptr);
    } else {
      execl(program.c_str(), program.c_str(), mode.c_str(), options.directory.c_str(),
            options.boot_id.c_str(), log.c_str(), sync.c_str(), nullptr);
    }
    _exit(127);
  }
  return child;
}

// A child that ends without closing the store.
void RunChild(const std::string& mode, const SsdOptions& options) {
  const pid_t child = StartChild(mode, options);
  ASSERT_GE(child, 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_EQ(WEXITSTATUS(status), 0);
}

class SsdCrashTest : public testing::TestWithParam<bool> {};

TEST_P(SsdCrashTest, AfterAKillWhatWasAcknowledgedHolds) {
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  options.log_payload = GetParam();
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const UniqueFd ledger_fd(memfd_create("ledger", 0));  // the child inherits it
  ASSERT_TRUE(ledger_fd);
  ASSERT_EQ(ftruncate(ledger_fd.get(), sizeof(Ledger)), 0);
  auto* ledger = static_cast<Ledger*>(
      mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED, ledger_fd.get(), 0));
  ASSERT_NE(ledger, MAP_FAILED);
  uint64_t survived = 0, unfinished = 0, largest = 0;
  // The test would be worth nothing if nothing survived.
  for (int round = 0; round < Steps(24) || survived == 0; ++round) {
    ASSERT_LT(round, 200);
    const pid_t child = StartChild("work", options, random(), ledger_fd.get());
    ASSERT_GE(child, 0);
    const uint64_t until = 5 + random() % 500;
    ASSERT_TRUE(Eventually([&] { return ledger->count > until; }));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child left with " << WEXITSTATUS(status);

    OpenSsd store(options);
    ASSERT_NE(store.store, nullptr);
    EXPECT_FALSE(store.recovery.clean);
    EXPECT_FALSE(store.recovery.wiped);
    unfinished += store.recovery.unfinished;
    EXPECT_GT(store->NextId(), ledger->largest_id);
    for (uint64_t i = 0; i < ledger->count; ++i) {
      const Ledger::Entry& entry = ledger->entries[i];
      const auto found = store.found.find(entry.id);
      if (entry.state == Ledger::kErased || entry.id < ledger->erased_below) {
        EXPECT_EQ(found, store.found.end()) << "erased, and it came back";
      }
      if (found == store.found.end()) continue;
      EXPECT_EQ(found->second.length, entry.length);
      EXPECT_TRUE(IsThere(*store.store, found->second));
      ++survived;
    }
    EXPECT_LE(store.found.size(), ledger->count);
    if (options.log_payload) {
      for (uint64_t i = 0; i < ledger->count; ++i) {
        const Ledger::Entry& entry = ledger->entries[i];
        if (entry.state != Ledger::kPut || entry.id < ledger->erased_below) continue;
        // The one that was being erased may be gone.
        if (store.found.count(entry.id) == 0) ++largest;
      }
      EXPECT_LE(largest, static_cast<uint64_t>(2 * (round + 1)) + 40 * 2);
    }
    // The next round starts with nothing.
    SsdChange change;
    change.EraseBelow(store->NextId());
    ASSERT_TRUE(store->Apply(change));
    if (round % 2 == 0) CollectAll(*store.store);
    ledger->count = 0;
    ledger->erased_below = 0;
    for (auto& entry : ledger->entries) {
      if (entry.id == 0) break;
      entry.id = 0;
      entry.state = Ledger::kNone;
    }
  }
  if (options.log_payload) {
    EXPECT_EQ(unfinished, 0u);
  }
  std::printf("%llu versions came back, %llu had not reached the disk\n",
              static_cast<unsigned long long>(survived),
              static_cast<unsigned long long>(unfinished));
  munmap(ledger, sizeof(Ledger));
}

INSTANTIATE_TEST_SUITE_P(Log, SsdCrashTest, testing::Bool());

TEST(SsdCrash, PayloadWithoutARecordLeavesNothingBehind) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  for (int again = 0; again < 3; ++again) {
    ASSERT_NO_FATAL_FAILURE(RunChild("orphans", options));
  }
  OpenSsd store(options);
  EXPECT_EQ(store.recovery.versions, 0u);
  SsdChange change;
  change.EraseBelow(store->NextId());  // brings tables and deletions together
  ASSERT_TRUE(store->Apply(change));
  CollectAll(*store.store);
  EXPECT_TRUE(Eventually([&] { return store->stats().disk_bytes < 2 * kMiB; }))
      << store->stats().disk_bytes;
}

TEST(SsdCrash, ACrashOfTheMachineEmptiesTheStore) {
  const SsdDirectory directory;
  SsdOptions options = SmallSsd(directory);
  options.boot_id = "first";
  ASSERT_NO_FATAL_FAILURE(RunChild("flushed", options));
  {
    OpenSsd store(options);  // the process crashed
    EXPECT_FALSE(store.recovery.wiped);
    EXPECT_EQ(store.recovery.versions, 1u);
  }
  std::string noted;
  options.boot_id = "second";
  options.note = [&](std::string line) { noted += line; };
  OpenSsd store(options);
  EXPECT_TRUE(store.recovery.wiped);
  EXPECT_EQ(store.recovery.versions, 0u);
  EXPECT_NE(noted.find("starts empty"), std::string::npos) << noted;
  const SsdRecord record = PutVersion(*store.store, options, "k", 100000);
  EXPECT_TRUE(IsThere(*store.store, record));
}

TEST(SsdCrash, ACleanStopOrASyncedLogOutliveTheMachine) {
  for (const bool sync : {false, true}) {
    const SsdDirectory directory;
    SsdOptions options = SmallSsd(directory);
    options.sync = sync;
    options.boot_id = "first";
    ASSERT_NO_FATAL_FAILURE(RunChild(sync ? "flushed" : "clean", options));
    options.boot_id = "second";
    OpenSsd store(options);
    EXPECT_FALSE(store.recovery.wiped);
    EXPECT_EQ(store.recovery.clean, !sync);
    EXPECT_EQ(store.recovery.versions, 1u);
    for (const auto& [id, record] : store.found) EXPECT_TRUE(IsThere(*store.store, record));
  }
}

TEST(SsdCrash, SmallValuesOfAStopThatDidNotEndAreNotServed) {
  const SsdDirectory directory;
  const SsdOptions options = SmallSsd(directory);
  ASSERT_NO_FATAL_FAILURE(RunChild("small", options));
  OpenSsd store(options);
  EXPECT_EQ(store.recovery.small_values, 0u);
}

}  // namespace
}  // namespace moonpool::storage
