// Device memory (of the host double) of a client that has values over RDMA (on the double of NICs).
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/gpu_devices.h"
#include "client/moonpool/gpu.h"
#include "gpu/host_device.h"
#include "tests/client/rdma_rig.h"
#include "tests/client/stamped_block.h"

namespace moonpool::client {
namespace {

class GpuOverRdma : public RdmaTransportTest {
 protected:
  GpuOverRdma() { Start({{"maxmemory", "512mb"}}); }
  ~GpuOverRdma() override {
    client = nullptr;
    server_ = nullptr;
    ReplaceGpuDevices({});
  }
  void Start(LiveServer::Settings settings,
             const gpu::HostDeviceOptions& options = {.devices = 2}) {
    client = nullptr;
    server_ = nullptr;
    devices_ = gpu::MakeHostDevices(options);
    std::vector<gpu::Device*> all;
    for (const auto& device : devices_) all.push_back(device.get());
    ReplaceGpuDevices(all);
    // What a NIC says has arrived the device does not show yet.
    fabric_.OnDmabufWrite([this](uint64_t address, std::function<void()> write) {
      const auto place = devices_[0]->WhereIs(reinterpret_cast<const void*>(address));
      ASSERT_TRUE(place && place->device != nullptr);
      static_cast<gpu::HostDevice*>(place->device)->HoldUntilFlush(std::move(write));
    });
    StartServer(settings);
    client = Connect();
  }
  // All poison.
  std::unique_ptr<gpu::DeviceBlock> Room(size_t bytes, size_t device = 0) {
    auto block = devices_[device]->NewDeviceBlock(bytes);
    EXPECT_TRUE(block);
    std::memset((*block)->data(), 0xa5, bytes);
    return std::move(*block);
  }
  std::unique_ptr<gpu::DeviceBlock> Stamped(size_t bytes, uint64_t key) {
    auto block = Room(bytes);
    FillStamped(block->data(), bytes, {key, 1});
    return block;
  }
  // Device memory, all poison, that a client has registered for as long as it lives.
  class Registered {
   public:
    Registered(std::unique_ptr<gpu::DeviceBlock> block, Client& of)
        : of_(of), block_(std::move(block)) {
      const Status status = of_.RegisterBuffer(block_->data(), block_->bytes());
      EXPECT_TRUE(status.ok()) << status.message;
    }
    ~Registered() { EXPECT_TRUE(of_.UnregisterBuffer(block_->data()).ok()); }
    Registered(const Registered&) = delete;
    char* data() const { return block_->data(); }
    void Poison() const { std::memset(block_->data(), 0xa5, block_->bytes()); }

   private:
    Client& of_;
    const std::unique_ptr<gpu::DeviceBlock> block_;
  };
  Registered Shared(size_t bytes, size_t device = 0) { return {Room(bytes, device), *client}; }
  // Puts a stamped value there as others do.
  void PutPlainly(const std::string& name, size_t bytes, uint64_t key, uint64_t version = 1) {
    if (plain_ == nullptr) plain_ = server_->Connect("transport=tcp&gpu=no");
    std::vector<char> value(bytes);
    FillStamped(value.data(), bytes, {key, version});
    const KeyResult put = PutOne(*plain_, name, value.data(), bytes);
    EXPECT_TRUE(put.ok()) << put.message;
    AwaitRegistered();
  }
  void TearDown() override { plain_ = nullptr; }

