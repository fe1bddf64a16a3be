// A device that stops, and a stream that is never reached: calls end, and what the device does when
// it goes on harms nobody.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <moonpool/gpu.h>

#include "tests/client/gpu_rig.h"

namespace moonpool::client {
namespace {

using std::chrono::milliseconds;

// Of clients that are to give up: everything but the device answers within this.
constexpr const char* kImpatient = "timeout_ms=1000";

uint64_t Launches(const gpu::HostDevice& device) {
  return device.counts().one + device.counts().many + device.counts().pages;
}

// The id of the client's only connection.
std::string ConnectionOf(Client& client) {
  const std::string_view words[] = {"CLIENT", "ID"};
  std::string id;
  EXPECT_TRUE(client.Command(words, &id).ok());
  return id.substr(0, id.find('\n'));
}
// Whether the server has a connection with that id.
bool IsOpen(Client& observer, const std::string& id) {
  const std::string_view words[] = {"CLIENT", "LIST"};
  std::string list;
  EXPECT_TRUE(observer.Command(words, &list).ok());
  return ("\n" + list).find("\nid=" + id + " ") != std::string::npos;
}

// Values that others have: in extents that a late write must not reach.
class Others {
 public:
  explicit Others(Client& writer) {
    for (size_t i = 0; i < kCount; ++i) {
      names_.push_back("other" + std::to_string(i));
      std::vector<char> value(kBytes);
      FillStamped(value.data(), kBytes, {1000 + i, 1});
      values_.emplace_back(value.begin(), value.end());
      EXPECT_TRUE(writer.Set(names_[i], values_[i]).ok());
    }
  }
  void AreWhole(Client& reader) const {
    for (size_t i = 0; i < kCount; ++i) {
      std::string value;
      const Status got = reader.Get(names_[i], &value);
      EXPECT_TRUE(got.ok()) << got.message;
      EXPECT_TRUE(value == values_[i]) << names_[i];
    }
  }

 private:
  static constexpr size_t kCount = 12, kBytes = 200'000;
  std::vector<std::string> names_, values_;
};

class GpuHangs : public GpuClientTest {
 protected:
  GpuHangs() { hidden = false; }
  void SetUp() override {
    GpuClientTest::SetUp();
    client = server->Connect(std::string("connections=1&transport=shm&") + kImpatient);
    observer = server->Connect("gpu=no");
    auto made = device->NewStream();
    ASSERT_TRUE(made);
    stream_owner = std::move(*made);
    stream = stream_owner->ref().handle;
  }
  void TearDown() override {
    if (device != nullptr) Double().Resume();
    observer = nullptr;
    GpuClientTest::TearDown();
  }
  void GoesOn() {
    Double().Resume();
    EXPECT_TRUE(Eventually([&] { return client->stats().gpu_parked_values == 0; }));
  }
  void CheckStagedValues(const std::string& how);

