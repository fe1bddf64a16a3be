// Values in memory of the server's GPUs (host doubles), read over RDMA (on the double of NICs)
// where they are.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/gpu_devices.h"
#include "gpu/host_device.h"
#include "rdma/endpoint.h"
#include "rdma/nic_set.h"
#include "server/rdma.h"
#include "server/session.h"
#include "storage/clock.h"
#include "storage/keyspace.h"
#include "tests/client/raw_session.h"
#include "tests/client/rdma_rig.h"
#include "tests/client/stamped_block.h"
#include "tests/protocol/random.h"

namespace moonpool::client {
namespace {

using storage::KeyLock;

constexpr size_t kBytes = 200'000;

class VramOverRdma : public RdmaTransportTest {
 protected:
  VramOverRdma() = default;
  ~VramOverRdma() override {
    client_ = nullptr;
    plain_ = nullptr;
    watch_ = nullptr;
    server_ = nullptr;
    ReplaceGpuDevices({});
  }
  void Start(LiveServer::Settings more = {}, const gpu::HostDeviceOptions& options = {}) {
    if (devices_.empty()) devices_ = gpu::MakeHostDevices(options);
    std::vector<gpu::Device*> gpus;
    for (const auto& device : devices_) gpus.push_back(device.get());
    std::vector<std::pair<const char*, const char*>> all = {{"gpu-memory", "64mb"},
                                                            {"prefer", "v gpu,dram"}};
    all.insert(all.end(), more.begin(), more.end());
    Serve(all, std::move(gpus));
  }
  // The most settings that a test has.
  void Serve(std::vector<std::pair<const char*, const char*>> s, std::vector<gpu::Device*> gpus) {
    s.resize(8, {"gpu", "auto"});
    StartServer({s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]}, 0, std::move(gpus));
    plain_ = server_->Connect("transport=tcp&gpu=no");
    watch_ = std::make_unique<RawSession>(*server_);
  }
  std::string Tier(const std::string& key) {
    const std::string info = watch_->Run({"KV.INFO", key});
    const size_t at = info.find("\ntier\n");
    return at == std::string::npos ? "" : info.substr(at + 6, info.find('\n', at + 6) - at - 6);
  }
  std::string Info(const std::string& row, const char* section) {
    const std::string info = watch_->Run({"INFO", section});
    const size_t at = info.find(row + ":");
    if (at == std::string::npos) return "no row " + row;
    const size_t start = at + row.size() + 1;
    return info.substr(start, info.find('\r', start) - start);
  }
  uint64_t Fetches() { return std::stoull(Info("tier_gpu_fetches", "tiers")); }
  // Over RESP: in DRAM at first.
  void Put(const std::string& key, size_t bytes, uint64_t number, uint64_t version = 1) {
    std::vector<char> value(bytes);
    FillStamped(value.data(), bytes, {number, version});
    const KeyResult put = PutOne(*plain_, key, value.data(), bytes);
    EXPECT_TRUE(put.ok()) << put.message;
  }
  // In memory of a GPU; its name begins with a v.
  void PutThere(const std::string& key, size_t bytes, uint64_t number, uint64_t version = 1) {
    Put(key, bytes, number, version);
    EXPECT_TRUE(Eventually([&] { return Tier(key) == "gpu"; }));
  }
  storage::ValueRef Value(const std::string& key) {
    KeyLock lock(server_->tenant().keyspace(), key, storage::UnixMs());
    const storage::Entry* const entry = lock.key.Find();
    return entry == nullptr || !entry->has(storage::Entry::kBulk)
               ? storage::ValueRef()
               : storage::ValueRef::Share(entry->bulk());
  }
  // NICs have all regions of that GPU; there is one.
  bool AwaitExported(size_t device = 0) {
    const std::string name = devices_[device]->info().uuid.ToString();
    return Eventually([&] {
      bool any = false;
      for (const storage::RegionInfo& region : server_->tenant().pool().Regions()) {
        if (region.device != name) continue;
        any = true;
        if (!region.exported) return false;
      }
      return any;
    });
  }
  // A client that has a queue pair on both NICs, and the server knows it.
  void ConnectOverRdma(const std::string& options = "") {
    client_ = Connect("connections=1" + (options.empty() ? "" : "&" + options));
    std::string value;
    EXPECT_EQ(client_->Get("nothing", &value).code, Code::kMiss);
    EXPECT_TRUE(Eventually([&] {
      const auto sessions = server_->server().Sessions();
      return std::any_of(sessions.begin(), sessions.end(),
                         [](const auto& session) { return session->queue_pairs == 2; });
    }));
  }
  KeyResult Get(const std::string& key, size_t bytes = kBytes) {
    into_.assign(bytes + 8, '\xa5');
    return GetOne(*client_, key, into_.data(), bytes);
  }
  void ExpectRead(const std::string& key, uint64_t number, size_t bytes = kBytes) {
    const KeyResult got = Get(key, bytes);
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, Transport::kRdma);
    EXPECT_EQ(CheckStamped(into_.data(), got.bytes, number), "");
    EXPECT_EQ(std::string(into_.data() + bytes, 8), std::string(8, '\xa5'));
  }