  std::vector<std::unique_ptr<gpu::HostDevice>> devices_;
  std::unique_ptr<Client> client;
  std::unique_ptr<Client> plain_;
};

TEST_F(GpuOverRdma, IsReadAndWritten) {
  for (const size_t bytes : {24u, 65536u, 3u << 20}) {
    SCOPED_TRACE(bytes);
    const Transport expected = bytes < 65536 ? Transport::kTcp : Transport::kRdma;
    const auto from = Stamped(bytes, 1), into = Room(bytes + 8);
    const KeyResult put = PutOne(*client, "k", from->data(), bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, expected);
    const KeyResult got = GetOne(*client, "k", into->data(), bytes + 8);
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, expected);
    EXPECT_EQ(CheckStamped(into->data(), bytes, 1), "");
    EXPECT_EQ(std::string(into->data() + bytes, 8), std::string(8, '\xa5'));
  }
  EXPECT_EQ(client->stats().gpu_values, 6u);
  EXPECT_EQ(client->stats().fallbacks, 0u);
}

// More than is staged at a time, and nothing of it comes.
TEST_F(GpuOverRdma, QueuePairsThatBreak) {
  constexpr size_t kSizes[] = {70 << 20, 1 << 20, 70 << 20, 100'000};
  std::vector<std::string> names;
  std::vector<std::string_view> keys;
  std::vector<std::unique_ptr<gpu::DeviceBlock>> blocks;
  std::vector<Buffer> into;
  const auto other = server_->Connect("transport=tcp&gpu=no");
  for (const size_t bytes : kSizes) {
    names.push_back(std::to_string(names.size()));
    std::vector<char> value(bytes);
    FillStamped(value.data(), bytes, {names.size(), 1});
    const KeyResult put = PutOne(*other, names.back(), value.data(), bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    blocks.push_back(Room(bytes));
    into.push_back({blocks.back()->data(), bytes});
  }
  for (const std::string& name : names) keys.push_back(name);
  AwaitRegistered();
  for (const bool broken : {false, true}) {
    SCOPED_TRACE(broken);
    for (const char* nic : {"c0", "c1"}) fabric_.RefusePosts(nic, broken ? UINT32_MAX : 0);
    for (const auto& block : blocks) std::memset(block->data(), 0xa5, block->bytes());
    const auto results = client->BatchGetInto(keys, into);
    for (size_t i = 0; i < keys.size(); ++i) {
      EXPECT_TRUE(results[i].ok()) << results[i].message;
      EXPECT_EQ(results[i].transport, broken ? Transport::kTcp : Transport::kRdma) << i;
      EXPECT_EQ(CheckStamped(blocks[i]->data(), kSizes[i], i + 1), "");
    }
  }
  EXPECT_EQ(client->stats().gpu_staged_values, 2 * std::size(kSizes));
}

// --- straight into and out of device memory ----------------------------------------------------

TEST_F(GpuOverRdma, NicsReachRegisteredMemory) {
  constexpr size_t kMost = 70 << 20;
  const auto from = Shared(kMost + 4096), into = Shared(kMost + 4096);
  const uint64_t staged_blocks = devices_[0]->counts().staged_blocks;
  uint64_t values = 0;
  for (const size_t bytes : {size_t{65536}, size_t{3 << 20}, kMost}) {
    SCOPED_TRACE(bytes);
    into.Poison();
    FillStamped(from.data() + 24, bytes, {bytes, 1});
    const KeyResult put = PutOne(*client, "k", from.data() + 24, bytes);
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, Transport::kRdma);
    AwaitRegistered();
    const uint64_t flushes = devices_[0]->counts().flushes;
    const KeyResult got = GetOne(*client, "k", into.data() + 8, bytes + 8);
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, Transport::kRdma);
    EXPECT_EQ(got.bytes, bytes);
    EXPECT_EQ(CheckStamped(into.data() + 8, bytes, bytes), "");
    EXPECT_EQ(std::string(into.data(), 8), std::string(8, '\xa5'));
    EXPECT_EQ(std::string(into.data() + 8 + bytes, 8), std::string(8, '\xa5'));
    EXPECT_EQ(devices_[0]->counts().flushes, flushes + 1);
    values += 2;
  }
  const Stats stats = client->stats();
  EXPECT_EQ(stats.gpu_rdma_direct_values, values);
  EXPECT_EQ(stats.gpu_values, 0u);
  EXPECT_EQ(stats.rdma.values_read, values / 2);
  EXPECT_EQ(stats.rdma.values_written, values / 2);
  EXPECT_EQ(stats.rdma_staged_values, 0u);
  EXPECT_EQ(stats.fallbacks, 0u);
  EXPECT_EQ(stats.gpu_rdma_error, "");
  EXPECT_EQ(devices_[0]->counts().staged_blocks, staged_blocks);
}

// Device memory registered and not, on two devices, and host memory, in one batch and in one value.
TEST_F(GpuOverRdma, MixedBatches) {
  constexpr size_t kBytes = 96 << 10;
  const auto first = Shared(1 << 20), second = Shared(1 << 20, 1);
  const auto unknown = Room(1 << 20);
  std::vector<char> host(1 << 20, '\xa5'), known(1 << 20, '\xa5');
  ASSERT_TRUE(client->RegisterBuffer(known.data(), known.size()).ok());
  const std::vector<std::vector<Buffer>> into = {
      {{first.data(), kBytes}},
      {{second.data(), kBytes}},
      {{unknown->data(), kBytes}},
      {{host.data(), kBytes}},
      // On both devices and beside them.
      {{first.data() + kBytes, 10'000},
       {known.data(), 30'000},
       {second.data() + kBytes, kBytes - 40'000}},
      // A part of it is not registered.
      {{first.data() + 3 * kBytes, kBytes / 2}, {unknown->data() + kBytes, kBytes / 2}},
      {{second.data() + 3 * kBytes, kBytes / 2}, {host.data() + kBytes, kBytes / 2}},
  };
  std::vector<std::string> names;
  std::vector<std::string_view> keys;
  for (size_t i = 0; i < into.size(); ++i) {
    names.push_back("k" + std::to_string(i));
    PutPlainly(names.back(), kBytes, i);
  }
  for (const std::string& name : names) keys.push_back(name);
  const auto results = client->BatchGetIntoMulti(keys, into);
  std::vector<std::vector<ConstBuffer>> from;
  for (size_t i = 0; i < into.size(); ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(results[i].ok()) << results[i].message;
    EXPECT_EQ(results[i].transport, Transport::kRdma);
    std::string bytes;
    from.emplace_back();
    for (const Buffer& piece : into[i]) {
      bytes.append(static_cast<const char*>(piece.data), piece.size);
      from.back().push_back({piece.data, piece.size});
    }
    EXPECT_EQ(CheckStamped(bytes.data(), bytes.size(), i), "");
  }
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 3u);
  EXPECT_EQ(client->stats().gpu_staged_values, 3u);
  // And back, to other keys.
  for (std::string& name : names) name += "b";
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = names[i];
  for (const KeyResult& put : client->BatchPutFromMulti(keys, from)) {
    ASSERT_TRUE(put.ok()) << put.message;
    EXPECT_EQ(put.transport, Transport::kRdma);
  }
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 5u) << "what is in one piece";
  for (size_t i = 0; i < keys.size(); ++i) {
    std::string bytes;
    ASSERT_TRUE(plain_->Get(keys[i], &bytes).ok());
    EXPECT_EQ(CheckStamped(bytes.data(), bytes.size(), i), "");
  }
  EXPECT_TRUE(client->UnregisterBuffer(known.data()).ok());
}

TEST_F(GpuOverRdma, SmallPiecesAreLaunches) {
  constexpr size_t kBytes = 256 << 10, kPiece = 1024;
  PutPlainly("k", kBytes, 1);
  const auto room = Shared(2 * kBytes);
  std::vector<std::vector<Buffer>> into(1);
  for (size_t at = 0; at < kBytes; at += kPiece) into[0].push_back({room.data() + 2 * at, kPiece});
  const std::string_view key = "k";
  const auto results = client->BatchGetIntoMulti(std::span(&key, 1), into);
  ASSERT_TRUE(results[0].ok()) << results[0].message;
  std::string bytes;
  for (const Buffer& piece : into[0]) bytes.append(static_cast<char*>(piece.data), kPiece);
  EXPECT_EQ(CheckStamped(bytes.data(), kBytes, 1), "");
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 0u);
  EXPECT_EQ(client->stats().gpu_staged_values, 1u);
}

TEST_F(GpuOverRdma, NicsThatRefuseAreAskedOnce) {
  for (const char* nic : {"c0", "c1"}) fabric_.RefuseDmabufs(nic, true);
  constexpr size_t kBytes = 1 << 20;
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    const auto from = Shared(kBytes), into = Shared(kBytes);
    FillStamped(from.data(), kBytes, {1, 1});
    EXPECT_EQ(PutOne(*client, "k", from.data(), kBytes).transport, Transport::kRdma);
    EXPECT_EQ(GetOne(*client, "k", into.data(), kBytes).transport, Transport::kRdma);
    EXPECT_EQ(CheckStamped(into.data(), kBytes, 1), "");
  }
  const Stats stats = client->stats();
  EXPECT_EQ(stats.gpu_rdma_direct_values, 0u);
  EXPECT_EQ(stats.gpu_staged_values, 6u);
  EXPECT_EQ(stats.fallbacks, 0u);
  EXPECT_EQ(stats.gpu_rdma_error, "c1 takes no dma-buf");
  EXPECT_EQ(fabric_.counters().dmabuf_tries, 2u);
}

// It carries everything; when it breaks, the other one has the rest through pinned memory.
TEST_F(GpuOverRdma, OneNicThatTakesIt) {
  fabric_.RefuseDmabufs("c1", true);
  constexpr size_t kBytes = 8 << 20;
  const auto from = Shared(kBytes), into = Shared(kBytes);
  FillStamped(from.data(), kBytes, {1, 1});
  ASSERT_TRUE(PutOne(*client, "k", from.data(), kBytes).ok());
  AwaitRegistered();
  ASSERT_TRUE(GetOne(*client, "k", into.data(), kBytes).ok());
  EXPECT_EQ(CheckStamped(into.data(), kBytes, 1), "");
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 2u);
  fabric_.RefusePosts("c0", UINT32_MAX);
  into.Poison();
  const KeyResult got = GetOne(*client, "k", into.data(), kBytes);
  ASSERT_TRUE(got.ok()) << got.message;
  EXPECT_EQ(got.transport, Transport::kRdma);
  EXPECT_EQ(CheckStamped(into.data(), kBytes, 1), "");
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 2u);
  EXPECT_EQ(client->stats().gpu_staged_values, 1u);
  EXPECT_EQ(client->stats().fallbacks, 0u);
}