  std::unique_ptr<Client> observer;
  std::unique_ptr<gpu::Stream> stream_owner;
  void* stream = nullptr;
};

TEST_P(GpuHangs, AReadIsGivenUp) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(observer->Set("k", value).ok());
  const auto into = Room(value.size());
  std::string host = Poison(value.size());
  ASSERT_TRUE(GetOne(*client, "k", into->data(), value.size()).ok());
  Put(into->data(), Poison(value.size()));
  Double().Pause();
  const std::string_view keys[] = {"k", "k", "nothing"};
  const Buffer buffers[] = {
      {into->data(), value.size()}, {host.data(), host.size()}, {host.data(), 8}};
  const auto results = client->BatchGetInto(keys, buffers);
  EXPECT_EQ(results[0].code, Code::kTimeout);
  EXPECT_NE(results[0].message.find("gpu_parked_values"), std::string::npos) << results[0].message;
  EXPECT_TRUE(results[1].ok()) << "host memory beside it: " << results[1].message;
  EXPECT_TRUE(host == value);
  EXPECT_EQ(results[2].code, Code::kMiss);
  EXPECT_EQ(client->stats().gpu_parked_values, 1u);
  EXPECT_TRUE(std::string(into->data(), value.size()) == Poison(value.size()));
  // The device writes to the buffer yet, and when the count is 0 it has.
  GoesOn();
  EXPECT_TRUE(std::string(into->data(), value.size()) == value);
  EXPECT_TRUE(GetOne(*client, "k", into->data(), value.size()).ok());
}

// The second part of a batch does not wait for what the first has waited for in vain.
TEST_P(GpuHangs, ABatchOfManyPartsWaitsOnce) {
  client = server->Connect(std::string("connections=2&transport=shm&") + kImpatient);
  constexpr size_t kKeys = 300, kBytes = 70'000;  // three KV.LOCATE
  const std::string value = Stamped(kBytes, 1);
  ASSERT_TRUE(observer->Set("k", value).ok());
  const auto block = Room(kKeys * kBytes);
  const std::vector<std::string_view> keys(kKeys, "k");
  std::vector<Buffer> into;
  for (size_t i = 0; i < kKeys; ++i) into.push_back({block->data() + i * kBytes, kBytes});
  Double().Pause();
  const uint64_t before = Launches(Double());
  for (const KeyResult& result : client->BatchGetInto(keys, into)) {
    EXPECT_EQ(result.code, Code::kTimeout) << result.message;
  }
  EXPECT_EQ(Launches(Double()) - before, 1u);
  EXPECT_EQ(client->stats().gpu_parked_values, 128u);
  // And with as many batches as there are connections nothing more is given to it.
  EXPECT_EQ(GetOne(*client, "k", block->data(), kBytes).code, Code::kTimeout);
  EXPECT_EQ(Launches(Double()) - before, 2u);
  for (const KeyResult& result : {GetOne(*client, "k", block->data(), kBytes),
                                  PutOne(*client, "new", block->data(), kBytes)}) {
    EXPECT_EQ(result.code, Code::kTimeout) << result.message;
    EXPECT_NE(result.message.find("not tried"), std::string::npos) << result.message;
  }
  EXPECT_EQ(Launches(Double()) - before, 2u);
  GoesOn();
  EXPECT_TRUE(PutOne(*client, "new", block->data(), kBytes).ok());
  EXPECT_TRUE(GetOne(*client, "new", block->data(), kBytes).ok());
}

TEST_P(GpuHangs, AWriteIsGivenUpAndItsSessionIsNotUsedAgain) {
  const std::string value = Stamped(200'000, 1);
  const auto source = OnDevice(value);
  ASSERT_TRUE(PutOne(*client, "before", source->data(), value.size()).ok());
  const std::string session = ConnectionOf(*client);
  Double().Pause();
  const KeyResult put = PutOne(*client, "k", source->data(), value.size());
  EXPECT_EQ(put.code, Code::kTimeout) << put.message;
  EXPECT_EQ(observer->Exists("k").code, Code::kMiss);
  EXPECT_EQ(client->stats().gpu_parked_values, 1u);
  // Its only connection is another now; the session lives, so that its extents are nobody else's.
  EXPECT_NE(ConnectionOf(*client), session);
  const Others mine(*client), theirs(*observer);
  EXPECT_TRUE(IsOpen(*observer, session));
  Double().Resume();
  // The housekeeper ends it, whoever asks for anything.
  EXPECT_TRUE(Eventually([&] { return !IsOpen(*observer, session); }));
  EXPECT_TRUE(Double().still());
  mine.AreWhole(*observer);
  theirs.AreWhole(*client);
  EXPECT_EQ(observer->Exists("k").code, Code::kMiss);
  EXPECT_TRUE(observer->Exists("before").ok());
  EXPECT_TRUE(PutOne(*client, "k", source->data(), value.size()).ok());
  // No reservation is left behind.
  client = nullptr;
  server->tenant().keyspace().Clear();
  EXPECT_TRUE(Eventually([&] { return server->tenant().budget().extent_bytes() == 0; }));
}

// Small ones, and those over tcp, pass through memory of the library's.
void GpuHangs::CheckStagedValues(const std::string& how) {
  client = server->Connect(how + kImpatient);
  const std::string value = Stamped(100'000, 1), small = Stamped(3000, 2);
  ASSERT_TRUE(client->Set("k", value).ok());
  ASSERT_TRUE(client->Set("small", small).ok());
  const auto block = Room(value.size()), little = Room(small.size());
  const std::string_view keys[] = {"k", "small"}, others[] = {"a", "b"};
  const Buffer into[] = {{block->data(), value.size()}, {little->data(), small.size()}};
  const ConstBuffer from[] = {{block->data(), value.size()}, {little->data(), small.size()}};
  Double().Pause();
  for (const KeyResult& result : client->BatchGetInto(keys, into)) {
    EXPECT_EQ(result.code, Code::kTimeout) << result.message;
  }
  for (const KeyResult& result : client->BatchPutFrom(others, from)) {
    EXPECT_EQ(result.code, Code::kTimeout) << result.message;
  }
  EXPECT_EQ(client->stats().gpu_parked_values, 4u);
  // What is staged meanwhile is other memory.
  EXPECT_TRUE(client->Set("more", Stamped(100'000, 3)).ok());
  GoesOn();
  EXPECT_TRUE(Holds(*block, value, value.size()));
  EXPECT_TRUE(Holds(*little, small, small.size()));
  for (const std::string_view other : others) {
    EXPECT_EQ(observer->Exists(other).code, Code::kMiss);
  }
  for (const KeyResult& result : client->BatchPutFrom(others, from)) {
    EXPECT_TRUE(result.ok()) << result.message;
  }
}

TEST_P(GpuHangs, StagedValuesAreGivenUpOverTcp) {
  CheckStagedValues("transport=tcp&");
}
TEST_P(GpuHangs, StagedValuesAreGivenUpWithChecksums) {
  CheckStagedValues("transport=shm&checksum=yes&");
}

TEST_P(GpuHangs, TransfersAreWaitedForAgain) {
  client = server->Connect();
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(observer->Set("k", value).ok());
  const auto block = Room(value.size()), source = OnDevice(value);
  const std::string_view keys[] = {"k", "nothing"}, names[] = {"new"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size()}}, {{block->data(), 8}}};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}}};
  Double().Pause();
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  GpuTransfer put = PutOnStream(*client, stream, names, from);
  for (int i = 0; i < 2; ++i) {
    const auto got = get.WaitFor(milliseconds(20));
    EXPECT_EQ(got[0].code, Code::kTimeout);
    EXPECT_FALSE(got[0].message.empty());
    EXPECT_EQ(got[1].code, Code::kMiss);
    EXPECT_EQ(put.WaitFor(milliseconds(20))[0].code, Code::kTimeout);
    for (GpuTransfer* transfer : {&get, &put}) {
      EXPECT_TRUE(transfer->in_flight(0));
      EXPECT_FALSE(transfer->Done());
    }
  }
  EXPECT_EQ(get.WaitFor(milliseconds(-1))[0].code, Code::kTimeout);
  EXPECT_EQ(observer->Exists("new").code, Code::kMiss);
  EXPECT_EQ(client->stats().gpu_parked_values, 0u) << "they are not given up";
  Double().Resume();
  EXPECT_TRUE(get.WaitFor(milliseconds::max())[0].ok());
  EXPECT_TRUE(put.Wait()[0].ok()) << put.result(0).message;
  EXPECT_TRUE(Holds(*block, value, value.size()));
  std::string plain;
  ASSERT_TRUE(observer->Get("new", &plain).ok());
  EXPECT_TRUE(plain == value);
}

TEST_P(GpuHangs, WaitAndRetryEnd) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(observer->Set("k", value).ok());
  const auto block = Room(value.size());
  const std::string_view keys[] = {"k"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size()}}};
  Double().Pause();
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  EXPECT_EQ(get.Wait()[0].code, Code::kTimeout);
  EXPECT_EQ(get.Retry()[0].code, Code::kTimeout);
  EXPECT_TRUE(get.in_flight(0));
  Double().Resume();
  EXPECT_TRUE(Eventually([&] { return get.Done(); }));
  EXPECT_TRUE(get.Retry()[0].ok());
  EXPECT_TRUE(Holds(*block, value, value.size()));
}

