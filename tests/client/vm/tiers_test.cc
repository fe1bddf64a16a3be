// Values that are not in DRAM, over RDMA: they are read where they are, or come up first.
#include <algorithm>
#include <filesystem>
#include <iterator>
#include <sstream>

#include "tests/client/vm/server_process.h"

namespace moonpool::client::test {
namespace {

std::string TierOf(Client& client, const std::string& key) {
  const std::string_view words[] = {"KV.INFO", key};
  std::string text;
  EXPECT_TRUE(client.Command(words, &text).ok());
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line == "tier" && std::getline(lines, line)) return line;
  }
  return text;
}

class VmClientTiers : public testing::Test {
 protected:
  static constexpr size_t kSizes[] = {65'536, 65'537, 1 << 20, 3'274'752};

  VmClientTiers() : from_(4 << 20) {}
  static std::string KeyOf(const std::string& prefix, size_t bytes) {
    return prefix + std::to_string(bytes);
  }
  void PutAll(Client& client, const std::string& prefix) {
    for (const size_t bytes : kSizes) {
      FillBytes(from_.data(), bytes, bytes);
      const KeyResult put = PutOne(client, KeyOf(prefix, bytes), from_.data(), bytes);
      ASSERT_TRUE(put.ok()) << put.message;
      EXPECT_EQ(put.transport, Transport::kRdma);
    }
  }
  // All of them in the tier (empty: in any), and then read, in one batch.
  void GetAll(Client& client, const std::string& prefix, const std::string& tier) {
    std::vector<std::string> names;
    std::vector<Buffer> buffers;
    std::vector<Block> blocks;
    blocks.reserve(std::size(kSizes));
    for (const size_t bytes : kSizes) {
      names.push_back(KeyOf(prefix, bytes));
      if (!tier.empty()) {
        EXPECT_EQ(TierOf(client, names.back()), tier) << names.back();
      }
      Block& block = blocks.emplace_back(bytes);
      buffers.push_back({block.data(), bytes});
    }
    const std::vector<std::string_view> keys(names.begin(), names.end());
    const auto results = client.BatchGetInto(keys, buffers);
    for (size_t i = 0; i < keys.size(); ++i) {
      SCOPED_TRACE(names[i]);
      ASSERT_TRUE(results[i].ok()) << results[i].message;
      EXPECT_EQ(results[i].transport, Transport::kRdma);
      EXPECT_TRUE(AreBytes(blocks[i].data(), kSizes[i], kSizes[i]));
    }
  }
  // Until the memory that there is can be read over RDMA.
  static void AwaitRegistration(Client& client) {
    EXPECT_TRUE(Eventually([&] {
      const std::string_view words[] = {"INFO", "rdma"};
      std::string text;
      EXPECT_TRUE(client.Command(words, &text).ok());
      return text.find("rdma_unregistered_regions:0\r") != std::string::npos &&
             text.find("rdma_registered_regions:0\r") == std::string::npos;
    }));
  }
  Block from_;
};

TEST_F(VmClientTiers, ValuesInTheCxlTier) {
  // The guest has one NUMA node: to the server it is another tier all the same.
  ServerProcess server({"--cxl-memory", "64mb", "--cxl-node", "0", "--maxmemory", "64mb",
                        "--region-size", "32mb", "--prefer", "far: cxl"});
  auto client = server.Connect();
  PutAll(*client, "far:");
  PutAll(*client, "near:");
  AwaitRegistration(*client);
  GetAll(*client, "far:", "cxl");
  GetAll(*client, "near:", "dram");
}

TEST_F(VmClientTiers, ValuesOnTheSsd) {
  const std::string directory = "ssd-of-a-client";
  std::filesystem::remove_all(directory);
  ServerProcess server({"--ssd-directory", directory, "--ssd-chunk", "64kb", "--maxmemory", "128mb",
                        "--region-size", "32mb", "--dram-high-watermark", "0.3",
                        "--dram-evict-ratio", "0.2", "--dram-cold-share", "0", "--maxmemory-policy",
                        "allkeys-lru", "--memory-wait", "20000"});
  auto client = server.Connect();
  PutAll(*client, "s:");
  int fillers = 0;
  ASSERT_TRUE(Eventually([&] {
    for (const size_t bytes : kSizes) {
      if (TierOf(*client, KeyOf("s:", bytes)) == "ssd") continue;
      const std::string key = "filler:" + std::to_string(fillers++ % 64);
      EXPECT_TRUE(PutOne(*client, key, from_.data(), 1 << 20).ok());
      return false;
    }
    return true;
  }));
  AwaitRegistration(*client);
  GetAll(*client, "s:", "ssd");
  // They came up, and stay once memory is below its watermark.
  EXPECT_TRUE(Eventually([&] {
    GetAll(*client, "s:", "");
    return std::all_of(std::begin(kSizes), std::end(kSizes), [&](size_t bytes) {
      return TierOf(*client, KeyOf("s:", bytes)) == "dram";
    });
  }));
}

}  // namespace
}  // namespace moonpool::client::test