TEST_F(GpuOverRdma, WithoutDmabufOrSwitchedOff) {
  constexpr size_t kBytes = 1 << 20;
  for (const bool capable : {false, true}) {
    SCOPED_TRACE(capable);
    Start({}, {.devices = 1, .dmabuf = capable});
    if (capable) client = Connect("gpu_rdma=no");
    const auto from = Shared(kBytes), into = Shared(kBytes);
    FillStamped(from.data(), kBytes, {1, 1});
    EXPECT_EQ(PutOne(*client, "k", from.data(), kBytes).transport, Transport::kRdma);
    AwaitRegistered();
    EXPECT_EQ(GetOne(*client, "k", into.data(), kBytes).transport, Transport::kRdma);
    EXPECT_EQ(CheckStamped(into.data(), kBytes, 1), "");
    EXPECT_EQ(client->stats().gpu_rdma_direct_values, 0u);
    EXPECT_EQ(client->stats().gpu_staged_values, 2u);
    EXPECT_EQ(client->stats().gpu_rdma_error, "") << "nothing was tried";
    EXPECT_EQ(devices_[0]->counts().dmabufs, 0u);
    EXPECT_EQ(fabric_.counters().dmabuf_tries, 0u);
  }
}

TEST_F(GpuOverRdma, ChecksumsAreTheProcessors) {
  constexpr size_t kBytes = 1 << 20;
  client = Connect("checksum=yes");
  const auto from = Shared(kBytes), into = Shared(kBytes);
  FillStamped(from.data(), kBytes, {1, 1});
  EXPECT_EQ(PutOne(*client, "k", from.data(), kBytes).transport, Transport::kRdma);
  AwaitRegistered();
  EXPECT_EQ(GetOne(*client, "k", into.data(), kBytes).transport, Transport::kRdma);
  EXPECT_EQ(CheckStamped(into.data(), kBytes, 1), "");
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 0u);
  // A value without one need not pass by it.
  PutPlainly("plain", kBytes, 2);
  EXPECT_EQ(GetOne(*client, "plain", into.data(), kBytes).transport, Transport::kRdma);
  EXPECT_EQ(CheckStamped(into.data(), kBytes, 2), "");
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 1u);
}

