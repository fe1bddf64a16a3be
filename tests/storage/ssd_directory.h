// What the tests of the SSD store share: a directory that goes away, and a store that tells what
// it found.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "storage/ssd_store.h"
#include "tests/storage/ssd_values.h"
#include "tests/storage/store.h"

namespace moonpool::storage {

class SsdDirectory {
 public:
  SsdDirectory() {
    std::string name = std::filesystem::temp_directory_path() / "moonpool-ssd-XXXXXX";
    MOONPOOL_CHECK(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~SsdDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  SsdDirectory(const SsdDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline SsdOptions SmallSsd(const SsdDirectory& directory) {
  return SmallSsd(directory.path());
}

// A store with what it found when it was opened.
struct OpenSsd {
  explicit OpenSsd(const SsdOptions& options, int64_t now_ms = 1) {
    auto opened = SsdStore::Open(options);
    if (!opened) {
      ADD_FAILURE() << opened.error().message;
      return;
    }
    store = std::move(*opened);
    auto recovered = store->Recover(
        now_ms, [this](const SsdRecord& record) { found[record.id] = record; },
        [this](std::string_view key, int64_t expiry_ms, std::string_view value) {
          small[std::string(key)] = {expiry_ms, std::string(value)};
        });
    if (!recovered) {
      ADD_FAILURE() << recovered.error().message;
      store.reset();
      return;
    }
    recovery = *recovered;
    EXPECT_EQ(recovery.versions, found.size());
  }
  SsdStore* operator->() const { return store.get(); }

  std::unique_ptr<SsdStore> store;
  SsdStore::Recovery recovery;
  std::map<uint64_t, SsdRecord> found;
  std::map<std::string, std::pair<int64_t, std::string>> small;
};

// Writes a version with its record.
inline SsdRecord PutVersion(SsdStore& store, const SsdOptions& options, std::string_view key,
                            uint64_t length, int64_t expiry_ms = 0) {
  SsdRecord record{store.NextId(), std::string(key), length, expiry_ms, options.chunk_bytes};
  Status written = store.WritePayload(record.id, SsdValue(record.id, length));
  EXPECT_TRUE(written) << written.error().message;
  SsdChange change;
  change.Put(record);
  Status applied = store.Apply(change);
  EXPECT_TRUE(applied) << applied.error().message;
  return record;
}

inline Status EraseVersion(SsdStore& store, const SsdRecord& record) {
  SsdChange change;
  change.Erase(record.id, record.length, record.chunk_bytes);
  return store.Apply(change);
}

inline Result<std::string> ReadVersion(SsdStore& store, const SsdRecord& record) {
  std::string value(record.length, '\0');
  for (uint64_t at = 0; at < record.length; at += record.chunk_bytes) {
    Status read = store.ReadChunk(record, static_cast<uint32_t>(at / record.chunk_bytes),
                                  std::span(value).subspan(at));
    if (!read) return tl::unexpected(read.error());
  }
  return value;
}

// The value that was written, or an error: kNotFound, kCorrupt or none at all.
inline testing::AssertionResult IsThere(SsdStore& store, const SsdRecord& record) {
  const Result<std::string> value = ReadVersion(store, record);
  if (!value) return testing::AssertionFailure() << record.id << ": " << value.error().message;
  return Same(*value, SsdValue(record.id, record.length));
}

inline void CollectAll(SsdStore& store) {
  for (int i = 0; i < 100000 && store.CollectGarbage(); ++i) {
  }
}

}  // namespace moonpool::storage
