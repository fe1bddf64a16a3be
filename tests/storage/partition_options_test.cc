// What the setting `partitions` may say, and which keys are whose.
#include "storage/partition_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "storage/partitions.h"

namespace moonpool::storage {
namespace {

using testing::HasSubstr;

std::string ErrorOf(const std::string& text) {
  const auto parsed = ParsePartitions(text);
  if (parsed) return "";
  EXPECT_EQ(parsed.error().code, ErrorCode::kInvalidArgument);
  return parsed.error().message;
}

TEST(ParsePartitionsTest, NothingIsNoPartition) {
  for (const char* text : {"", " ", ";", " ;; \t; "}) {
    const auto parsed = ParsePartitions(text);
    ASSERT_TRUE(parsed) << text;
    EXPECT_TRUE(parsed->empty());
  }
}

TEST(ParsePartitionsTest, EveryOption) {
  const auto parsed = ParsePartitions(
      "chat prefix=chat: dram=0.5 ssd=0.25 policy=volatile-ttl admission=always compression=lz4;"
      "  batch_2\tcompression=zstd  prefix=a=b,c ssd=no admission=never dram=1e-1 ; all-rest "
      "prefix=x");
  ASSERT_TRUE(parsed) << parsed.error().message;
  ASSERT_EQ(parsed->size(), 3u);
  const PartitionOptions chat{.name = "chat",
                              .prefix = "chat:",
                              .dram_share = 0.5,
                              .ssd_share = 0.25,
                              .ssd = true,
                              .policy = MaxmemoryPolicy::kVolatileTtl,
                              .admission = Admission::kAlways,
                              .compression = SsdCompression::kLz4};
  EXPECT_EQ((*parsed)[0], chat);
  const PartitionOptions batch{.name = "batch_2",
                               .prefix = "a=b,c",
                               .dram_share = 0.1,
                               .ssd_share = 0,
                               .ssd = false,
                               .policy = std::nullopt,
                               .admission = Admission::kNever,
                               .compression = SsdCompression::kZstd};
  EXPECT_EQ((*parsed)[1], batch);
  PartitionOptions rest;
  rest.name = "all-rest";
  rest.prefix = "x";
  EXPECT_EQ((*parsed)[2], rest);
}

TEST(ParsePartitionsTest, EveryPolicyHasItsName) {
  for (const std::string_view name : kMaxmemoryPolicyNames) {
    const auto parsed = ParsePartitions("a prefix=a policy=" + std::string(name));
    ASSERT_TRUE(parsed);
    EXPECT_EQ(NameOf(*parsed->front().policy), name);
  }
}

TEST(ParsePartitionsTest, ErrorsSayWhatToDo) {
  EXPECT_THAT(ErrorOf("a prefix=a colour=red"),
              HasSubstr("unknown option 'colour'; there are prefix"));
  EXPECT_THAT(ErrorOf("a prefix=a fast"), HasSubstr("it wants option=value"));
  EXPECT_THAT(ErrorOf("a dram=0.5"), HasSubstr("no prefix="));
  EXPECT_THAT(ErrorOf("a prefix="), HasSubstr("empty prefix"));
  EXPECT_THAT(ErrorOf("prefix=a dram=0.5"), HasSubstr("where its name belongs"));
  EXPECT_THAT(ErrorOf("default prefix=a"), HasSubstr("the keys no prefix matches"));
  EXPECT_THAT(ErrorOf("a prefix=a; a prefix=b"), HasSubstr("two partitions 'a'"));
  EXPECT_THAT(ErrorOf("a prefix=x; b prefix=x"), HasSubstr("'a' and 'b' have the same prefix 'x'"));
  EXPECT_THAT(ErrorOf("a prefix=a prefix=b"), HasSubstr("prefix twice"));
  EXPECT_THAT(ErrorOf("a prefix=a ssd=no ssd=0.5"), HasSubstr("ssd twice"));
  EXPECT_THAT(ErrorOf("a prefix=a policy=lru"),
              HasSubstr("policy=lru; it must be one of noeviction"));
  EXPECT_THAT(ErrorOf("a prefix=a admission=maybe"), HasSubstr("second-read, always, never"));
  EXPECT_THAT(ErrorOf("a prefix=a compression=gzip"), HasSubstr("none, lz4, zstd"));
  for (const char* share : {"", "x", "0", "-0.1", "1.01", "nan", "inf", "0.5x", "no"}) {
    EXPECT_THAT(ErrorOf(std::string("a prefix=a dram=") + share), HasSubstr("such as 0.25"))
        << share;
  }
  EXPECT_THAT(ErrorOf("a prefix=a ssd=none"), HasSubstr("or 'no'"));
  EXPECT_THAT(ErrorOf("a prefix=a dram=0.6; b prefix=b dram=0.5"),
              HasSubstr("the dram= shares sum up to 1.1"));
  EXPECT_THAT(ErrorOf("a prefix=a ssd=0.6; b prefix=b ssd=0.5"), HasSubstr("the ssd= shares"));
  EXPECT_EQ(ErrorOf("a prefix=a dram=0.7; b prefix=b dram=0.2; c prefix=c dram=0.1"), "");
  std::string many;
  for (size_t i = 0; i < kMaxPartitions; ++i) {
    many += "p" + std::to_string(i) + " prefix=p" + std::to_string(i) + ":;";
  }
  EXPECT_EQ(ErrorOf(many), "");
  EXPECT_THAT(ErrorOf(many + "one prefix=more"), HasSubstr("at most 64"));
  EXPECT_THAT(ErrorOf(std::string(65, 'a') + " prefix=a"), HasSubstr("up to 64 letters"));
}

std::vector<PartitionOptions> Parsed(const std::string& text) {
  auto parsed = ParsePartitions(text);
  EXPECT_TRUE(parsed) << parsed.error().message;
  return parsed ? *parsed : std::vector<PartitionOptions>();
}

TEST(PartitionSetTest, TheLongestPrefixDecides) {
  const PartitionSet set(Parsed("a prefix=m; b prefix=model@1:; c prefix=model; d prefix=n"),
                         nullptr);
  EXPECT_EQ(set.members()[1].options.name, "b");
  const auto name = [&](std::string_view key) -> std::string {
    const uint8_t slot = set.Match(key);
    for (const auto& member : set.members()) {
      if (member.slot == slot) return member.options.name;
    }
    return slot == 0 ? "default" : "none";
  };
  EXPECT_EQ(name("model@1:x"), "b");
  EXPECT_EQ(name("model@1:"), "b");
  EXPECT_EQ(name("model@1"), "c");
  EXPECT_EQ(name("mode"), "a");
  EXPECT_EQ(name("n"), "d");
  EXPECT_EQ(name(""), "default");
  EXPECT_EQ(name("N"), "default");
}

TEST(PartitionSetTest, AWordForAPartitionMeansOneThingAtATime) {
  const PartitionSet first(Parsed("a prefix=a; b prefix=b; c prefix=c"), nullptr);
  const PartitionSet second(Parsed("d prefix=d; c prefix=other; e prefix=a"), &first);
  EXPECT_EQ(second.Match("other"), first.Match("c"));  // the same partition, with another prefix
  std::set<uint8_t> slots = {0};
  for (const PartitionSet* set : {&first, &second}) {
    for (const auto& member : set->members()) slots.insert(member.slot);
  }
  EXPECT_EQ(slots.size(), 1u + 5u);  // those that go are nobody's yet
  // However often they all change, there is room.
  std::unique_ptr<PartitionSet> before;
  for (int round = 0; round < 5; ++round) {
    std::string text;
    for (size_t i = 0; i < kMaxPartitions; ++i) {
      const std::string name = "p" + std::to_string(round) + "-" + std::to_string(i);
      text += name + " prefix=" + name + ":;";
    }
    auto next = std::make_unique<PartitionSet>(Parsed(text), before.get());
    for (const auto& member : next->members()) {
      EXPECT_LT(member.slot, Partitions::kSlots);
      EXPECT_GT(member.slot, 0);
      EXPECT_FALSE(before != nullptr && before->Uses(member.slot));
    }
    before = std::move(next);
  }
}

TEST(PartitionsTest, WhatIsNobodysHasNoPressure) {
  Partitions partitions(MaxmemoryPolicy::kAllKeysLru);
  partitions.Open(3, MaxmemoryPolicy::kAllKeysLru);
  partitions.AddSsd(0, 100, 1);
  partitions.AddSsd(3, 50, 1);
  Partitions::Pressures pressures;
  pressures.fill(7);  // whatever was there
  const PartitionSet set(Parsed("a prefix=a:; b prefix=b:; c prefix=c: ssd=0.1"), nullptr);
  ASSERT_EQ(set.members()[2].slot, 3);
  partitions.Configure(&set, MaxmemoryPolicy::kAllKeysLru);
  partitions.SsdPressures(&pressures);
  EXPECT_DOUBLE_EQ(pressures[3], 500);
  EXPECT_DOUBLE_EQ(pressures[0], 100 / 0.9);
  for (size_t i = 1; i < pressures.size(); ++i) {
    EXPECT_EQ(pressures[i] > 0, i == 3) << i;
  }
}

}  // namespace
}  // namespace moonpool::storage