  std::vector<std::unique_ptr<gpu::HostDevice>> devices_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<Client> plain_;
  std::unique_ptr<RawSession> watch_;
  std::vector<char> into_;
};

TEST_F(VramOverRdma, ValuesAreReadWithoutACopyInDram) {
  Start();
  for (const size_t bytes : {size_t{65536}, size_t{3 << 20}, size_t{20 << 20}}) {
    PutThere("v" + std::to_string(bytes), bytes, bytes);
  }
  ASSERT_TRUE(AwaitExported());
  ConnectOverRdma();
  const auto copied = [&] { return devices_[0]->counts().one + devices_[0]->counts().many; };
  const uint64_t copies = copied(), used = server_->tenant().budget().extent_bytes();
  for (const size_t bytes : {size_t{65536}, size_t{3 << 20}, size_t{20 << 20}}) {
    ExpectRead("v" + std::to_string(bytes), bytes, bytes);
  }
  for (const char* nic : {"c0", "c1"}) {
    EXPECT_GT(fabric_.counters().device_bytes[nic], 65536u) << nic;
  }
  EXPECT_EQ(Fetches(), 0u);
  EXPECT_EQ(copied(), copies);
  EXPECT_EQ(server_->tenant().budget().extent_bytes(), used);
  EXPECT_EQ(client_->stats().fallbacks, 0u);
  EXPECT_EQ(client_->stats().generation_retries, 0u);
  EXPECT_EQ(Info("gpu_rdma0", "gpu"), "yes");
  EXPECT_GT(std::stoi(Info("rdma_registered_gpu_regions", "rdma")), 1);
  EXPECT_NE(watch_->Run({"KV.REGIONS"}).find("rdma\nregistered"), std::string::npos);
  EXPECT_GT(server_->tenant().gpu_hits(), 2u);
}

// From device to device of two hosts.
TEST_F(VramOverRdma, IntoMemoryOfTheClientsGpu) {
  Start();
  PutThere("v", 3 << 20, 1);
  ASSERT_TRUE(AwaitExported());
  const auto mine = gpu::MakeHostDevices();
  ReplaceGpuDevices({mine[0].get()});
  fabric_.OnDmabufWrite(
      [&](uint64_t, std::function<void()> write) { mine[0]->HoldUntilFlush(std::move(write)); });
  ConnectOverRdma();
  auto block = mine[0]->NewDeviceBlock(3 << 20);
  ASSERT_TRUE(block);
  ASSERT_TRUE(client_->RegisterBuffer((*block)->data(), 3 << 20).ok());
  const KeyResult got = GetOne(*client_, "v", (*block)->data(), 3 << 20);
  ASSERT_TRUE(got.ok()) << got.message;
  EXPECT_EQ(CheckStamped((*block)->data(), 3 << 20, 1), "");
  EXPECT_EQ(client_->stats().gpu_rdma_direct_values, 1u);
  EXPECT_EQ(Fetches(), 0u);
  EXPECT_TRUE(client_->UnregisterBuffer((*block)->data()).ok());
  client_ = nullptr;
  ReplaceGpuDevices({});
}