// The value changed, and the device stops before it is read again.
TEST_P(GpuHangs, WhatIsRetriedIsGivenUp) {
  StartServer({{"lease-default", "0"}});
  client = server->Connect(std::string("transport=shm&") + kImpatient);
  observer = server->Connect("gpu=no");
  const std::string first = Stamped(200'000, 1, 1), second = Stamped(200'000, 1, 2);
  ASSERT_TRUE(observer->Set("k", first).ok());
  const auto block = Room(first.size());
  const std::string_view keys[] = {"k"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), first.size()}}};
  Double().Pause();
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  ASSERT_TRUE(observer->Set("k", second).ok());
  Double().Resume();
  EXPECT_EQ(get.Wait()[0].code, Code::kChanged);
  Double().Pause();
  EXPECT_EQ(get.Retry()[0].code, Code::kTimeout);
  EXPECT_TRUE(get.Done());
  EXPECT_EQ(client->stats().gpu_parked_values, 1u);
  GoesOn();
  EXPECT_TRUE(Holds(*block, second, second.size()));
}

TEST_P(GpuHangs, ADroppedReadIsGivenUp) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(observer->Set("k", value).ok());
  const auto block = Room(value.size());
  const std::string_view keys[] = {"k"};
  const std::vector<LayerBuffer> into[] = {
      {{block->data(), 100'000, 0}, {block->data() + 100'000, 100'000, 1}}};
  Double().Pause();
  { const GpuTransfer get = GetOnStream(*client, stream, keys, into); }
  EXPECT_EQ(client->stats().gpu_parked_values, 1u);
  GoesOn();
  EXPECT_TRUE(Holds(*block, value, value.size()));
}

// A call that fails in the middle, of which a part is under way.
TEST_P(GpuHangs, WhatTheDriverHadTakenIsGivenUp) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(observer->Set("k", value).ok());
  const auto block = Room(value.size()), source = OnDevice(value);
  const std::string_view keys[] = {"k"}, names[] = {"new"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size()}}};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}}};
  // All is mapped and pinned.
  ASSERT_TRUE(GetOne(*client, "k", block->data(), value.size()).ok());
  ASSERT_TRUE(PutOne(*client, "before", source->data(), value.size()).ok());
  Put(block->data(), Poison(value.size()));
  for (const bool write : {false, true}) {
    SCOPED_TRACE(write);
    Double().Pause();
    const std::string session = ConnectionOf(*client);
    bool found = false;
    for (uint64_t calls = 0; !found && calls < 100; ++calls) {
      const uint64_t before = Launches(Double());
      Double().FailCallAfter(calls);
      GpuTransfer transfer = write ? PutOnStream(*client, stream, names, from)
                                   : GetOnStream(*client, stream, keys, into);
      Double().FailCallAfter(UINT32_MAX);
      // Nothing was refused: the calls that put the batch into the stream have all been tried.
      ASSERT_TRUE(Eventually([&] { return transfer.Done() || Launches(Double()) > before; }));
      if (Launches(Double()) == before) continue;
      const KeyResult result = transfer.Wait()[0];
      EXPECT_EQ(result.code, Code::kTimeout) << result.message;
      ASSERT_TRUE(transfer.Done()) << "no call failed behind the launch";
      found = true;
    }
    EXPECT_TRUE(found);
    EXPECT_EQ(client->stats().gpu_parked_values, 1u);
    EXPECT_EQ(ConnectionOf(*client) != session, write);
    const Others mine(*client);
    GoesOn();
    mine.AreWhole(*observer);
  }
  EXPECT_TRUE(Holds(*block, value, value.size()));
  EXPECT_EQ(observer->Exists("new").code, Code::kMiss);
}

