// Values in memory of the server's devices: imported, pulled, written, and given back.
#include <algorithm>
#include <thread>

#include <moonpool/gpu.h>

#include "client/gpu_devices.h"
#include "tests/client/gpu_fake_server.h"
#include "tests/client/live_server.h"
#include "tests/client/stamped_block.h"
#include "tests/gpu/device_under_test.h"

namespace moonpool::client {
namespace {

class GpuRegions : public testing::Test {
 protected:
  GpuRegions() {
    gpu::HostDeviceOptions options;
    options.devices = 2;
    devices_ = gpu::MakeHostDevices(options);
    ReplaceGpuDevices({devices_[0].get()});
    Start(0);
  }
  ~GpuRegions() override {
    client = nullptr;
    server = nullptr;
    ReplaceGpuDevices({});
  }

  // The server's memory is on that device; the client sees only the first.
  void Start(size_t device, const std::string& options = "") {
    client = nullptr;
    server = std::make_unique<FakeGpuServer>(*devices_[device]);
    Connect(options);
  }
  void Connect(const std::string& options) {
    const Status status = Client::Connect(server->Url(options), {}, &client);
    ASSERT_TRUE(status.ok()) << status.message;
  }
  gpu::HostDevice& device() { return *devices_[0]; }
  uint64_t Launches() { return device().counts().one + device().counts().many; }

  std::unique_ptr<gpu::DeviceBlock> Block(const std::string& bytes) {
    auto block = device().NewDeviceBlock(bytes.size());
    EXPECT_TRUE(block);
    std::memcpy((*block)->data(), bytes.data(), bytes.size());
    return std::move(*block);
  }
  static std::string Poison(size_t bytes) { return std::string(bytes, '\xa5'); }
  static std::string Stamped(size_t bytes, uint64_t key) {
    std::vector<char> block(bytes);
    FillStamped(block.data(), bytes, {key, 1});
    return {block.begin(), block.end()};
  }
  static std::string Read(const gpu::DeviceBlock& block, size_t bytes) {
    return {block.data(), bytes};
  }
  KeyResult Get(std::string_view key, void* data, size_t bytes) {
    const Buffer buffer{data, bytes};
    return client->BatchGetInto(std::span(&key, 1), std::span(&buffer, 1))[0];
  }
  KeyResult Put(std::string_view key, const void* data, size_t bytes, const PutOptions& options) {
    const ConstBuffer buffer{data, bytes};
    return client->BatchPutFrom(std::span(&key, 1), std::span(&buffer, 1), options)[0];
  }

  void CheckGivenBack(const std::string& options);
  void CheckStrings(const std::string& options);

