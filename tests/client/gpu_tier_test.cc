// The client and the server's GPU tier together, on the double (the two sides have one each, as two
// processes do) and on a GPU.
#include <atomic>
#include <thread>

#include <moonpool/gpu.h>

#include "tests/client/gpu_rig.h"
#include "tests/client/raw_session.h"

namespace moonpool::client {
namespace {

class GpuTierClients : public GpuClientTest {
 protected:
  void SetUp() override {
    GpuClientTest::SetUp();
    if (IsSkipped()) return;
    prefer.prefer = "gpu";
    StartTier({{"gpu-memory", "64mb"}});
  }
  void TearDown() override {
    GpuClientTest::TearDown();
    theirs_.clear();
  }
  void StartTier(LiveServer::Settings settings) {
    client = nullptr;
    server = nullptr;
    std::vector<gpu::Device*> gpus;
    if (GetParam() == gpu::Kind::kDouble) {
      theirs_ = gpu::MakeHostDevices({.hidden = true});
      for (const auto& device_of_server : theirs_) gpus.push_back(device_of_server.get());
    }
    server = std::make_unique<LiveServer>(settings, 0, nullptr, gpus);
    client = server->Connect("transport=shm");
  }
  KeyResult PutOnGpu(Client& to, std::string_view key, const void* data, size_t bytes) {
    const ConstBuffer buffer{data, bytes};
    return to.BatchPutFrom(std::span(&key, 1), std::span(&buffer, 1), prefer)[0];
  }

  PutOptions prefer;

 private:
  std::vector<std::unique_ptr<gpu::HostDevice>> theirs_;
};

TEST_P(GpuTierClients, DeviceToDevice) {
  for (const size_t bytes : {65536u, 300'000u, 3u << 20}) {
    SCOPED_TRACE(bytes);
    const std::string value = Stamped(bytes, 1, bytes);
    const auto from = OnDevice(value);
    const KeyResult put = PutOnGpu(*client, "k", from->data(), bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, Transport::kCuda);
    const auto into = Room(bytes + 64);
    const KeyResult got = GetOne(*client, "k", into->data(), bytes + 64);
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, Transport::kCuda);
    EXPECT_TRUE(Holds(*into, value, bytes + 64));
    // Everybody else reads the same.
    for (const char* how : {"transport=shm", "transport=tcp", "transport=shm&gpu=no"}) {
      std::string plain;
      ASSERT_TRUE(server->Connect(how)->Get("k", &plain).ok()) << how;
      EXPECT_TRUE(plain == value) << how;
    }
    std::string host = Poison(bytes);
    ASSERT_TRUE(GetOne(*client, "k", host.data(), bytes).ok());
    EXPECT_TRUE(host == value);
    View view;
    ASSERT_TRUE(client->GetView("k", &view).ok());
    EXPECT_TRUE(view.bytes() == value);
  }
  EXPECT_EQ(client->stats().cuda.values_written, 3u);
  EXPECT_EQ(client->stats().fallbacks, 0u);
  EXPECT_EQ(client->stats().gpu_error, "");
}

TEST_P(GpuTierClients, PagesOnAStream) {
  auto stream = device->NewStream();
  ASSERT_TRUE(stream);
  constexpr size_t kPiece = 16'384, kPlanes = 6, kKeys = 30, kPool = 64;
  PagedCache cache;
  cache.plane_count = kPlanes;
  cache.layers = 3;
  cache.piece_bytes = kPiece;
  cache.page_stride = kPiece;
  cache.page_limit = kPool;
  const auto memory = Room(kPool * kPlanes * kPiece);
  for (size_t p = 0; p < kPlanes; ++p) cache.planes.push_back(memory->data() + p * kPool * kPiece);
  const std::string bytes = Bytes(kPool * kPlanes * kPiece);
  Put(memory->data(), bytes);
  std::vector<std::string> names;
  std::vector<std::string_view> keys;
  std::vector<int64_t> from, to;
  for (size_t i = 0; i < kKeys; ++i) {
    names.push_back("block" + std::to_string(i));
    from.push_back(static_cast<int64_t>((i * 7) % kPool));
    to.push_back(static_cast<int64_t>((i * 5 + 1) % kPool));
  }
  for (const std::string& name : names) keys.push_back(name);
  void* const handle = (*stream)->ref().handle;
  GpuTransfer put = PutPagesOnStream(*client, handle, keys, cache, from, prefer);
  for (const KeyResult& result : put.Wait()) {
    EXPECT_TRUE(result.ok()) << result.message;
    EXPECT_EQ(result.transport, Transport::kCuda);
  }
  Put(memory->data(), Poison(bytes.size()));
  GpuTransfer get = GetPagesOnStream(*client, handle, keys, cache, to);
  EXPECT_EQ(get.layers(), 3u);
  for (const KeyResult& result : get.Wait()) {
    EXPECT_TRUE(result.ok()) << result.message;
    EXPECT_EQ(result.transport, Transport::kCuda);
  }
  std::string expected = Poison(bytes.size());
  for (size_t i = 0; i < kKeys; ++i) {
    for (size_t p = 0; p < kPlanes; ++p) {
      expected.replace((p * kPool + static_cast<size_t>(to[i])) * kPiece, kPiece, bytes,
                       (p * kPool + static_cast<size_t>(from[i])) * kPiece, kPiece);
    }
  }
  EXPECT_TRUE(Get(memory->data(), expected.size()) == expected);
}

// Twice as much is written as the tier holds: values move on to host memory, and extents are reused,
// under readers that have no leases.
TEST_P(GpuTierClients, NoWrongBytesWhileValuesMove) {
  StartTier({{"gpu-memory", "16mb"}, {"maxmemory", "40mb"}, {"region-size", "4mb"},
             {"arena-size", "4mb"}, {"lease-default", "0"}});
  constexpr size_t kKeys = 80, kMost = 400'000, kBatch = 8;
  std::vector<std::atomic<uint64_t>> acknowledged(kKeys);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> good{0}, bad{0}, from_gpu{0}, from_host{0};
  const auto write = [&](size_t first) {
    test::Random mine(random.seed() + first);
    const auto writer = server->Connect("transport=shm&connections=1");
    const auto block = Room(kMost);
    for (uint64_t version = 1; !stop; ++version) {
      const size_t key = first + mine.Below(kKeys / 2) * 2;
      const std::string value = Stamped(66'000 + 8 * mine.Below(40'000), key, version);
      Put(block->data(), value);
      const KeyResult put = PutOnGpu(*writer, std::to_string(key), block->data(), value.size());
      if (put.ok()) {
        acknowledged[key] = version;
      } else {
        EXPECT_EQ(put.code, Code::kOutOfMemory) << put.message;
      }
    }
  };
  const auto read = [&](uint64_t seed) {
    test::Random mine(random.seed() + seed);
    const auto reader = server->Connect("transport=shm");
    const auto block = Room(kBatch * kMost);
    while (!stop) {
      std::vector<std::string> names;
      std::vector<Buffer> into;
      std::vector<size_t> keys;
      std::vector<uint64_t> least;
      for (size_t i = 0; i < kBatch; ++i) {
        keys.push_back(mine.Below(kKeys));
        names.push_back(std::to_string(keys[i]));
        least.push_back(acknowledged[keys[i]]);
        into.push_back({block->data() + i * kMost, kMost});
      }
      const std::vector<std::string_view> views(names.begin(), names.end());
      const auto results = reader->BatchGetInto(views, into);
      for (size_t i = 0; i < kBatch; ++i) {
        if (results[i].code == Code::kMiss) continue;
        ASSERT_TRUE(results[i].ok()) << results[i].message;
        (results[i].transport == Transport::kCuda ? from_gpu : from_host) += 1;
        const std::string got = Get(block->data() + i * kMost, results[i].bytes);
        Stamp stamp;
        std::string wrong = CheckStamped(got.data(), got.size(), keys[i], &stamp);
        if (wrong.empty() && stamp.version < least[i]) wrong = "an older version";
        if (wrong.empty()) {
          ++good;
        } else if (++bad <= 5) {
          ADD_FAILURE() << wrong << ", over " << static_cast<int>(results[i].transport);
        }
      }
    }
  };
  std::vector<std::thread> threads;
  threads.emplace_back(write, 0);
  threads.emplace_back(write, 1);
  threads.emplace_back(read, 10);
  threads.emplace_back(read, 11);
  std::this_thread::sleep_for(std::chrono::seconds(3));  // the length of the load
  EXPECT_TRUE(Eventually([&] { return good > 200 && from_gpu > 20 && from_host > 20; }))
      << good << " good, " << from_gpu << " from the device, " << from_host << " from the host";
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bad, 0u);
}