// The queue pairs of a raw session, and memory that the server may write to.
class RawQueuePairs {
 public:
  RawQueuePairs(rdma::test::FakeFabric& fabric, LiveServer& server, RawSession& session)
      : nics_(*rdma::NicSet::Open(fabric.Host("client"), {})),
        domains_(*rdma::Domains::Create(nics_->devices())) {
    rdma::EndpointTarget target;
    const std::string& hello = session.hello();
    const auto number = [&](const std::string& word) {
      return std::stoull(hello.substr(hello.find("\n" + word + "\n") + word.size() + 2));
    };
    target.epoch = number("epoch");
    target.session = number("session");
    target.port = server.server().rdma()->port();
    for (const server::Rdma::Nic& nic : server.server().rdma()->nics()) {
      target.nics.push_back({nic.name, nic.addresses, rdma::Protocol::kRoceV2, nic.speed_mbps});
    }
    endpoint_ = std::make_unique<rdma::Endpoint>(
        *nics_, *domains_, target,
        [&session]() -> Result<rdma::Token> {
          std::string text = session.Run({"KV.TOKEN"});
          text.erase(text.find_last_not_of('\n') + 1);
          return *rdma::ParseToken(text);
        },
        rdma::EndpointOptions());
    const auto opened = endpoint_->Open();
    EXPECT_TRUE(opened) << opened.error().message;
  }
  void Lend(uint32_t buffer, std::vector<char>* memory) {
    keys_ = *rdma::Registration::Create(*domains_, memory->data(), memory->size(),
                                        rdma::kLocalWrite | rdma::kRemoteWrite);
    EXPECT_TRUE(endpoint_->Announce(buffer, *keys_, rdma::kRemoteWrite));
  }

 private:
  std::unique_ptr<rdma::NicSet> nics_;
  std::unique_ptr<rdma::Domains> domains_;
  std::unique_ptr<rdma::Registration> keys_;
  std::unique_ptr<rdma::Endpoint> endpoint_;
};

TEST_F(VramOverRdma, TheServerWritesThemStraightToBuffersOfItsClients) {
  Start();
  PutThere("v", kBytes, 1);
  ASSERT_TRUE(AwaitExported());
  RawSession session(*server_, {"TRANSPORTS", "2", "shm", "rdma"});
  RawQueuePairs queue_pairs(fabric_, *server_, session);
  std::vector<char> memory(1 << 20, '\xa5');
  queue_pairs.Lend(7, &memory);
  EXPECT_EQ(session.Run({"KV.READ", "1", "v", "7", "64", "300000"}), std::to_string(kBytes));
  EXPECT_EQ(CheckStamped(memory.data() + 64, kBytes, 1), "");
  EXPECT_EQ(memory[63], '\xa5');
  EXPECT_EQ(memory[64 + kBytes], '\xa5');
  EXPECT_EQ(Fetches(), 0u);
  EXPECT_EQ(Info("rdma_bytes_written", "rdma"), std::to_string(kBytes));
}

// --- who is told ---------------------------------------------------------------------------------

TEST_F(VramOverRdma, WithoutAQueuePairOrWhenAttachedThereIsACopy) {
  Start();
  PutThere("v", kBytes, 1);
  ASSERT_TRUE(AwaitExported());
  RawSession session(*server_, {"TRANSPORTS", "2", "shm", "rdma"});
  EXPECT_NE(session.Run({"KV.LOCATE", "1", "v"}).find("\ndram\n"), std::string::npos);
  EXPECT_EQ(Fetches(), 1u);
  // One that has queue pairs, as far as that goes, and has mapped the pool.
  for (const auto& info : server_->server().Sessions()) info->queue_pairs = 2;
  EXPECT_NE(session.Run({"KV.LOCATE", "1", "v"}).find("\ngpu\n"), std::string::npos);
  EXPECT_EQ(Fetches(), 1u);
  ASSERT_TRUE(session.Attach());
  EXPECT_NE(session.Run({"KV.LOCATE", "1", "v"}).find("\ndram\n"), std::string::npos);
  EXPECT_EQ(Fetches(), 2u);
}

class VramRefused : public VramOverRdma {
 protected:
  // Reads that go through DRAM, and the reason that is given.
  void ExpectCopies(const std::string& why) {
    PutThere("v", kBytes, 1);
    EXPECT_TRUE(Eventually([&] { return Info("gpu_rdma0", "gpu") == "no: " + why; }))
        << Info("gpu_rdma0", "gpu");
    EXPECT_TRUE(Eventually(
        [&] { return watch_->Run({"KV.REGIONS"}).find("rdma\n" + why) != std::string::npos; }));
    ConnectOverRdma();
    AwaitRegistered();
    ExpectRead("v", 1);
    EXPECT_EQ(Fetches(), 1u);
    EXPECT_EQ(Tier("v"), "gpu");
    EXPECT_EQ(client_->stats().fallbacks, 0u);
    EXPECT_EQ(fabric_.counters().dmabufs, 0u);
    EXPECT_EQ(Info("rdma_registered_gpu_regions", "rdma"), "0");
  }
};