  std::vector<std::unique_ptr<gpu::HostDevice>> devices_;
  std::unique_ptr<FakeGpuServer> server;
  std::unique_ptr<Client> client;
};

TEST_F(GpuRegions, AreAskedForOnceDeviceMemoryIsUsed) {
  server->Put("k", Stamped(100'000, 1));
  EXPECT_EQ(server->last_hello().find("cuda"), std::string::npos);
  const auto into = Block(Poison(100'000));
  ASSERT_TRUE(Get("k", into->data(), 100'000).ok());
  const std::string hello = server->last_hello();
  EXPECT_NE(hello.find("TRANSPORTS 3 shm cuda tcp "), std::string::npos) << hello;
  EXPECT_NE(hello.find("DEVICES 1 " + device().info().uuid.ToString()), std::string::npos) << hello;
  // And by who prefers it, from host memory.
  Connect("");
  PutOptions options;
  options.prefer = "gpu,dram";
  const std::string value = Stamped(100'000, 2);
  EXPECT_EQ(Put("new", value.data(), value.size(), options).transport, Transport::kCuda);
  Connect("&gpu=no");
  (void)Put("other", value.data(), value.size(), options);
  EXPECT_EQ(server->last_hello().find("cuda"), std::string::npos);
}

TEST_F(GpuRegions, ArePulledFrom) {
  for (const char* options : {"", "&checksum=yes"}) {
    SCOPED_TRACE(options);
    Start(0, options);
    std::vector<std::string> names, values;
    std::vector<std::string_view> keys;
    std::vector<std::unique_ptr<gpu::DeviceBlock>> blocks;
    std::vector<std::string> host;
    std::vector<Buffer> into;
    for (size_t i = 0; i < 10; ++i) {
      names.push_back("k" + std::to_string(i));
      values.push_back(Stamped(70'000 + 80 * i, i));
      server->Put(names[i], values[i]);
      blocks.push_back(Block(Poison(values[i].size())));
      host.push_back(Poison(values[i].size()));
    }
    for (size_t i = 0; i < 10; ++i) {
      keys.push_back(names[i]);
      into.push_back({i % 3 == 0 ? host[i].data() : blocks[i]->data(), values[i].size()});
    }
    const auto results = client->BatchGetInto(keys, into);
    for (size_t i = 0; i < 10; ++i) {
      EXPECT_TRUE(results[i].ok()) << results[i].message;
      EXPECT_EQ(results[i].transport, Transport::kCuda);
      EXPECT_TRUE((i % 3 == 0 ? host[i] : Read(*blocks[i], values[i].size())) == values[i]) << i;
    }
    EXPECT_EQ(client->stats().cuda.values_read, 10u);
    EXPECT_EQ(client->stats().fallbacks, 0u);
    EXPECT_EQ(server->Heard("want"), 1);
    EXPECT_EQ(server->Heard("GET"), 0);
    // Into strings, and in the place of views.
    std::string text;
    ASSERT_TRUE(client->Get("k3", &text).ok());
    EXPECT_TRUE(text == values[3]);
    View view;
    ASSERT_TRUE(client->GetView("k4", &view).ok());
    EXPECT_TRUE(view.is_copy());
    EXPECT_TRUE(view.bytes() == values[4]);
    EXPECT_TRUE(Eventually([&] { return server->Heard("KV.RELEASE") > 0; }));
  }
}

TEST_F(GpuRegions, AreWrittenBeforeTheCommit) {
  for (const char* options : {"", "&checksum=yes"}) {
    SCOPED_TRACE(options);
    Start(0, options);
    PutOptions prefer;
    prefer.prefer = "gpu";
    const std::string from_device = Stamped(200'000, 1), from_host = Stamped(150'000, 2);
    const auto block = Block(from_device);
    const KeyResult first = Put("device", block->data(), from_device.size(), prefer);
    EXPECT_TRUE(first.ok()) << first.message;
    EXPECT_EQ(first.transport, Transport::kCuda);
    EXPECT_NE(server->last_alloc().find("PREFER gpu"), std::string::npos);
    EXPECT_TRUE(server->Committed("device") == from_device);
    EXPECT_TRUE(Put("host", from_host.data(), from_host.size(), prefer).ok());
    EXPECT_TRUE(server->Committed("host") == from_host);
    EXPECT_EQ(client->stats().cuda.values_written, 2u);
    std::string text;
    ASSERT_TRUE(client->Get("device", &text).ok());
    EXPECT_TRUE(text == from_device);
  }
}

TEST_F(GpuRegions, OnStreamsByLayersAndPages) {
  auto stream = device().NewStream();
  ASSERT_TRUE(stream);
  constexpr size_t kPage = 4 * 20'000, kKeys = 5;
  PagedCache cache;
  cache.plane_count = 4;
  cache.layers = 2;
  cache.piece_bytes = kPage / 4;
  cache.page_stride = kPage / 4;
  const auto memory = Block(Poison(8 * kPage));
  for (size_t p = 0; p < 4; ++p) cache.planes.push_back(memory->data() + p * 8 * kPage / 4);
  std::vector<std::string> names, values;
  std::vector<std::string_view> keys, copies;
  for (size_t i = 0; i < kKeys; ++i) {
    names.push_back("page" + std::to_string(i));
    values.push_back(Stamped(kPage, i));
    server->Put(names[i], values[i]);
  }
  for (const std::string& name : names) keys.push_back(name);
  for (const std::string& name : names) copies.push_back(std::string_view(name).substr(1));
  const std::vector<int32_t> indexes = {7, 0, 3, 5, 2};
  void* const handle = (*stream)->ref().handle;
  GpuTransfer get = GetPagesOnStream(*client, handle, keys, cache, indexes);
  for (const KeyResult& result : get.Wait()) {
    EXPECT_EQ(result.transport, Transport::kCuda) << result.message;
  }
  for (size_t i = 0; i < kKeys; ++i) {
    std::string page;
    for (size_t p = 0; p < 4; ++p) {
      page.append(memory->data() + (p * 8 + static_cast<size_t>(indexes[i])) * kPage / 4,
                  kPage / 4);
    }
    EXPECT_TRUE(page == values[i]) << i;
  }
  EXPECT_EQ(device().counts().pages, 2u) << "a launch per layer";
  PutOptions prefer;
  prefer.prefer = "gpu";
  GpuTransfer put = PutPagesOnStream(*client, handle, copies, cache, indexes, prefer);
  for (const KeyResult& result : put.Wait()) {
    EXPECT_EQ(result.transport, Transport::kCuda) << result.message;
  }
  for (size_t i = 0; i < kKeys; ++i) {
    EXPECT_TRUE(server->Committed(std::string(copies[i])) == values[i]) << i;
  }
}

TEST_F(GpuRegions, OfADeviceThatIsNotSeenGoOverTcp) {
  Start(1);
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  const auto into = Block(Poison(value.size()));
  for (int i = 0; i < 2; ++i) {
    const KeyResult got = Get("k", into->data(), value.size());
    ASSERT_TRUE(got.ok()) << got.message;
    EXPECT_EQ(got.transport, Transport::kTcp);
    EXPECT_TRUE(Read(*into, value.size()) == value);
  }
  EXPECT_EQ(server->Heard("want"), 1) << "it was tried again";
  EXPECT_EQ(client->stats().fallbacks, 2u);
  EXPECT_NE(client->stats().gpu_error.find("CUDA_VISIBLE_DEVICES"), std::string::npos)
      << client->stats().gpu_error;
  PutOptions prefer;
  prefer.prefer = "gpu";
  EXPECT_EQ(Put("new", into->data(), value.size(), prefer).transport, Transport::kTcp);
  EXPECT_TRUE(server->Committed("new") == value);
  EXPECT_EQ(server->Heard("KV.ABORT"), 1);
}

TEST_F(GpuRegions, AreGivenBackWhenNoCopyIsUnderWay) {
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  const auto into = Block(Poison(value.size()));
  ASSERT_TRUE(Get("k", into->data(), value.size()).ok());
  std::memset(into->data(), 0, value.size());
  const uint64_t before = Launches();
  device().Pause();
  KeyResult result;
  std::thread reader([&] { result = Get("k", into->data(), value.size()); });
  EXPECT_TRUE(Eventually([&] { return Launches() > before; }));
  server->SayGone();
  std::this_thread::sleep_for(std::chrono::milliseconds(400));  // some rounds of housekeeping
  EXPECT_EQ(server->Heard("unmapped"), 0);
  device().Resume();
  reader.join();
  EXPECT_TRUE(result.ok());
  EXPECT_TRUE(Read(*into, value.size()) == value);
  EXPECT_TRUE(Eventually([&] { return server->Heard("unmapped") > 0; }));
  // It is fetched again when a descriptor names it.
  EXPECT_EQ(Get("k", into->data(), value.size()).transport, Transport::kCuda);
  EXPECT_EQ(server->Heard("want"), 2);
}

TEST_F(GpuRegions, AreGivenBackByEveryConnectionWhenNoCopyOfAnyIsUnderWay) {
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  const auto into = Block(Poison(value.size())), other = Block(Poison(value.size()));
  ASSERT_TRUE(Get("k", into->data(), value.size()).ok());
  const uint64_t before = Launches();
  device().Pause();
  std::vector<std::thread> readers;
  for (char* to : {into->data(), other->data()}) {
    readers.emplace_back([&, to] { EXPECT_TRUE(Get("k", to, value.size()).ok()); });
  }
  EXPECT_TRUE(Eventually([&] { return Launches() >= before + 2; }));
  server->SayGone();
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  EXPECT_EQ(server->Heard("unmapped"), 0);
  device().Resume();
  for (std::thread& reader : readers) reader.join();
  EXPECT_TRUE(Eventually([&] { return server->Heard("unmapped") >= 2; }));
  EXPECT_EQ(server->Heard("want"), 1);
}

// Results may be looked at long after, and the events.
TEST_F(GpuRegions, AreGivenBackByTransfersThatAreDone) {
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  const auto into = Block(Poison(value.size()));
  auto stream = device().NewStream();
  ASSERT_TRUE(stream);
  const std::string_view keys[] = {"k"}, copies[] = {"copy"};
  const std::vector<LayerBuffer> to[] = {{{into->data(), value.size()}}};
  const std::vector<ConstLayerBuffer> from[] = {{{into->data(), value.size()}}};
  PutOptions options;
  options.prefer = "gpu";
  GpuTransfer get = GetOnStream(*client, (*stream)->ref().handle, keys, to);
  GpuTransfer put = PutOnStream(*client, (*stream)->ref().handle, copies, from, options);
  EXPECT_EQ(get.Wait()[0].transport, Transport::kCuda) << get.result(0).message;
  EXPECT_EQ(put.Wait()[0].transport, Transport::kCuda) << put.result(0).message;
  server->SayGone();
  EXPECT_TRUE(Eventually([&] { return server->Heard("unmapped") > 0; }));
  for (const GpuTransfer* transfer : {&get, &put}) {
    bool reached = false;
    EXPECT_TRUE(transfer->Reached(0, &reached).ok());
    EXPECT_TRUE(reached);
    EXPECT_TRUE(transfer->result(0).ok());
  }
}

// The device stops: the server's question is answered when it goes on.
void GpuRegions::CheckGivenBack(const std::string& options) {
  Start(0, "&connections=2&timeout_ms=1000" + options);
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  const auto into = Block(Poison(value.size()));
  ASSERT_TRUE(Get("k", into->data(), value.size()).ok());
  device().Pause();
  EXPECT_EQ(Get("k", into->data(), value.size()).code, Code::kTimeout);
  EXPECT_EQ(client->stats().gpu_parked_values, 1u);
  server->SayGone();
  // The socket answers: the region is fetched anew.
  EXPECT_TRUE(Eventually([&] {
    EXPECT_EQ(Get("k", into->data(), value.size()).code, Code::kTimeout);
    return server->Heard("want") >= 2;
  }));
  EXPECT_EQ(server->Heard("unmapped"), 0);
  device().Resume();
  EXPECT_TRUE(Eventually([&] { return server->Heard("unmapped") > 0; }));
  EXPECT_TRUE(Eventually([&] { return client->stats().gpu_parked_values == 0; }));
  EXPECT_EQ(Get("k", into->data(), value.size()).transport, Transport::kCuda);
  EXPECT_TRUE(Read(*into, value.size()) == value);
}
TEST_F(GpuRegions, AreGivenBackWhenADeviceThatWasGivenUpIsDone) {
  CheckGivenBack("");
}
TEST_F(GpuRegions, AreGivenBackWhenADeviceThatWasGivenUpIsDoneWithChecksums) {
  CheckGivenBack("&checksum=yes");
}

// Reads and writes on a stream, looked at and waited for while the device stands still; and the
// client goes before it goes on.
TEST_F(GpuRegions, OnAStreamThatStopsStayWhatTheyAre) {
  Start(0, "&connections=2&timeout_ms=1000");
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  const auto into = Block(Poison(value.size())), from = Block(value);
  auto stream = device().NewStream();
  ASSERT_TRUE(stream);
  void* const handle = (*stream)->ref().handle;
  const std::string_view keys[] = {"k"}, copies[] = {"copy"}, others[] = {"other"};
  const std::vector<LayerBuffer> to[] = {{{into->data(), value.size()}}};
  const std::vector<ConstLayerBuffer> source[] = {{{from->data(), value.size()}}};
  PutOptions options;
  options.prefer = "gpu";
  ASSERT_TRUE(Get("k", into->data(), value.size()).ok());
  device().Pause();
  {
    GpuTransfer get = GetOnStream(*client, handle, keys, to);
    GpuTransfer put = PutOnStream(*client, handle, copies, source, options);
    std::thread looks(
        [&] { EXPECT_EQ(get.WaitFor(std::chrono::milliseconds(50))[0].code, Code::kTimeout); });
    EXPECT_EQ(put.WaitFor(std::chrono::milliseconds(50))[0].code, Code::kTimeout);
    looks.join();
    EXPECT_EQ(client->stats().gpu_parked_values, 0u);
    device().Resume();
    EXPECT_TRUE(get.WaitFor(std::chrono::minutes(3))[0].ok());
    EXPECT_TRUE(put.WaitFor(std::chrono::minutes(3))[0].ok());
    EXPECT_TRUE(server->Committed("copy") == value);
  }
  device().Pause();
  (void)PutOnStream(*client, handle, others, source, options);
  const int connections = server->connections();
  client = nullptr;
  EXPECT_GE(server->connections(), 1) << "the session that is written for was closed";
  EXPECT_LE(server->connections(), connections);
  server->SayGone();
  device().Resume();
  EXPECT_TRUE(Eventually([&] { return device().still(); }));
  EXPECT_EQ(server->Heard("unmapped"), 0);
  EXPECT_FALSE(server->Committed("other"));
}

void GpuRegions::CheckStrings(const std::string& options) {
  Start(0, "&timeout_ms=1000" + options);
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  std::string text;
  // So that the region is mapped, and the string as long as it will be.
  const auto into = Block(Poison(value.size()));
  ASSERT_TRUE(Get("k", into->data(), value.size()).ok());
  ASSERT_TRUE(client->Get("k", &text).ok());
  EXPECT_TRUE(text == value);
  text = Poison(value.size());
  device().Pause();
  EXPECT_EQ(client->Get("k", &text).code, Code::kTimeout);
  View view;
  EXPECT_EQ(client->GetView("k", &view).code, Code::kTimeout);
  EXPECT_EQ(client->stats().gpu_parked_values, 2u);
  device().Resume();
  EXPECT_TRUE(Eventually([&] { return client->stats().gpu_parked_values == 0; }));
  EXPECT_TRUE(text == Poison(value.size()));
  ASSERT_TRUE(client->Get("k", &text).ok());
  EXPECT_TRUE(text == value);
}
TEST_F(GpuRegions, AStringIsNotWrittenWhenTheCallIsOver) {
  CheckStrings("");
}
TEST_F(GpuRegions, AStringIsNotWrittenWhenTheCallIsOverWithChecksums) {
  CheckStrings("&checksum=yes");
}

TEST_F(GpuRegions, AWriteThatIsGivenUpKeepsItsSession) {
  Start(0, "&connections=1&timeout_ms=1000");
  const std::string value = Stamped(100'000, 1);
  const auto from = Block(value);
  PutOptions prefer;
  prefer.prefer = "gpu";
  ASSERT_TRUE(Put("k", from->data(), value.size(), prefer).ok());
  const int sessions = server->Heard("KV.HELLO");
  device().Pause();
  EXPECT_EQ(Put("late", from->data(), value.size(), prefer).code, Code::kTimeout);
  EXPECT_EQ(server->Heard("KV.ABORT"), 0) << "the server may give the extent to others";
  EXPECT_EQ(server->Heard("done"), 0) << "likewise";
  EXPECT_EQ(server->connections(), 1);
  ASSERT_TRUE(client->Set("host", "value").ok());
  EXPECT_EQ(server->Heard("KV.HELLO"), sessions + 1) << "the session was used again";
  EXPECT_EQ(server->connections(), 2) << "the session was closed";
  device().Resume();
  EXPECT_TRUE(Eventually([&] { return server->connections() == 1; }));
  EXPECT_TRUE(Eventually([&] { return server->Heard("done") == 1; }));
  EXPECT_FALSE(server->Committed("late"));
}

TEST_F(GpuRegions, ASessionThatTheServerHasEndedSaysThatItIsDone) {
  const std::string value = Stamped(100'000, 1);
  const auto from = Block(value);
  PutOptions prefer;
  prefer.prefer = "gpu";
  ASSERT_TRUE(Put("k", from->data(), value.size(), prefer).ok());
  EXPECT_EQ(server->Heard("done"), 0);
  // Nobody calls for anything meanwhile.
  server->EndAttachments();
  EXPECT_TRUE(Eventually([&] { return server->Heard("done") == 1; }));
  EXPECT_TRUE(Eventually([&] { return server->connections() == 0; }));
  EXPECT_EQ(Put("k", from->data(), value.size(), prefer).transport, Transport::kCuda);
}

// A call fails in the middle of a write, of which a part is under way: the server hears of its end.
TEST_F(GpuRegions, AWriteThatTheDriverTookInPartKeepsItsSession) {
  Start(0, "&connections=1&timeout_ms=1000");
  const std::string value = Stamped(100'000, 1);
  const auto from = Block(value);
  PutOptions prefer;
  prefer.prefer = "gpu";
  ASSERT_TRUE(Put("k", from->data(), value.size(), prefer).ok());
  device().Pause();
  bool found = false;
  for (uint64_t calls = 0; !found && calls < 100; ++calls) {
    const uint64_t before = Launches();
    device().FailCallAfter(calls);
    const KeyResult put = Put("late", from->data(), value.size(), prefer);
    device().FailCallAfter(UINT32_MAX);
    ASSERT_FALSE(put.ok());
    found = Launches() > before;
    // Where nothing was taken, nothing is under way.
    EXPECT_EQ(put.code == Code::kTimeout, found) << put.message;
  }
  ASSERT_TRUE(found);
  const int aborts = server->Heard("KV.ABORT");
  EXPECT_EQ(server->Heard("done"), 0);
  ASSERT_TRUE(client->Set("host", "value").ok());
  EXPECT_EQ(server->Heard("KV.ABORT"), aborts);
  EXPECT_EQ(server->Heard("done"), 0);
  device().Resume();
  EXPECT_TRUE(Eventually([&] { return server->Heard("done") == 1; }));
  EXPECT_FALSE(server->Committed("late"));
}

TEST_F(GpuRegions, AValueThatChangesUnderTheCopy) {
  const std::string value = Stamped(100'000, 1), next = Stamped(90'000, 1);
  server->Put("k", value);
  const auto into = Block(Poison(value.size()));
  const uint64_t before = Launches();
  device().Pause();
  KeyResult result;
  std::thread reader([&] { result = Get("k", into->data(), value.size()); });
  EXPECT_TRUE(Eventually([&] { return Launches() > before; }));
  server->Recycle("k");
  server->Put("k", next);
  device().Resume();
  reader.join();
  ASSERT_TRUE(result.ok()) << result.message;
  EXPECT_EQ(result.bytes, next.size());
  EXPECT_TRUE(Read(*into, next.size()) == next);
  EXPECT_EQ(client->stats().generation_retries, 1u);
}

TEST_F(GpuRegions, ADescriptorThatPointsOutside) {
  const std::string value = Stamped(100'000, 1);
  server->Put("k", value);
  server->Move("k", FakeGpuServer::kRegionBytes - 50'000);
  const auto into = Block(Poison(value.size()));
  EXPECT_EQ(Get("k", into->data(), value.size()).code, Code::kProtocol);
  EXPECT_TRUE(Read(*into, value.size()) == Poison(value.size()));
}

TEST_F(GpuRegions, AServerThatKnowsNothingOfDevices) {
  server->knows_devices = false;
  server->Put("k", Stamped(100'000, 1));
  const auto into = Block(Poison(100'000));
  EXPECT_TRUE(Get("k", into->data(), 100'000).ok());
  EXPECT_EQ(server->last_hello().find("cuda"), std::string::npos);
}

}  // namespace
}  // namespace moonpool::client
