// How transfers are cut, posted and proven.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/protocol/random.h"
#include "tests/rdma/engine_rig.h"

namespace moonpool::rdma {
namespace {

using moonpool::test::Random;
using test::EngineRig;
using test::FakeFabric;
using Value = EngineRig::Value;

constexpr uint64_t kPage = 4096;

// `count` values of `bytes`, one behind the other in the pool and here.
std::vector<Value> Row(size_t count, uint64_t bytes) {
  std::vector<Value> values;
  for (size_t i = 0; i < count; ++i) {
    values.push_back({i * bytes, bytes, static_cast<uint32_t>(i), i * bytes, {}, true});
  }
  return values;
}

void ExpectAllDone(const Transfer& transfer) {
  for (size_t i = 0; i < transfer.items().size(); ++i) {
    EXPECT_EQ(transfer.outcome(i), Outcome::kDone) << i << ": " << transfer.error();
    EXPECT_EQ(EngineRig::Wrong(transfer, i), "");
  }
}

TEST(RdmaEngine, OneValue) {
  EngineRig rig(1, 1);
  Transfer* const transfer = rig.Read({{kPage, 1 << 20, 5, 100, {}, true}});
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  EXPECT_EQ(rig.local[99], '\xee');
  EXPECT_EQ(rig.local[100 + (1 << 20)], '\xee');
}

TEST(RdmaEngine, ABatchIsOneDoorbellAndOneCompletion) {
  EngineRig rig(1, 1);
  std::vector<Value> values = Row(64, kPage);
  for (size_t i = 0; i < values.size(); ++i) values[i].offset = 2 * i * kPage;  // not neighbours
  Transfer* const transfer = rig.Read(values);
  const auto before = rig.fabric.counters();
  rig.Progress();
  const auto after = rig.fabric.counters();
  EXPECT_EQ(after.doorbells - before.doorbells, 1u);
  EXPECT_EQ(after.requests - before.requests, 65u) << "and one for all generations";
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  EXPECT_EQ(rig.fabric.counters().doorbells, after.doorbells);
  EXPECT_LE(rig.fabric.counters().completions - before.completions, 2u);
  EXPECT_EQ(rig.engine->counters().fenced_reads, 1u);
}

TEST(RdmaEngine, NeighboursShareARequest) {
  EngineRig rig(1, 1);
  std::vector<Value> values = Row(32, kPage);
  std::reverse(values.begin(), values.end());
  Transfer* const transfer = rig.Read(values);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  EXPECT_EQ(rig.engine->counters().slices, 1u);
  EXPECT_EQ(rig.engine->counters().merged_values, 32u);
}

TEST(RdmaEngine, NeighboursIntoManyPlaces) {
  EngineRig rig(1, 1);
  std::vector<Value> values = Row(64, kPage);
  for (size_t i = 0; i < values.size(); ++i) values[i].to = (i * 37 % 64) * 2 * kPage;
  Transfer* const transfer = rig.Read(values);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  EXPECT_EQ(rig.engine->counters().slices, 4u) << "of 16 pieces each";
}

TEST(RdmaEngine, ScatteredPieces) {
  EngineRig rig(1, 1);
  Transfer* const transfer = rig.Read({{0, 100'000, 1, 0, 1000, true}});
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
}

TEST(RdmaEngine, GenerationsFarApartAreReadApart) {
  EngineRig rig(1, 1);
  std::vector<Value> values = Row(3, kPage);
  values[1].slot = 511;   // in one packet with 0
  values[2].slot = 3000;  // not
  Transfer* const transfer = rig.Read(values);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  EXPECT_EQ(rig.engine->counters().generation_reads, 2u);
}

TEST(RdmaEngine, AChangedGenerationIsSeen) {
  EngineRig rig(1, 1);
  Transfer* const transfer = rig.Read(Row(3, kPage));
  rig.generations[1] += 1;
  rig.RunToEnd(transfer);
  EXPECT_EQ(transfer->outcome(0), Outcome::kDone);
  EXPECT_EQ(transfer->outcome(1), Outcome::kChanged);
  EXPECT_EQ(transfer->outcome(2), Outcome::kDone);
}

TEST(RdmaEngine, ASlotBeyondTheTableIsNotThere) {
  EngineRig rig(1, 1);
  std::vector<Value> values = Row(2, kPage);
  Transfer* const transfer = rig.Read(values);
  TransferItem stranger = transfer->items()[0];
  stranger.slot = EngineRig::kSlots;
  Transfer other(Transfer::Direction::kRead, {stranger});
  rig.engine->Start(&other);
  rig.RunToEnd(transfer);
  rig.RunToEnd(&other);
  ExpectAllDone(*transfer);
  EXPECT_EQ(other.outcome(0), Outcome::kNotThere);
}

TEST(RdmaEngine, MemoryThatIsNotRegistered) {
  EngineRig rig(1, 1);
  std::vector<Value> values = Row(8, 300'000);
  for (Value& value : values) value.registered = false;
  Transfer* const transfer = rig.Read(values);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  EXPECT_EQ(rig.engine->counters().staged_bytes, 8 * 300'000u);
}

TEST(RdmaEngine, LittleStagingMemoryIsUsedAgainAndAgain) {
  EngineOptions options;
  options.staging_bytes = 256 << 10;
  EngineRig rig(2, 1, options);
  std::vector<Value> values = Row(20, 300'000);
  for (Value& value : values) value.registered = false;
  Transfer* const transfer = rig.Read(values);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
}

TEST(RdmaEngine, RegistrationsInSlicesAreCrossed) {
  // Values lie across the ends of the pool's registrations.
  EngineRig rig(1, 1, {}, 1 << 16);
  std::vector<Value> values = Row(40, 100'000);
  values.push_back({8 << 20, 1 << 20, 100, 8 << 20, 9000, true});
  Transfer* const transfer = rig.Read(values);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
}

TEST(RdmaEngine, EveryLaneCarriesItsShare) {
  EngineRig rig(2, 1);
  Transfer* const transfer = rig.Read({{0, 8 << 20, 1, 0, {}, true}});
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  const auto bytes = rig.fabric.counters().device_bytes;
  EXPECT_GT(bytes.at("c0"), 2u << 20);
  EXPECT_GT(bytes.at("c1"), 2u << 20);
}

TEST(RdmaEngine, ASlowLaneCarriesLess) {
  EngineOptions options;
  options.slice_bytes = 64 << 10;
  options.window_bytes = 512 << 10;
  EngineRig rig(2, 1, options);
  rig.fabric.SetSlowness("c1", 20);
  for (int i = 0; i < 8; ++i) rig.RunToEnd(rig.Read({{0, 8 << 20, 1, 0, {}, true}}));
  const auto before = rig.fabric.counters().device_bytes;
  Transfer* const transfer = rig.Read({{0, 8 << 20, 1, 0, {}, true}});
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  const auto bytes = rig.fabric.counters().device_bytes;
  EXPECT_GT(bytes.at("c0") - before.at("c0"), 4 * (bytes.at("c1") - before.at("c1")));
}

// A lane that fails takes nothing with it, whatever it was doing.
TEST(RdmaEngine, WhatAFailedLaneCarriedGoesOverTheOthers) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    EngineRig rig(2, seed);
    std::vector<Value> values = Row(20, 300'000);
    Transfer* const transfer = rig.Read(values);
    rig.Progress();
    for (uint64_t i = 0; i < seed; ++i) rig.fabric.Step();
    if (seed % 3 == 0) {
      rig.fabric.SetPort("s1", false);
    } else if (seed % 3 == 1) {
      rig.fabric.BreakQueuePairs("c1");
    } else {
      rig.fabric.RefusePosts("c1", 1);
      rig.Read({{8 << 20, 1 << 20, 99, 8 << 20, {}, true}});
    }
    rig.RunToEnd(transfer);
    ExpectAllDone(*transfer);
    for (const auto& other : rig.transfers) {
      rig.RunToEnd(other.get());
      ExpectAllDone(*other);
    }
  }
}

TEST(RdmaEngine, WithoutAnyLaneItIsUnreachable) {
  EngineRig rig(2, 1);
  Transfer* const transfer = rig.Read(Row(20, 300'000));
  rig.Progress();
  for (int i = 0; i < 3; ++i) rig.fabric.Step();  // of about ten slices
  rig.fabric.BreakQueuePairs("c0");
  rig.fabric.BreakQueuePairs("c1");
  rig.RunToEnd(transfer);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(transfer->outcome(i), Outcome::kUnreachable);
  EXPECT_NE(transfer->error(), "");
  EXPECT_TRUE(rig.lanes.empty());
}

TEST(RdmaEngine, ARegionThatIsRefusedIsNotThere) {
  EngineRig rig(2, 1);
  Transfer* const transfer = rig.Read({{0, kPage, 1, 0, {}, true}});
  rig.region_keys = nullptr;
  rig.RunToEnd(transfer);
  EXPECT_EQ(transfer->outcome(0), Outcome::kNotThere);
  EXPECT_EQ(rig.lanes.size(), 1u) << "that queue pair is broken now";
  EXPECT_TRUE(rig.dead_lanes[0]->refused());
  EXPECT_EQ(rig.remote[0]->size() + rig.remote[1]->size(), 1u) << "and the key forgotten there";
}

TEST(RdmaEngine, AsksForWhatItDoesNotKnowOnce) {
  EngineRig asking(1, 1);
  asking.remote[0]->Drop(EngineRig::kRegion);
  std::vector<Value> values = Row(100, kPage);
  for (size_t i = 0; i < values.size(); ++i) values[i].offset = 2 * i * kPage;
  Transfer* const transfer = asking.Read(values);
  asking.Progress();
  auto missing = asking.engine->TakeMissing();
  ASSERT_EQ(missing.size(), 1u);
  EXPECT_EQ(missing[0].remote, EngineRig::kRegion);
  asking.Progress();
  EXPECT_TRUE(asking.engine->TakeMissing().empty());
  asking.TellRegion(asking.remote[0].get(), 0);
  asking.engine->KeysCame(missing[0].lane, EngineRig::kRegion);
  asking.RunToEnd(transfer);
  ExpectAllDone(*transfer);
}

TEST(RdmaEngine, WhatNobodyHasIsNotThere) {
  EngineRig rig(2, 1);
  for (auto& keys : rig.remote) keys->Drop(EngineRig::kRegion);
  Transfer* const transfer = rig.Read(Row(3, kPage));
  rig.Progress();
  auto missing = rig.engine->TakeMissing();
  ASSERT_EQ(missing.size(), 2u);
  rig.engine->NotThere(missing[0].lane, EngineRig::kRegion);
  rig.Progress();
  EXPECT_FALSE(transfer->done()) << "the other lane's NIC may have it";
  rig.engine->NotThere(missing[1].lane, EngineRig::kRegion);
  rig.RunToEnd(transfer);
  EXPECT_EQ(transfer->outcome(0), Outcome::kNotThere);
  EXPECT_EQ(rig.lanes.size(), 2u);
}

// Passes of a client that looks at its lanes every 10 ms.
class Passes {
 public:
  explicit Passes(EngineRig& rig) : rig_(rig) {}
  void For(int64_t ms) {
    for (int64_t end_ms = now_ms_ + ms; now_ms_ < end_ms;) {
      for (int i = 0; i < 50; ++i) {
        rig_.fabric.Step();
        rig_.Progress();
      }
      now_ms_ += 10;
      rig_.engine->CheckStuck(now_ms_);
    }
  }
  // The process does not run.
  void Away(int64_t ms) { now_ms_ += ms; }

 private:
  EngineRig& rig_;
  int64_t now_ms_ = 1000;
};

TEST(RdmaEngine, AStuckLaneIsGivenUp) {
  EngineOptions options;
  EngineRig rig(2, 1, options);
  Transfer* const transfer = rig.Read(Row(20, 300'000));
  rig.fabric.SetSilent("s0", true);
  Passes passes(rig);
  passes.For(options.stall_ms - 20);
  // Being away is no evidence.
  passes.Away(10'000);
  passes.For(10);
  EXPECT_FALSE(transfer->done());
  EXPECT_EQ(rig.lanes.size(), 2u);
  passes.For(50);
  EXPECT_EQ(rig.lanes.size(), 1u);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
}

TEST(RdmaEngine, TheOnlyLaneHasMoreTime) {
  EngineOptions options;
  EngineRig rig(1, 1, options);
  Transfer* const transfer = rig.Read(Row(20, 300'000));
  rig.Progress();
  rig.fabric.SetSilent("s0", true);
  Passes passes(rig);
  passes.For(10 * options.stall_ms);
  EXPECT_EQ(rig.lanes.size(), 1u);
  passes.For(options.lone_stall_ms);
  EXPECT_TRUE(rig.lanes.empty());
  rig.RunToEnd(transfer);
  EXPECT_EQ(transfer->outcome(0), Outcome::kUnreachable);
}

// A host that is busy answers on none of them: that is no reason to be without RDMA.
TEST(RdmaEngine, LanesThatAreAllStuckHaveMoreTime) {
  EngineOptions options;
  EngineRig rig(2, 1, options);
  Transfer* transfer = rig.Read(Row(20, 300'000));
  rig.Progress();
  rig.fabric.SetSilent("s0", true);
  rig.fabric.SetSilent("s1", true);
  Passes passes(rig);
  passes.For(options.lone_stall_ms - 100);
  EXPECT_EQ(rig.lanes.size(), 2u);
  rig.fabric.SetSilent("s0", false);
  // Now there is one to compare the other with.
  passes.For(50);
  EXPECT_EQ(rig.lanes.size(), 1u);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
  transfer = rig.Read(Row(20, 300'000));
  rig.Progress();
  rig.fabric.SetSilent("s0", true);
  passes.For(options.lone_stall_ms + 10);
  EXPECT_TRUE(rig.lanes.empty());
  rig.RunToEnd(transfer);
  EXPECT_EQ(transfer->outcome(0), Outcome::kUnreachable);
}

// Nothing that a lane could still touch is given back: neither the caller's memory nor a slice.
TEST(RdmaEngine, ALaneThatDoesNotFlushIsDestroyedFirst) {
  EngineOptions options;
  EngineRig rig(2, 1, options);
  rig.fabric.SetNeverFlushes("c0", true);
  Transfer* const transfer = rig.Read(Row(20, 300'000));
  rig.Progress();
  const uint64_t pairs = rig.fabric.counters().queue_pairs;
  rig.fabric.SetSilent("s0", true);
  Passes passes(rig);
  passes.For(options.stall_ms + 20);
  ASSERT_EQ(rig.lanes[0]->state(), Lane::State::kFailed);
  EXPECT_FALSE(transfer->done()) << "it may still be touching memory";
  EXPECT_EQ(rig.fabric.counters().queue_pairs, pairs);
  passes.For(options.drain_ms + 10);
  EXPECT_EQ(rig.fabric.counters().queue_pairs, pairs - 1);
  rig.RunToEnd(transfer);
  ExpectAllDone(*transfer);
}

TEST(RdmaEngine, GivingUpWaitsForWhatIsUnderWay) {
  EngineRig rig(1, 1);
  Transfer* const transfer = rig.Read(Row(20, 300'000));
  rig.Progress();
  for (int i = 0; i < 5; ++i) rig.fabric.Step();
  rig.engine->GiveUp(transfer, "too late");
  rig.Progress();
  EXPECT_FALSE(transfer->done()) << "READs are under way";
  rig.lanes[0]->Fail("too late");
  rig.RunToEnd(transfer);
  EXPECT_EQ(transfer->error(), "too late");
  // Nothing moves any more.
  std::memset(rig.local.data(), 0x22, rig.local.size());
  rig.fabric.StepAll();
  for (const char c : rig.local) ASSERT_EQ(c, 0x22);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(transfer->outcome(i), Outcome::kUnreachable);
}

TEST(RdmaEngine, WritesGoTheSameWay) {
  EngineRig rig(2, 1);
  // A client's buffer that this side may write: here the "server" lends it.
  std::vector<char> buffer(1 << 20);
  const auto keys = EngineRig::Registered(*rig.server, buffer.data(), buffer.size(),
                                          kLocalWrite | kRemoteWrite, buffer.size());
  for (size_t i = 0; i < 2; ++i) {
    rig.remote[i]->Add(9, {0, buffer.size(), reinterpret_cast<uint64_t>(buffer.data()),
                           keys->At(0).keys->on[i].remote, kRemoteWrite});
  }
  test::FillKnown(rig.local.data(), 900'000, 4);
  const LocalPiece piece{rig.local.data(), 900'000, rig.local_keys->At(0).keys};
  TransferItem item;
  item.remote = 9;
  item.offset = 1000;
  item.length = 900'000;
  item.pieces = std::span(&piece, 1);
  Transfer transfer(Transfer::Direction::kWrite, {item});
  rig.engine->Start(&transfer);
  rig.RunToEnd(&transfer);
  EXPECT_EQ(transfer.outcome(0), Outcome::kDone);
  EXPECT_EQ(test::FirstWrong(buffer.data() + 1000, 900'000, 4), std::nullopt);
}

// Against all of it at once: values are recycled while they are read, lanes break and come, and
// NICs answer in any order.  What is said to be done has its bytes, and nothing moves afterwards.
TEST(RdmaEngine, NoWrongBytesWhateverHappens) {
  Random random;
  SCOPED_TRACE(random.Replay());
  uint64_t done = 0;
  uint64_t changed = 0;
  for (int round = 0; round < 150; ++round) {
    EngineOptions options;
    options.slice_bytes = random.Pick(std::vector<uint64_t>{16 << 10, 64 << 10, 1 << 20});
    options.least_slice_bytes = 8 << 10;
    options.window_bytes = random.Pick(std::vector<uint64_t>{64 << 10, 1 << 20, 16 << 20});
    options.staging_bytes = 512 << 10;
    const size_t nics = random.Between(1, 3);
    EngineRig rig(nics, random.Next(), options, random.Chance(0.3) ? 128 << 10 : 16 << 20);
    const auto count = static_cast<size_t>(random.Between(1, 40));
    std::vector<Value> values;
    uint64_t at = 0;
    uint64_t to = 0;
    for (size_t i = 0; i < count; ++i) {
      Value value;
      value.length = random.Chance(0.5) ? kPage : random.Between(1, 200'000);
      value.offset = at;
      value.slot = static_cast<uint32_t>(i + i % 2 * 2000);
      value.to = to;
      value.registered = random.Chance(0.8);
      if (random.Chance(0.2)) value.pieces = random.Between(500, 50'000);
      at += (value.length + kPage - 1) / kPage * kPage;
      to += 2 * value.length + 1;
      values.push_back(value);
    }
    Transfer* const transfer = rig.Read(values);
    int steps = 0;
    while (!transfer->done()) {
      ASSERT_LT(++steps, 1000000);
      if (random.Chance(0.3)) rig.Progress();
      if (random.Chance(0.9)) rig.fabric.Step();
      if (random.Chance(0.01)) {
        // Recycled: the generation first, then somebody else's bytes.
        const Value& value = random.Pick(values);
        ++rig.generations[value.slot];
        test::FillKnown(rig.region.data() + value.offset, value.length, 1'000'000);
      }
      if (random.Chance(0.002)) {
        rig.fabric.BreakQueuePairs("c" + std::to_string(random.Below(nics)));
      }
      if (random.Chance(0.002)) rig.fabric.RefusePosts("c0", 1);
      if (random.Chance(0.003) && rig.lanes.size() < 4) rig.AddLane(random.Below(nics));
    }
    for (size_t i = 0; i < count; ++i) {
      ASSERT_NE(transfer->outcome(i), Outcome::kPending);
      ASSERT_NE(transfer->outcome(i), Outcome::kNotThere) << transfer->error();
      if (transfer->outcome(i) == Outcome::kChanged) ++changed;
      if (transfer->outcome(i) != Outcome::kDone) continue;
      ++done;
      ASSERT_EQ(EngineRig::Wrong(*transfer, i), "") << "round " << round;
    }
    const std::vector<char> before = rig.local;
    rig.fabric.StepAll();
    ASSERT_EQ(before, rig.local) << "memory was touched after the end";
  }
  EXPECT_GT(done, 1000u);
  EXPECT_GT(changed, 10u);
}

}  // namespace
}  // namespace moonpool::rdma
