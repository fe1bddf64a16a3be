// Values into and out of device memory: by calls that return when the bytes are there.
#include <atomic>
#include <thread>

#include "tests/client/gpu_rig.h"
#include "tests/client/raw_session.h"

namespace moonpool::client {
namespace {

using gpu::HostDevice;

constexpr size_t kSizes[] = {24, 4096, 65528, 65536, 65544, 300'000, 3 << 20};

class GpuTransfers : public GpuClientTest {};

TEST_P(GpuTransfers, FromAndIntoDeviceMemory) {
  for (const char* how : {"transport=shm", "transport=tcp", "transport=shm&checksum=yes"}) {
    SCOPED_TRACE(how);
    client = server->Connect(how);
    const bool shm = std::string(how) != "transport=tcp";
    for (const size_t bytes : kSizes) {
      SCOPED_TRACE(bytes);
      const Transport expected = shm && bytes >= 65536 ? Transport::kShm : Transport::kTcp;
      const std::string value = Stamped(bytes, 1, bytes);
      const auto from = OnDevice(value);
      const KeyResult put = PutOne(*client, "k", from->data(), bytes);
      ASSERT_TRUE(put.ok()) << put.message;
      EXPECT_EQ(put.transport, expected);
      std::string plain;
      ASSERT_TRUE(client->Get("k", &plain).ok());
      EXPECT_TRUE(plain == value) << "what was written";
      const auto into = Room(bytes + 100);
      const KeyResult got = GetOne(*client, "k", into->data(), bytes + 100);
      ASSERT_TRUE(got.ok()) << got.message;
      EXPECT_EQ(got.transport, expected);
      EXPECT_EQ(got.bytes, bytes);
      EXPECT_TRUE(Holds(*into, value, bytes + 100));
    }
    const Stats stats = client->stats();
    EXPECT_EQ(stats.gpu_values, 2 * std::size(kSizes));
    const uint64_t small = 2 * 3;  // of the sizes
    const bool checked = std::string(how).ends_with("checksum=yes");
    EXPECT_EQ(stats.gpu_staged_values, shm && !checked ? small : stats.gpu_values);
  }
}

TEST_P(GpuTransfers, MixedBatches) {
  // Keys of host memory, of device memory and of both, in pieces of odd sizes.
  constexpr size_t kKeys = 40;
  std::vector<std::string> names, values;
  std::vector<std::unique_ptr<gpu::DeviceBlock>> on_device;
  std::vector<std::string> on_host(kKeys);
  std::vector<std::vector<Buffer>> into(kKeys);
  std::vector<std::vector<ConstBuffer>> from(kKeys);
  std::vector<std::string_view> keys;
  for (size_t i = 0; i < kKeys; ++i) {
    names.push_back("mixed:" + std::to_string(i));
    const size_t bytes = i % 3 == 0 ? 1000 + 8 * i : 100'000 + 8 * random.Below(20'000);
    values.push_back(Stamped(bytes, i));
    on_device.push_back(OnDevice(values[i]));
    on_host[i] = values[i];
    size_t at = 0;
    while (at < bytes) {
      const size_t part = std::min(bytes - at, size_t{1} + random.Below(bytes / 3));
      const bool device_piece = i % 4 == 0 || (i % 4 != 1 && random.Chance(0.5));
      char* const side = device_piece ? on_device[i]->data() : on_host[i].data();
      from[i].push_back({side + at, part});
      into[i].push_back({side + at, part});
      at += part;
      if (random.Chance(0.1)) into[i].push_back({nullptr, 0});
    }
  }
  for (const std::string& name : names) keys.push_back(name);
  for (const KeyResult& put : client->BatchPutFromMulti(keys, from)) {
    EXPECT_TRUE(put.ok()) << put.message;
  }
  for (size_t i = 0; i < kKeys; ++i) {
    std::string plain;
    ASSERT_TRUE(client->Get(names[i], &plain).ok());
    ASSERT_TRUE(plain == values[i]) << names[i];
    Put(on_device[i]->data(), Poison(values[i].size()));
    std::fill(on_host[i].begin(), on_host[i].end(), '\xa5');
  }
  names[5] = "nothing";
  keys[5] = names[5];
  into[6].resize(1);  // too small
  const auto results = client->BatchGetIntoMulti(keys, into);
  for (size_t i = 0; i < kKeys; ++i) {
    SCOPED_TRACE(i);
    std::string expected = values[i];
    if (i == 5) {
      EXPECT_EQ(results[i].code, Code::kMiss);
      expected = Poison(expected.size());
    } else if (i == 6) {
      EXPECT_EQ(results[i].code, Code::kBufferTooSmall);
      EXPECT_EQ(results[i].bytes, values[i].size());
      expected = Poison(expected.size());
    } else {
      EXPECT_TRUE(results[i].ok()) << results[i].message;
    }
    const std::string device_side = Get(on_device[i]->data(), expected.size());
    size_t at = 0;
    for (const Buffer& piece : into[i]) {
      const auto* data = static_cast<const char*>(piece.data);
      const bool host = data >= on_host[i].data() && data < on_host[i].data() + on_host[i].size();
      const std::string& side = host ? on_host[i] : device_side;
      EXPECT_EQ(side.compare(at, piece.size, expected, at, piece.size), 0) << at;
      at += piece.size;
    }
  }
}

TEST_P(GpuTransfers, ThousandsOfPages) {
  // One value that goes to pages of 4 KiB in any order, and comes back from there.
  constexpr size_t kPage = 4096, kPages = 2000;
  const std::string value = Stamped(kPage * kPages, 1);
  ASSERT_TRUE(client->Set("pages", value).ok());
  const auto cache = Room(2 * kPage * kPages);
  std::vector<size_t> slots(2 * kPages);
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = i;
  for (size_t i = slots.size() - 1; i > 0; --i) std::swap(slots[i], slots[random.Below(i + 1)]);
  slots.resize(kPages);
  std::vector<std::vector<Buffer>> into(1);
  std::vector<std::vector<ConstBuffer>> from(1);
  std::string expected = Poison(2 * kPage * kPages);
  for (size_t i = 0; i < kPages; ++i) {
    char* const page = cache->data() + slots[i] * kPage;
    into[0].push_back({page, kPage});
    from[0].push_back({page, kPage});
    expected.replace(slots[i] * kPage, kPage, value, i * kPage, kPage);
  }
  const std::string_view keys[] = {"pages"};
  const std::string_view copies[] = {"copy"};
  EXPECT_TRUE(client->BatchGetIntoMulti(keys, into)[0].ok());
  EXPECT_TRUE(Get(cache->data(), expected.size()) == expected);
  EXPECT_TRUE(client->BatchPutFromMulti(copies, from)[0].ok());
  std::string copied;
  ASSERT_TRUE(client->Get("copy", &copied).ok());
  EXPECT_TRUE(copied == value);
  if (GetParam() == gpu::Kind::kDouble) {
    EXPECT_EQ(Double().counts().many, 2u) << "launches";
    EXPECT_EQ(Double().counts().many_pieces, 2 * kPages);
  }
}

TEST_P(GpuTransfers, SubmittedOperations) {
  const std::string value = Stamped(200'000, 1);
  const auto from = OnDevice(value);
  const auto into = Room(value.size());
  Operation put;
  put.kind = Operation::Kind::kPutFrom;
  put.keys = {"k"};
  put.from = {{{from->data(), value.size()}}};
  ASSERT_TRUE(client->SubmitFuture(put).get()[0].ok());
  Operation get;
  get.keys = {"k"};
  get.into = {{{into->data(), value.size()}}};
  ASSERT_TRUE(client->SubmitFuture(get).get()[0].ok());
  EXPECT_TRUE(Holds(*into, value, value.size()));
}

TEST_P(GpuTransfers, RegisteredDeviceMemory) {
  const std::string value = Stamped(200'000, 1);
  const auto block = OnDevice(value);
  ASSERT_TRUE(client->RegisterBuffer(block->data(), block->bytes()).ok());
  EXPECT_EQ(client->RegisterBuffer(block->data() + 100, 10).code, Code::kInvalidArgument);
  ASSERT_TRUE(PutOne(*client, "k", block->data(), value.size()).ok());
  Put(block->data(), Poison(value.size()));
  ASSERT_TRUE(GetOne(*client, "k", block->data(), value.size()).ok());
  EXPECT_TRUE(Holds(*block, value, value.size()));
  EXPECT_TRUE(client->UnregisterBuffer(block->data()).ok());
  EXPECT_EQ(client->UnregisterBuffer(block->data()).code, Code::kInvalidArgument);
}

TEST_P(GpuTransfers, SwitchedOffDeviceMemoryIsAClearError) {
  client = server->Connect("gpu=no");
  const std::string value = Stamped(100'000, 1);
  ASSERT_TRUE(client->Set("k", value).ok());
  const auto block = Room(value.size());
  std::string host = Poison(value.size());
  const std::string_view keys[] = {"k", "k"};
  const Buffer into[] = {{block->data(), value.size()}, {host.data(), host.size()}};
  const auto got = client->BatchGetInto(keys, into);
  EXPECT_EQ(got[0].code, Code::kInvalidArgument);
  EXPECT_NE(got[0].message.find("gpu=auto"), std::string::npos) << got[0].message;
  EXPECT_TRUE(got[1].ok()) << "host memory beside it";
  EXPECT_TRUE(host == value);
  EXPECT_TRUE(Holds(*block, "", value.size()));
  const KeyResult put = PutOne(*client, "other", block->data(), value.size());
  EXPECT_EQ(put.code, Code::kInvalidArgument);
  EXPECT_EQ(client->Exists("other").code, Code::kMiss);
  EXPECT_EQ(client->RegisterBuffer(block->data(), 4096).code, Code::kInvalidArgument);
}

TEST_P(GpuTransfers, ManyThreadsAndEviction) {
  StartServer({{"maxmemory", "40mb"}, {"region-size", "4mb"}, {"arena-size", "4mb"},
               {"lease-default", "0"}});
  constexpr size_t kKeys = 60, kMost = 400'000, kBatch = 16;
  std::vector<std::atomic<uint64_t>> acknowledged(kKeys);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> good{0}, bad{0};
  const auto on_device = [&](const std::string& bytes) { return OnDevice(bytes); };
  const auto write = [&](size_t first) {
    test::Random mine(random.seed() + first);
    const auto writer = server->Connect("transport=shm&connections=1");
    const auto block = on_device(Poison(kMost));
    for (uint64_t version = 1; !stop; ++version) {
      const size_t key = first + mine.Below(kKeys / 2) * 2;
      const std::string value = Stamped(66'000 + 8 * mine.Below(40'000), key, version);
      Put(block->data(), value);
      const KeyResult put = PutOne(*writer, std::to_string(key), block->data(), value.size());
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
    const auto block = on_device(Poison(kBatch * kMost));
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
        const std::string got = Get(block->data() + i * kMost, results[i].bytes);
        Stamp stamp;
        std::string wrong = CheckStamped(got.data(), got.size(), keys[i], &stamp);
        if (wrong.empty() && stamp.version < least[i]) wrong = "an older version";
        if (wrong.empty()) {
          ++good;
        } else if (++bad <= 5) {
          ADD_FAILURE() << wrong;
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
  EXPECT_TRUE(Eventually([&] { return good > 200; }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bad, 0u);
}

INSTANTIATE_DEVICES(GpuTransfers);

// --- what only the double can be told ------------------------------------------------------------

class GpuFailures : public GpuClientTest {
 protected:
  GpuFailures() { hidden = false; }
};

// The generation of a key's version now, and whether it is still that.
class GenerationWatch {
 public:
  GenerationWatch(LiveServer& server, std::string_view key) : session_(server) {
    EXPECT_TRUE(session_.Attach());
    const std::string reply = session_.Run({"KV.LOCATE", "1", key});
    unsigned long long slot = 0;
    EXPECT_EQ(std::sscanf(reply.c_str(), "%*u\n%*u\n%*u\n%llu\n%llu", &slot, &generation_), 2)
        << reply;
    mapping_ = Mapping::Create(session_.generations(), session_.generations_bytes(), false);
    counter_ = reinterpret_cast<const protocol::GenerationCounter*>(mapping_->data()) + slot;
  }
  bool Changed() const { return protocol::LoadGeneration(*counter_) != generation_; }

 private:
  RawSession session_;
  unsigned long long generation_ = 0;
  std::shared_ptr<Mapping> mapping_;
  const protocol::GenerationCounter* counter_ = nullptr;
};

TEST_P(GpuFailures, AValueThatChangesUnderTheCopyIsReadAgain) {
  for (const bool again : {true, false}) {
    SCOPED_TRACE(again);
    StartServer({{"lease-default", "0"}});
    const auto other = server->Connect("transport=shm&gpu=no");
    const std::string old_value = Stamped(200'000, 1, 1), new_value = Stamped(150'000, 1, 2);
    ASSERT_TRUE(other->Set("k", old_value).ok());
    const GenerationWatch watch(*server, "k");
    const auto into = Room(old_value.size());
    Double().Pause();
    KeyResult result;
    const uint64_t before = Double().counts().one + Double().counts().many;
    std::thread reader(
        [&] { result = GetOne(*client, "k", into->data(), old_value.size()); });
    EXPECT_TRUE(Eventually(
        [&] { return Double().counts().one + Double().counts().many > before; }));
    EXPECT_TRUE(std::string(into->data(), old_value.size()) == Poison(old_value.size()))
        << "it was not the device that copied";
    ASSERT_TRUE(again ? other->Set("k", new_value).ok() : other->Del("k").ok());
    EXPECT_TRUE(Eventually([&] { return watch.Changed(); }));
    Double().Resume();
    reader.join();
    EXPECT_EQ(client->stats().generation_retries, 1u);
    if (again) {
      ASSERT_TRUE(result.ok()) << result.message;
      EXPECT_EQ(result.bytes, new_value.size());
      EXPECT_TRUE(Get(into->data(), new_value.size()) == new_value);
    } else {
      EXPECT_EQ(result.code, Code::kMiss);
    }
  }
}

TEST_P(GpuFailures, AWriteAppearsWhenTheDeviceHasCopied) {
  const std::string value = Stamped(200'000, 1);
  const auto source = OnDevice(value);
  Double().Pause();
  KeyResult result;
  const uint64_t before = Double().counts().one + Double().counts().many;
  std::thread writer([&] { result = PutOne(*client, "k", source->data(), value.size()); });
  EXPECT_TRUE(Eventually([&] { return Double().counts().one + Double().counts().many > before; }));
  const auto other = server->Connect("gpu=no");
  for (int look = 0; look < 50; ++look) {
    EXPECT_EQ(other->Exists("k").code, Code::kMiss);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Double().Resume();
  writer.join();
  EXPECT_TRUE(result.ok()) << result.message;
  std::string plain;
  ASSERT_TRUE(other->Get("k", &plain).ok());
  EXPECT_TRUE(plain == value);
}

TEST_P(GpuFailures, EveryCallThatMayFail) {
  const std::string value = Stamped(200'000, 1), small = Stamped(5000, 2);
  ASSERT_TRUE(client->Set("k", value).ok());
  ASSERT_TRUE(client->Set("small", small).ok());
  const auto source = OnDevice(value);
  const auto into = Room(value.size()), into_small = Room(small.size());
  std::string host = Poison(value.size());
  bool whole = false;
  for (uint64_t calls = 0; !whole && calls < 100; ++calls) {
    SCOPED_TRACE(calls);
    Put(into->data(), Poison(value.size()));
    host = Poison(value.size());
    const std::string_view keys[] = {"k", "small", "k"};
    const Buffer buffers[] = {{into->data(), value.size()},
                              {into_small->data(), small.size()},
                              {host.data(), host.size()}};
    Double().FailCallAfter(calls);
    const auto got = client->BatchGetInto(keys, buffers);
    EXPECT_TRUE(got[2].ok()) << got[2].message;
    EXPECT_TRUE(host == value) << "host memory beside it";
    for (const size_t i : {0, 1}) {
      if (got[i].ok()) continue;
      EXPECT_EQ(got[i].code, Code::kDeviceError);
      EXPECT_NE(got[i].message.find("the test wants"), std::string::npos) << got[i].message;
    }
    whole = got[0].ok() && got[1].ok();
    const std::string name = "put:" + std::to_string(calls);
    const KeyResult put = PutOne(*client, name, source->data(), value.size());
    Double().FailCallAfter(UINT32_MAX);
    whole &= put.ok();
    EXPECT_TRUE(!got[0].ok() || Holds(*into, value, value.size()));
    EXPECT_TRUE(!got[1].ok() || Holds(*into_small, small, small.size()));
    if (put.ok()) {
      std::string plain;
      ASSERT_TRUE(client->Get(name, &plain).ok());
      EXPECT_TRUE(plain == value);
    } else {
      EXPECT_EQ(put.code, Code::kDeviceError) << put.message;
      EXPECT_EQ(client->Exists(name).code, Code::kMiss);
    }
  }
  EXPECT_TRUE(whole) << "something fails for ever";
}

TEST_P(GpuFailures, ADeviceThatIsLost) {
  const std::string value = Stamped(200'000, 1);
  const auto source = OnDevice(value);
  const auto into = Room(value.size());
  ASSERT_TRUE(client->Set("k", value).ok());
  std::string host = Poison(value.size());
  const std::string_view keys[] = {"k", "k"};
  const Buffer buffers[] = {{into->data(), value.size()}, {host.data(), host.size()}};
  Double().LoseAfter(0);
  const auto got = client->BatchGetInto(keys, buffers);
  EXPECT_EQ(got[0].code, Code::kDeviceError);
  EXPECT_NE(got[0].message.find("lost"), std::string::npos) << got[0].message;
  EXPECT_TRUE(got[1].ok()) << got[1].message;
  EXPECT_TRUE(host == value);
  EXPECT_EQ(PutOne(*client, "new", source->data(), value.size()).code, Code::kDeviceError);
  EXPECT_EQ(client->Exists("new").code, Code::kMiss);
}

TEST_P(GpuFailures, ABufferBeyondItsMemoryFailsAlone) {
  const std::string value = Stamped(3 << 20, 1);
  ASSERT_TRUE(client->Set("k", value).ok());
  const auto good = Room(value.size()), small = Room(1 << 20);
  const std::string_view keys[] = {"k", "k"};
  const Buffer buffers[] = {{good->data(), value.size()}, {small->data(), value.size()}};
  const auto got = client->BatchGetInto(keys, buffers);
  EXPECT_TRUE(got[0].ok()) << got[0].message;
  EXPECT_TRUE(Holds(*good, value, value.size()));
  EXPECT_EQ(got[1].code, Code::kInvalidArgument);
  EXPECT_TRUE(Holds(*small, "", 1 << 20));
}

INSTANTIATE_TEST_SUITE_P(On, GpuFailures, testing::Values(gpu::Kind::kDouble), gpu::KindName);

// --- other devices -------------------------------------------------------------------------------

class GpuKinds : public testing::TestWithParam<gpu::HostDeviceOptions> {};

TEST_P(GpuKinds, MixedBatchesOnSeveral) {
  const auto devices = gpu::MakeHostDevices(GetParam());
  std::vector<gpu::Device*> pointers;
  for (const auto& device : devices) pointers.push_back(device.get());
  ReplaceGpuDevices(pointers);
  {
    LiveServer server;
    const auto client = server.Connect("transport=shm");
    std::vector<std::unique_ptr<gpu::DeviceBlock>> blocks;
    std::vector<std::string> values, names;
    std::vector<std::string_view> keys;
    std::vector<std::vector<ConstBuffer>> from;
    std::vector<std::vector<Buffer>> into;
    for (size_t i = 0; i < 12; ++i) {
      std::string value(i % 3 == 0 ? 4096 : 700'000, 0);
      FillStamped(value.data(), value.size(), {i, 1});
      names.push_back("key" + std::to_string(i));
      from.emplace_back();
      into.emplace_back();
      const size_t half = value.size() / 2;
      for (size_t part = 0; part < 2; ++part) {
        // Halves of one key may be on different devices.
        gpu::Device& device = *devices[(i + part * (i % 2)) % devices.size()];
        auto block = device.NewDeviceBlock(half);
        ASSERT_TRUE(block);
        std::memcpy((*block)->data(), value.data() + part * half, half);
        from[i].push_back({(*block)->data(), half});
        into[i].push_back({(*block)->data(), half});
        blocks.push_back(std::move(*block));
      }
      values.push_back(std::move(value));
    }
    for (const std::string& name : names) keys.push_back(name);
    for (const auto& put : client->BatchPutFromMulti(keys, from)) EXPECT_TRUE(put.ok()) << put.message;
    for (const auto& block : blocks) std::memset(block->data(), 0xa5, block->bytes());
    for (const auto& got : client->BatchGetIntoMulti(keys, into)) EXPECT_TRUE(got.ok()) << got.message;
    for (size_t i = 0; i < values.size(); ++i) {
      const std::string got = std::string(blocks[2 * i]->data(), values[i].size() / 2) +
                              std::string(blocks[2 * i + 1]->data(), values[i].size() / 2);
      EXPECT_TRUE(got == values[i]) << i;
    }
  }
  ReplaceGpuDevices({});
}

gpu::HostDeviceOptions Devices(int count, gpu::Link link, bool pins_read_only) {
  gpu::HostDeviceOptions options;
  options.devices = count;
  options.link = link;
  options.pins_read_only = pins_read_only;
  options.pinned_offset = pins_read_only ? 1l << 46 : 0;
  return options;
}
INSTANTIATE_TEST_SUITE_P(
    Double, GpuKinds,
    testing::Values(Devices(1, gpu::Link::kSame, false), Devices(2, gpu::Link::kNvlink, true),
                    Devices(3, gpu::Link::kNone, true), Devices(2, gpu::Link::kNone, false)),
    [](const auto& test) {
      return std::to_string(test.param.devices) + "Linked" + std::string(NameOf(test.param.link)) +
             (test.param.pins_read_only ? "" : "WithoutPins");
    });

}  // namespace
}  // namespace moonpool::client