// The client goes while the device stands still: what is under way stays as it is.
TEST_P(GpuHangs, AClientIsClosed) {
  const std::string value = Stamped(200'000, 1);
  ASSERT_TRUE(observer->Set("k", value).ok());
  const auto block = Room(value.size()), source = OnDevice(value);
  ASSERT_TRUE(PutOne(*client, "before", source->data(), value.size()).ok());
  const std::string session = ConnectionOf(*client);
  const std::string_view keys[] = {"k"}, names[] = {"new"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), value.size()}}};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}}};
  Double().Pause();
  (void)PutOnStream(*client, stream, names, from);
  GpuTransfer get = GetOnStream(*client, stream, keys, into);
  client = nullptr;
  get = GpuTransfer();  // which ends the client
  const Others theirs(*observer);
  EXPECT_TRUE(IsOpen(*observer, session)) << "others were given what a device writes to";
  Double().Resume();
  EXPECT_TRUE(Eventually([&] { return Double().still(); }));
  theirs.AreWhole(*observer);
  EXPECT_EQ(observer->Exists("new").code, Code::kMiss);
  EXPECT_TRUE(Holds(*block, value, value.size()));
}

// One that goes on in time is waited for.
TEST_P(GpuHangs, AClientIsClosedLater) {
  client = server->Connect();
  const std::string value = Stamped(200'000, 1);
  const auto source = OnDevice(value);
  const std::string_view names[] = {"new"};
  const std::vector<ConstLayerBuffer> from[] = {{{source->data(), value.size()}}};
  Double().Pause();
  (void)PutOnStream(*client, stream, names, from);
  std::thread closes([&] { client = nullptr; });
  std::this_thread::sleep_for(milliseconds(50));  // most likely it waits by now; if not, no matter
  Double().Resume();
  closes.join();
  EXPECT_TRUE(observer->Exists("new").ok());
}

INSTANTIATE_TEST_SUITE_P(On, GpuHangs, testing::Values(gpu::Kind::kDouble), gpu::KindName);

// A stream that waits for a kernel of the caller's which does not end, while the device goes on.
class StuckStream : public testing::Test {
 protected:
  StuckStream() {
    gpu::HostDeviceOptions options;
    options.devices = 2;
    devices = gpu::MakeHostDevices(options);
    ReplaceGpuDevices({devices[0].get(), devices[1].get()});
    server = std::make_unique<LiveServer>();
    client = server->Connect(std::string("connections=1&transport=shm&") + kImpatient);
    observer = server->Connect("gpu=no");
    block = *devices[0]->NewDeviceBlock(kBytes);
    std::memset(block->data(), 0xa5, kBytes);
    value.resize(kBytes);
    FillStamped(value.data(), kBytes, {1, 1});
    EXPECT_TRUE(observer->Set("k", value).ok());
    for (const auto& device : devices) streams.push_back(*device->NewStream());
    stream = streams[0]->ref().handle;
    // The kernel, as the double has none: a copy on the other device.
    devices[1]->Pause();
    EXPECT_TRUE(devices[1]->CopyOne(streams[1]->ref(), {block->data(), block->data(), 8}));
    kernel = *devices[1]->NewEvent();
    EXPECT_TRUE(devices[1]->Record(*kernel, streams[1]->ref()));
    EXPECT_TRUE(devices[0]->WaitFor(streams[0]->ref(), *kernel));
  }
  ~StuckStream() override {
    devices[1]->Resume();
    client = nullptr;
    observer = nullptr;
    server = nullptr;
    ReplaceGpuDevices({});
  }
  void GoesOn() {
    devices[1]->Resume();
    EXPECT_TRUE(Eventually([&] { return client->stats().gpu_parked_values == 0; }));
  }

  static constexpr size_t kBytes = 200'000;
  std::vector<std::unique_ptr<gpu::HostDevice>> devices;
  std::unique_ptr<LiveServer> server;
  std::unique_ptr<Client> client, observer;
  std::unique_ptr<gpu::DeviceBlock> block;
  std::string value;
  std::vector<std::unique_ptr<gpu::Stream>> streams;
  std::unique_ptr<gpu::Event> kernel;
  void* stream = nullptr;
};

TEST_F(StuckStream, CostsItsTransferAndNothingElse) {
  const std::string_view keys[] = {"k"};
  const std::vector<LayerBuffer> into[] = {{{block->data(), kBytes}}};
  {
    GpuTransfer get = GetOnStream(*client, stream, keys, into);
    EXPECT_EQ(get.WaitFor(milliseconds(20))[0].code, Code::kTimeout);
  }
  EXPECT_EQ(client->stats().gpu_parked_values, 1u);
  // Other streams of the device are as they were.
  const auto other = *devices[0]->NewDeviceBlock(kBytes);
  for (int i = 0; i < 3; ++i) {
    const KeyResult got = GetOne(*client, "k", other->data(), kBytes);
    EXPECT_TRUE(got.ok()) << got.message;
    EXPECT_TRUE(std::string(other->data(), kBytes) == value);
    EXPECT_TRUE(PutOne(*client, "put", other->data(), kBytes).ok());
  }
  GoesOn();
  EXPECT_TRUE(std::string(block->data(), kBytes) == value);
}

TEST_F(StuckStream, AWriteIsCommittedWhenItGoesOn) {
  FillStamped(block->data(), kBytes, {7, 1});
  const std::string written(block->data(), kBytes);
  const std::string_view keys[] = {"new"};
  const std::vector<ConstLayerBuffer> from[] = {{{block->data(), kBytes}}};
  GpuTransfer put = PutOnStream(*client, stream, keys, from);
  EXPECT_EQ(put.Wait()[0].code, Code::kTimeout);
  EXPECT_TRUE(put.in_flight(0));
  EXPECT_EQ(observer->Exists("new").code, Code::kMiss);
  devices[1]->Resume();
  EXPECT_TRUE(Eventually([&] { return put.Done(); }));
  EXPECT_TRUE(put.result(0).ok()) << put.result(0).message;
  std::string plain;
  ASSERT_TRUE(observer->Get("new", &plain).ok());
  EXPECT_TRUE(plain == written);
}

}  // namespace
}  // namespace moonpool::client
