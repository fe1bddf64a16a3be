// Values that come up cold live beside those that are written, without pushing them out.
#include <string>
#include <utility>
#include <vector>

#include "tests/storage/arena_client.h"
#include "tests/storage/tiered_tenant.h"

namespace moonpool::storage {
namespace {

constexpr SessionId kSession = 7;

// A client that writes to its arenas, and one that scans the SSD.
class SsdTierColdTest : public testing::Test {
 protected:
  void SetUp() override {
    t_.options.queue_bytes = 4 * kMiB;
    t_.Open();
    for (uint64_t key = 0; key < kOld; ++key) t_.Set(Numbered(key), key, 1);
    for (uint64_t key = 0; key < kOld; ++key) t_.MoveDown(Numbered(key));
    client_ = std::make_unique<ArenaClient>(*t_.tenant, kSession);
    t_.tenant->pool().set_on_gone([this](uint32_t region) {
      MutexLock lock(mu_);
      gone_.push_back(region);
    });
  }
  void TearDown() override { client_.reset(); }

  void Write(uint64_t key) {
    ASSERT_TRUE(Eventually([&] {
      t_.KeepUp();
      Unmap();
      auto handle = t_.tenant->ReserveInArena(kSession, kLength, UnixNowMs());
      if (!handle) {
        EXPECT_EQ(handle.error().code, ErrorCode::kBusy) << handle.error().message;
        return false;
      }
      std::string bytes(kLength, '\0');
      FillStamped(bytes.data(), kLength, {key, 1});
      client_->Commit(std::move(*handle), Numbered(key), bytes);
      return true;
    }));
  }
  // What a client does before it writes.
  void Unmap() {
    MutexLock lock(mu_);
    for (const uint32_t region : std::exchange(gone_, {})) client_->Unmap(region);
  }

  static constexpr uint64_t kOld = 600;  // nearly twice what memory holds
  TieredTenant t_;
  std::unique_ptr<ArenaClient> client_;
  Mutex mu_;
  std::vector<uint32_t> gone_ GUARDED_BY(mu_);  // regions that the client is to unmap
};

TEST_F(SsdTierColdTest, AScanLeavesWhatIsWrittenInMemory) {
  for (uint64_t key = kOld; key < kOld + 250; ++key) Write(key);  // 50 of 64 MB
  for (uint64_t key = 0; key < kOld; ++key) EXPECT_EQ(t_.Get(Numbered(key), key).version, 1u);
  size_t in_memory = 0;
  for (uint64_t key = kOld; key < kOld + 250; ++key) {
    in_memory += t_.WhereIs(Numbered(key)) == TieredTenant::Where::kMemory ? 1 : 0;
  }
  EXPECT_GE(in_memory, 220u);
}

}  // namespace
}  // namespace moonpool::storage