TEST_F(VramRefused, ByBothNics) {
  for (const char* nic : {"s0", "s1"}) fabric_.RefuseDmabufs(nic, true);
  Start();
  ExpectCopies("s0 takes no dma-buf");
  EXPECT_EQ(Info("rdma_regions_refused", "rdma"), "1");
}

TEST_F(VramRefused, ByOneNic) {
  fabric_.RefuseDmabufs("s1", true);
  Start();
  ExpectCopies("s1 takes no dma-buf");
}

TEST_F(VramRefused, ByTheGpu) {
  Start({}, {.dmabuf = false});
  ExpectCopies("the GPU, or its driver, has no dma-buf");
  EXPECT_EQ(devices_[0]->counts().dmabufs, 0u);
}

TEST_F(VramRefused, BySetting) {
  Start({{"gpu-rdma", "no"}});
  ExpectCopies("gpu-rdma is 'no' in the configuration");
  EXPECT_EQ(devices_[0]->counts().dmabufs, 0u);
  EXPECT_EQ(Info("rdma_regions_refused", "rdma"), "0") << "nothing was tried";
}

// --- what changes or goes ------------------------------------------------------------------------

// Overwritten, and its memory written anew, between two requests of one READ.
TEST_F(VramOverRdma, AValueThatChangesUnderAReadIsReadAgain) {
  Start({{"lease-default", "1"}});
  // A key whose next version stays in DRAM: nobody else writes to that extent.
  Put("d", kBytes, 1);
  watch_->Run({"KV.PREFETCH", "1", "d", "PREFER", "gpu"});
  ASSERT_TRUE(Eventually([&] { return Tier("d") == "gpu"; }));
  ASSERT_TRUE(AwaitExported());
  ConnectOverRdma();
  const storage::Extent extent = Value("d")->extent();
  const auto there = reinterpret_cast<uint64_t>(extent.address());
  std::promise<void> begun, go_on;
  fabric_.OnExecute(
      [&, waits = true](const rdma::WorkRequest& request, const std::string&) mutable {
        if (!waits || request.kind != rdma::WorkRequest::Kind::kRead ||
            request.remote_address - there >= kBytes) {
          return;
        }
        waits = false;
        begun.set_value();
        go_on.get_future().wait();
      });
  std::thread changes([&] {
    begun.get_future().wait();
    Put("d", kBytes, 1, 2);
    const auto& counter = server_->tenant().pool().generations().counter(extent.slot);
    EXPECT_TRUE(Eventually([&] { return counter.load() != extent.generation; }));
    std::memset(extent.address(), '\xee', kBytes);
    go_on.set_value();
  });
  const KeyResult got = Get("d");
  changes.join();
  fabric_.OnExecute({});
  ASSERT_TRUE(got.ok()) << got.message;
  Stamp stamp;
  EXPECT_EQ(CheckStamped(into_.data(), kBytes, 1, &stamp), "");
  EXPECT_EQ(stamp.version, 2u);
  EXPECT_GE(client_->stats().generation_retries, 1u);
}

TEST_F(VramOverRdma, ALostGpuCostsItsKeysAndWhatWasRegistered) {
  Start({{"lease-default", "1"}}, {.devices = 2});
  PutThere("v", kBytes, 1);
  const size_t where = Value("v")->device_number();
  PutThere("v2", kBytes, 2);
  ASSERT_NE(Value("v2")->device_number(), where) << "the emptier one was to be taken";
  ASSERT_TRUE(AwaitExported(0) && AwaitExported(1));
  ConnectOverRdma();
  ExpectRead("v", 1);
  ExpectRead("v2", 2);
  const uint64_t before = fabric_.counters().dmabufs;
  devices_[where]->LoseAfter(0);
  EXPECT_TRUE(Eventually([&] { return Get("v").code == Code::kMiss; }));
  EXPECT_TRUE(Eventually([&] { return fabric_.counters().dmabufs < before; }));
  EXPECT_EQ(fabric_.counters().dmabufs, before / 2);
  ExpectRead("v2", 2);
  EXPECT_EQ(Fetches(), 0u);
  EXPECT_EQ(Get("v").code, Code::kMiss);
}

// --- a driver that does not return ---------------------------------------------------------------

