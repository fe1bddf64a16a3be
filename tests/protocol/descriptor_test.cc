#include "protocol/descriptor.h"

#include <gtest/gtest.h>

#include <string>

namespace moonpool::protocol {
namespace {

std::string Encode(const Descriptor& descriptor, int resp) {
  ReplyBuffer out;
  out.set_resp(resp);
  AppendDescriptor(out, descriptor);
  return std::string(out.view());
}

TEST(DescriptorTest, IsAnArrayOfNineInBothVersions) {
  Descriptor d;
  d.region = 7;
  d.offset = 4096;
  d.length = 65536;
  d.slot = 12;
  d.generation = 34;
  d.crc = 0xdeadbeef;
  d.lease = 99;
  d.lease_ms = 1500;
  const std::string with_crc =
      "*9\r\n:7\r\n:4096\r\n:65536\r\n:12\r\n:34\r\n:3735928559\r\n+dram\r\n:99\r\n:1500\r\n";
  EXPECT_EQ(Encode(d, 2), with_crc);
  EXPECT_EQ(Encode(d, 3), with_crc);

  d.crc.reset();
  d.lease = 0;
  d.lease_ms = Descriptor::kHold;
  EXPECT_EQ(Encode(d, 2),
            "*9\r\n:7\r\n:4096\r\n:65536\r\n:12\r\n:34\r\n$-1\r\n+dram\r\n:0\r\n:-1\r\n");
  EXPECT_EQ(Encode(d, 3),
            "*9\r\n:7\r\n:4096\r\n:65536\r\n:12\r\n:34\r\n_\r\n+dram\r\n:0\r\n:-1\r\n");
}

TEST(DescriptorTest, TheLargestNumbersFit) {
  Descriptor d;
  d.region = UINT32_MAX;
  d.offset = d.length = d.generation = d.lease = UINT64_MAX;
  d.slot = UINT32_MAX;
  d.crc = UINT32_MAX;
  d.lease_ms = INT64_MIN;
  // Behind other bytes and in a buffer that must grow: AddressSanitizer watches the reservation.
  ReplyBuffer out;
  out.Ok();
  AppendDescriptor(out, d);
  EXPECT_EQ(out.view(),
            "+OK\r\n*9\r\n:4294967295\r\n:18446744073709551615\r\n:18446744073709551615\r\n"
            ":4294967295\r\n:18446744073709551615\r\n:4294967295\r\n+dram\r\n"
            ":18446744073709551615\r\n:-9223372036854775808\r\n");
}

TEST(DescriptorTest, TiersHaveNames) {
  EXPECT_EQ(TierName(Tier::kDram), "dram");
  EXPECT_EQ(ParseTier("dram"), Tier::kDram);
  EXPECT_EQ(TierName(Tier::kGpu), "gpu");
  EXPECT_EQ(ParseTier("gpu"), Tier::kGpu);
  EXPECT_EQ(ParseTier("DRAM"), std::nullopt);
  EXPECT_EQ(ParseTier(""), std::nullopt);
}

}  // namespace
}  // namespace moonpool::protocol