INSTANTIATE_DEVICES(GpuTierClients);

// Four devices: the first two are linked by NVLink, and so are the last two; each has room for four
// values.
TEST(GpuTierPlaces, NearTheBytesFirst) {
  constexpr size_t kDevices = 4, kBytes = 1 << 20;
  gpu::HostDeviceOptions options;
  options.devices = kDevices;
  options.link = gpu::Link::kPcie;
  options.island = 2;
  const auto ours = gpu::MakeHostDevices(options), theirs = gpu::MakeHostDevices(options);
  std::vector<gpu::Device*> of_client, of_server;
  for (size_t i = 0; i < kDevices; ++i) {
    of_client.push_back(ours[i].get());
    of_server.push_back(theirs[i].get());
  }
  ReplaceGpuDevices(of_client);
  {
    LiveServer server({{"gpu-memory", "4mb"}, {"gpu-high-watermark", "1"}}, 0, nullptr, of_server);
    const auto client = server.Connect("transport=shm");
    RawSession raw(server);
    // The devices of five values, which come from `device`.
    const auto places = [&](size_t device, const std::string& prefix, const std::string& tiers) {
      const auto block = of_client[device]->NewDeviceBlock(kBytes);
      PutOptions prefer;
      prefer.prefer = tiers;
      std::string numbers;
      for (int i = 0; i < 5; ++i) {
        const std::string key = prefix + std::to_string(i);
        const std::string_view view = key;
        const ConstBuffer buffer{(*block)->data(), kBytes};
        const auto put = client->BatchPutFrom(std::span(&view, 1), std::span(&buffer, 1), prefer);
        EXPECT_TRUE(put[0].ok()) << put[0].message;
        const std::string info = raw.Run({"KV.INFO", key});
        for (size_t at = 0; at < kDevices; ++at) {
          if (info.find(of_server[at]->info().uuid.ToString()) != std::string::npos) {
            numbers += std::to_string(at);
          }
        }
      }
      return numbers;
    };
    EXPECT_EQ(places(3, "a", "gpu"), "33332");
    EXPECT_EQ(places(0, "b", "dram,gpu"), "");
    EXPECT_EQ(places(0, "c", "gpu,dram"), "00001");
  }
  ReplaceGpuDevices({});
}

}  // namespace
}  // namespace moonpool::client