TEST_F(VramOverRdma, AnExportThatHangsHoldsUpNobody) {
  devices_ = gpu::MakeHostDevices({.devices = 2});
  devices_[0]->HoldDmabufs(true);
  Start({{"io-threads", "1"}, {"shutdown-timeout", "0"}});
  Put("v", kBytes, 1);
  Put("v2", kBytes, 2);
  EXPECT_TRUE(Eventually([&] { return Tier("v") == "gpu" && Tier("v2") == "gpu"; }));
  EXPECT_TRUE(Eventually([&] { return devices_[0]->dmabufs_held() == 1; }));
  ASSERT_TRUE(AwaitExported(1));
  ConnectOverRdma();
  // Upkeep, which registers host memory, has gone on.
  Put("d", 30 << 20, 3);
  AwaitRegistered();
  ExpectRead("d", 3, 30 << 20);
  ExpectRead("v", 1);
  ExpectRead("v2", 2);
  EXPECT_EQ(Fetches(), 1u) << "of the one that is there";
  EXPECT_EQ(Info("gpu_rdma0", "gpu"), "not yet: no region has been registered");
  // A stop saves all, and waits for that call last.
  client_ = nullptr;
  plain_ = nullptr;
  watch_ = nullptr;
  bool called = false;
  server_->server().set_on_silent_gpu([&] {
    called = true;
    devices_[0]->HoldDmabufs(false);
  });
  server_->Stop();
  EXPECT_TRUE(called);
  server_ = nullptr;
}

// --- everything at once --------------------------------------------------------------------------

TEST_F(VramOverRdma, NoWrongBytesWhateverMovesOrBreaks) {
  Start({{"maxmemory", "40mb"},
         {"region-size", "8mb"},
         {"gpu-memory", "16mb"},
         {"lease-default", "1"},
         {"arena-size", "4mb"}});
  constexpr size_t kKeys = 48, kMost = 800'000, kBatch = 12;
  std::atomic<bool> stop{false}, breaking{false};
  std::thread writer([&] {
    const auto other = server_->Connect("transport=tcp&gpu=no");
    moonpool::test::Random random(1);
    std::vector<char> value(kMost);
    for (uint64_t version = 1; !stop; ++version) {
      const size_t key = random.Below(kKeys);
      const size_t bytes = 66'000 + random.Below(90'000) * 8;
      FillStamped(value.data(), bytes, {key, version});
      const KeyResult put = PutOne(*other, "v" + std::to_string(key), value.data(), bytes);
      EXPECT_TRUE(put.ok() || put.code == Code::kOutOfMemory) << put.message;
    }
  });
  std::thread breaker([&] {
    for (size_t i = 0; !stop; ++i) {
      if (breaking) fabric_.BreakQueuePairs(i % 2 == 0 ? "c0" : "s1");
      std::this_thread::yield();
    }
  });
  ConnectOverRdma();
  uint64_t from_vram = 0;
  {
    std::vector<char> room(kBatch * kMost);
    moonpool::test::Random random(2);
    const auto read = [&] {
      std::vector<size_t> wanted(kBatch);
      std::vector<std::string> names;
      std::vector<std::string_view> keys;
      std::vector<Buffer> into;
      for (size_t i = 0; i < kBatch; ++i) {
        wanted[i] = random.Below(kKeys);
        names.push_back("v" + std::to_string(wanted[i]));
        into.push_back({room.data() + i * kMost, kMost});
      }
      for (const std::string& name : names) keys.push_back(name);
      std::fill(room.begin(), room.end(), '\xa5');
      const auto results = client_->BatchGetInto(keys, into);
      for (size_t i = 0; i < kBatch; ++i) {
        if (!results[i].ok()) {
          EXPECT_EQ(results[i].code, Code::kMiss) << results[i].message;
          continue;
        }
        EXPECT_EQ(CheckStamped(into[i].data, results[i].bytes, wanted[i]), "");
      }
    };
    const auto until = [&](const std::function<bool()>& enough) {
      return Eventually([&] {
        read();
        return HasFailure() || enough();
      });
    };
    const auto stats = [&] { return server_->tenant().gpu()->stats(); };
    const auto hits = [&] { return server_->tenant().gpu_hits() - stats().fetches; };
    EXPECT_TRUE(until([&] { return hits() > 300; }));
    EXPECT_TRUE(until([&] { return stats().promotions > 20 && stats().demotions > 20; }));
    EXPECT_TRUE(until([&] { return client_->stats().generation_retries > 0; }));
    breaking = true;
    const uint64_t fallbacks = client_->stats().fallbacks;
    EXPECT_TRUE(until([&] { return client_->stats().fallbacks > fallbacks + 20; }));
    breaking = false;
    from_vram = hits();
    EXPECT_TRUE(until([&] { return hits() > from_vram + 50; }));
  }
  stop = true;
  writer.join();
  breaker.join();
}

}  // namespace
}  // namespace moonpool::client