TEST_F(GpuOverRdma, UnregisteredMemoryIsNobodys) {
  constexpr size_t kBytes = 1 << 20;
  PutPlainly("k", kBytes, 1);
  auto block = Room(kBytes);
  char* const data = block->data();
  {
    const Registered shared(std::move(block), *client);
    ASSERT_TRUE(GetOne(*client, "k", data, kBytes).ok());
    ASSERT_TRUE(PutOne(*client, "l", data, kBytes).ok());
    EXPECT_EQ(client->stats().gpu_rdma_direct_values, 2u);
    EXPECT_GT(fabric_.counters().dmabufs, 0u);
  }
  EXPECT_EQ(fabric_.counters().dmabufs, 0u);
}

// What stands in the stream before a read may still use the buffer.
TEST_F(GpuOverRdma, StreamsKeepTheirOrder) {
  constexpr size_t kBytes = 1 << 20;
  PutPlainly("k", kBytes, 2);
  const auto room = Shared(kBytes);
  FillStamped(room.data(), kBytes, {1, 1});
  auto stream = devices_[0]->NewStream();
  ASSERT_TRUE(stream);
  const auto before = Room(kBytes), after = Room(kBytes);
  devices_[0]->Pause();
  ASSERT_TRUE(devices_[0]->CopyOne((*stream)->ref(), {before->data(), room.data(), kBytes}));
  const std::string_view keys[] = {"k"};
  const std::vector<LayerBuffer> into[] = {{{room.data(), kBytes}}};
  GpuTransfer get = GetOnStream(*client, (*stream)->ref().handle, keys, into);
  ASSERT_TRUE(devices_[0]->CopyOne((*stream)->ref(), {after->data(), room.data(), kBytes}));
  // Nothing is there yet, whatever has been flushed.
  ASSERT_TRUE(devices_[0]->FlushRemoteWrites());
  EXPECT_EQ(CheckStamped(room.data(), kBytes, 1), "");
  devices_[0]->Resume();
  ASSERT_TRUE(get.Wait()[0].ok()) << get.result(0).message;
  ASSERT_TRUE(devices_[0]->Drain((*stream)->ref()));
  EXPECT_EQ(CheckStamped(before->data(), kBytes, 1), "");
  EXPECT_EQ(CheckStamped(after->data(), kBytes, 2), "");
  EXPECT_EQ(client->stats().gpu_rdma_direct_values, 0u);
}

// A device that cannot flush, or is lost: its keys alone have an error.
TEST_F(GpuOverRdma, DevicesThatFail) {
  constexpr size_t kBytes = 1 << 20;
  PutPlainly("k", kBytes, 1);
  const auto bad = Shared(kBytes), good = Shared(kBytes, 1);
  std::vector<char> host(kBytes);
  const std::string_view keys[] = {"k", "k", "k"};
  const Buffer into[] = {{bad.data(), kBytes}, {good.data(), kBytes}, {host.data(), kBytes}};
  for (const bool lost : {false, true}) {
    SCOPED_TRACE(lost);
    good.Poison();
    if (lost) {
      devices_[0]->LoseAfter(0);
    } else {
      devices_[0]->FailCallAfter(0);
    }
    const auto results = client->BatchGetInto(keys, into);
    EXPECT_EQ(results[0].code, Code::kDeviceError);
    EXPECT_NE(results[0].message, "");
    for (const size_t i : {1u, 2u}) {
      EXPECT_TRUE(results[i].ok()) << results[i].message;
      EXPECT_EQ(CheckStamped(into[i].data, kBytes, 1), "");
    }
    if (lost) continue;
    // Only that once.
    ASSERT_TRUE(GetOne(*client, "k", bad.data(), kBytes).ok());
    EXPECT_EQ(CheckStamped(bad.data(), kBytes, 1), "");
  }
}

// Queue pairs break under way and values change: bytes of a read that failed must not fall upon
// what came another way, neither then nor later.
TEST_F(GpuOverRdma, NoWrongBytesWhateverBreaks) {
  Start({{"maxmemory", "40mb"},
         {"region-size", "8mb"},
         {"arena-size", "4mb"},
         {"lease-default", "1"}});
  constexpr size_t kKeys = 24, kMost = 800'000, kBatch = 12;
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    const auto other = server_->Connect("transport=tcp&gpu=no");
    moonpool::test::Random random(1);
    std::vector<char> value(kMost);
    for (uint64_t version = 1; !stop; ++version) {
      const size_t key = random.Below(kKeys);
      const size_t bytes = 66'000 + random.Below(90'000) * 8;
      FillStamped(value.data(), bytes, {key, version});
      const KeyResult put = PutOne(*other, std::to_string(key), value.data(), bytes);
      EXPECT_TRUE(put.ok() || put.code == Code::kOutOfMemory) << put.message;
    }
  });
  std::atomic<bool> breaking{false};
  std::thread breaker([&] {
    for (size_t i = 0; !stop; ++i) {
      if (breaking) fabric_.BreakQueuePairs(i % 2 == 0 ? "c0" : "c1");
      std::this_thread::yield();
    }
  });
  {
    const auto room = Shared(kBatch * kMost);
    moonpool::test::Random random(2);
    std::vector<std::string> names(kBatch);
    const auto read = [&] {
      std::vector<size_t> wanted(kBatch);
      std::vector<std::string_view> keys;
      std::vector<Buffer> into;
      for (size_t i = 0; i < kBatch; ++i) {
        wanted[i] = random.Below(kKeys);
        names[i] = std::to_string(wanted[i]);
        into.push_back({room.data() + i * kMost, kMost});
      }
      for (const std::string& name : names) keys.push_back(name);
      room.Poison();
      const auto results = client->BatchGetInto(keys, into);
      for (const bool later : {false, true}) {
        EXPECT_TRUE(!later || devices_[0]->FlushRemoteWrites());
        for (size_t i = 0; i < kBatch; ++i) {
          if (!results[i].ok()) {
            EXPECT_EQ(results[i].code, Code::kMiss) << results[i].message;
            continue;
          }
          EXPECT_EQ(CheckStamped(into[i].data, results[i].bytes, wanted[i]), "") << later;
        }
      }
    };
    const auto until = [&](const std::function<bool()>& enough) {
      return Eventually([&] {
        read();
        return HasFailure() || enough();
      });
    };
    const auto direct = [&] { return client->stats().gpu_rdma_direct_values; };
    EXPECT_TRUE(until([&] { return direct() > 200; }));
    EXPECT_TRUE(until([&] { return client->stats().generation_retries > 0; }));
    breaking = true;
    const uint64_t staged = client->stats().gpu_staged_values;
    EXPECT_TRUE(until([&] { return client->stats().gpu_staged_values > staged + 50; }));
    breaking = false;
    const uint64_t before = direct();
    EXPECT_TRUE(until([&] { return direct() > before + 50; }));
  }
  stop = true;
  writer.join();
  breaker.join();
}

}  // namespace
}  // namespace moonpool::client
