#include "storage/ssd_index.h"

#include <rocksdb/cache.h>
#include <rocksdb/table.h>

#include <algorithm>
#include <cstring>

#include "storage/ssd_key.h"

namespace moonpool::storage {

namespace {

constexpr char kVersion = 'm', kErased = 'd', kVoid = 'v', kSmall = 's';
// Of who reads from one end to the other.
constexpr size_t kReadahead = 2 << 20;
constexpr const char* kNumbers[] = {"!next", "!floor", "!below"};
constexpr const char* kState = "!state";
constexpr const char* kHot = "!hot";

const char* KeyOf(SsdIndex::Number number) {
  return kNumbers[static_cast<size_t>(number)];
}

std::string NumberKey(char prefix, uint64_t number) {
  std::string key(9, prefix);
  StoreBigEndian(key.data() + 1, number);
  return key;
}

template <typename T>
void Append(std::string* to, T value) {
  to->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Takes values off the front of a string; once it is too short everything is zero and !ok().
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}
  template <typename T>
  T Take() {
    T value{};
    if (text_.size() < sizeof(value)) {
      ok_ = false;
    } else {
      std::memcpy(&value, text_.data(), sizeof(value));
      text_.remove_prefix(sizeof(value));
    }
    return value;
  }
  std::string_view rest() const { return text_; }
  bool ok() const { return ok_; }

 private:
  std::string_view text_;
  bool ok_ = true;
};

tl::unexpected<Error> FailFormat() {
  return Fail(ErrorCode::kCorrupt, "an entry of the SSD's index is not what was written");
}

std::string ErasedEntry(uint64_t length, uint32_t chunks) {
  std::string entry;
  Append(&entry, length);
  Append(&entry, chunks);
  return entry;
}

std::string_view View(const rocksdb::Slice& slice) {
  return {slice.data(), slice.size()};
}

}  // namespace

void SsdChange::Put(const SsdRecord& record) {
  std::string entry;
  entry.reserve(20 + record.key.size());
  Append(&entry, record.length);
  Append(&entry, record.expiry_ms);
  Append(&entry, record.chunk_bytes);
  entry += record.key;
  steps_.push_back(
      {Step::Kind::kPut, record.id, record.length, record.chunk_bytes, std::move(entry)});
}

void SsdChange::Erase(uint64_t id, uint64_t length, uint32_t chunk_bytes) {
  steps_.push_back({Step::Kind::kErase, id, length, chunk_bytes,
                    ErasedEntry(length, SsdChunks(length, chunk_bytes))});
}

void SsdChange::EraseBelow(uint64_t floor) {
  steps_.push_back({Step::Kind::kEraseBelow, floor, 0, 0, {}});
  erases_below_ = std::max(erases_below_, floor);
}

void SsdChange::PutVoid(const SsdVoid& v) {
  std::string entry;
  Append(&entry, v.floor);
  Append(&entry, v.is_glob);
  entry += v.text;
  steps_.push_back({Step::Kind::kPutVoid, v.sequence, 0, 0, std::move(entry)});
}

void SsdChange::EraseVoid(uint64_t sequence) {
  steps_.push_back({Step::Kind::kEraseVoid, sequence, 0, 0, {}});
}

void SsdIndex::Batch::Add(const SsdChange& change) {
  using Kind = SsdChange::Step::Kind;
  for (const SsdChange::Step& step : change.steps_) {
    switch (step.kind) {
      case Kind::kPut:
        batch_.Put(NumberKey(kVersion, step.id), step.entry);
        break;
      case Kind::kErase:
        batch_.Delete(NumberKey(kVersion, step.id));
        batch_.Put(NumberKey(kErased, step.id), step.entry);
        break;
      case Kind::kEraseBelow:
        batch_.DeleteRange(NumberKey(kVersion, 0), NumberKey(kVersion, step.id));
        batch_.DeleteRange(NumberKey(kErased, 0), NumberKey(kErased, step.id));
        Set(Number::kBelow, step.id);
        break;
      case Kind::kPutVoid:
        batch_.Put(NumberKey(kVoid, step.id), step.entry);
        break;
      case Kind::kEraseVoid:
        batch_.Delete(NumberKey(kVoid, step.id));
        break;
    }
  }
}

void SsdIndex::Batch::Erase(const SsdPayload::Erased& version) {
  batch_.Delete(NumberKey(kVersion, version.id));
  batch_.Put(NumberKey(kErased, version.id), ErasedEntry(version.length, version.chunks));
}

void SsdIndex::Batch::EraseVoid(uint64_t sequence) {
  batch_.Delete(NumberKey(kVoid, sequence));
}

void SsdIndex::Batch::Set(Number number, uint64_t value) {
  std::string entry;
  Append(&entry, value);
  batch_.Put(KeyOf(number), entry);
}

void SsdIndex::Batch::Unset(Number number) {
  batch_.Delete(KeyOf(number));
}

void SsdIndex::Batch::SetState(const State& state) {
  std::string entry;
  Append(&entry, state.clean);
  Append(&entry, state.sync);
  entry += state.boot_id;
  batch_.Put(kState, entry);
}

void SsdIndex::Batch::SetHot(std::span<const uint64_t> ids) {
  batch_.Put(kHot, {reinterpret_cast<const char*>(ids.data()), ids.size_bytes()});
}

void SsdIndex::Batch::PutSmall(std::string_view key, int64_t expiry_ms, std::string_view value) {
  const std::string head(1, kSmall);
  const rocksdb::Slice name[] = {head, {key.data(), key.size()}};
  const rocksdb::Slice entry[] = {{reinterpret_cast<const char*>(&expiry_ms), sizeof(expiry_ms)},
                                  {value.data(), value.size()}};
  batch_.Put(rocksdb::SliceParts(name, 2), rocksdb::SliceParts(entry, 2));
}

void SsdIndex::Batch::ClearSmall() {
  batch_.DeleteRange(std::string(1, kSmall), std::string(1, kSmall + 1));
}

void SsdIndex::Batch::ForgetErased(uint64_t id) {
  batch_.Delete(NumberKey(kErased, id));
}

rocksdb::Options SsdIndex::DatabaseOptions(const SsdOptions& options, const SsdShared& shared,
                                           std::shared_ptr<SsdWatch> watch) {
  rocksdb::Options result = SsdDatabaseOptions(options, shared, std::move(watch));
  // A million records are about 100 MB.
  result.write_buffer_size = 4 << 20;
  result.max_write_buffer_number = 3;
  result.target_file_size_base = 16 << 20;
  result.max_bytes_for_level_base = 64 << 20;
  result.compression = rocksdb::kNoCompression;
  result.bytes_per_sync = result.wal_bytes_per_sync = 1 << 20;
  // A log with a hole may lack an erasure: better to start empty than to go on without it.
  result.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  rocksdb::BlockBasedTableOptions table;
  // Read from one end to the other at a start, and in small pieces by the collection of garbage.
  table.block_cache = rocksdb::NewLRUCache(1 << 20, 0);
  table.block_size = 16 << 10;
  result.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return result;
}

Result<std::unique_ptr<SsdIndex>> SsdIndex::Open(const SsdOptions& options,
                                                 const SsdShared& shared) {
  auto watch = std::make_shared<SsdWatch>(options.niceness);
  const std::string path = options.directory + "/index";
  rocksdb::DB* db = nullptr;
  const auto opened = rocksdb::DB::Open(DatabaseOptions(options, shared, watch), path, &db);
  if (!opened.ok()) return FailRocks("opening " + path, opened);
  watch->Watch(db);
  return std::unique_ptr<SsdIndex>(
      new SsdIndex(options.sync, std::move(watch), std::unique_ptr<rocksdb::DB>(db)));
}

SsdIndex::SsdIndex(bool sync, std::shared_ptr<SsdWatch> watch, std::unique_ptr<rocksdb::DB> db)
    : sync_(sync), watch_(std::move(watch)), db_(std::move(db)) {}

Status SsdIndex::Write(Batch& batch, bool durable) {
  rocksdb::WriteOptions options;
  options.sync = sync_ || durable;
  const auto status = db_->Write(options, &batch.batch_);
  if (!status.ok()) return watch_->FailWrite("writing the SSD's index", status);
  return {};
}

Result<std::optional<uint64_t>> SsdIndex::Get(Number number) const {
  std::string value;
  const auto status = db_->Get({}, KeyOf(number), &value);
  if (status.IsNotFound()) return std::nullopt;
  if (!status.ok()) return FailRocks("reading the SSD's index", status);
  Reader reader(value);
  const auto result = reader.Take<uint64_t>();
  if (!reader.ok()) return FailFormat();
  return result;
}

Result<std::optional<SsdIndex::State>> SsdIndex::GetState() const {
  std::string value;
  const auto status = db_->Get({}, kState, &value);
  if (status.IsNotFound()) return std::nullopt;
  if (!status.ok()) return FailRocks("reading the SSD's index", status);
  Reader reader(value);
  State state;
  state.clean = reader.Take<uint8_t>() != 0;
  state.sync = reader.Take<uint8_t>() != 0;
  state.boot_id = reader.rest();
  if (!reader.ok()) return FailFormat();
  return state;
}

Result<std::vector<uint64_t>> SsdIndex::Hot() const {
  std::string value;
  const auto status = db_->Get({}, kHot, &value);
  if (status.IsNotFound()) return std::vector<uint64_t>();
  if (!status.ok()) return FailRocks("reading the SSD's index", status);
  std::vector<uint64_t> ids(value.size() / sizeof(uint64_t));
  if (!ids.empty()) std::memcpy(ids.data(), value.data(), ids.size() * sizeof(uint64_t));
  return ids;
}

Status SsdIndex::ForEach(
    char prefix, std::string_view first, size_t readahead_bytes,
    const std::function<Result<bool>(std::string_view key, std::string_view value)>& visit) const {
  const std::string end(1, static_cast<char>(prefix + 1));
  const rocksdb::Slice end_slice = end;
  rocksdb::ReadOptions options;
  options.iterate_upper_bound = &end_slice;
  options.fill_cache = false;
  options.readahead_size = readahead_bytes;
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(options));
  for (it->Seek({first.data(), first.size()}); it->Valid(); it->Next()) {
    std::string_view key = View(it->key());
    key.remove_prefix(1);
    const Result<bool> more = visit(key, View(it->value()));
    if (!more) return tl::unexpected(more.error());
    if (!*more) return {};
  }
  if (!it->status().ok()) return FailRocks("reading the SSD's index", it->status());
  return {};
}

Result<std::vector<SsdVoid>> SsdIndex::Voids() const {
  std::vector<SsdVoid> voids;
  Status read = ForEach(kVoid, std::string(1, kVoid), 0, [&](auto key, auto value) -> Result<bool> {
    Reader reader(value);
    SsdVoid v;
    v.floor = reader.Take<uint64_t>();
    v.is_glob = reader.Take<uint8_t>() != 0;
    v.text = reader.rest();
    if (!reader.ok() || key.size() != 8) return FailFormat();
    v.sequence = LoadBigEndian<uint64_t>(key.data());
    voids.push_back(std::move(v));
    return true;
  });
  if (!read) return tl::unexpected(read.error());
  return voids;
}

Status SsdIndex::ForEachVersion(uint64_t first,
                                const std::function<Status(const SsdRecord&)>& visit) const {
  SsdRecord record;
  return ForEach(
      kVersion, NumberKey(kVersion, first), kReadahead, [&](auto key, auto value) -> Result<bool> {
        Reader reader(value);
        record.length = reader.Take<uint64_t>();
        record.expiry_ms = reader.Take<int64_t>();
        record.chunk_bytes = reader.Take<uint32_t>();
        record.key = reader.rest();
        if (!reader.ok() || key.size() != 8 || record.length == 0 || record.chunk_bytes == 0) {
          return FailFormat();
        }
        record.id = LoadBigEndian<uint64_t>(key.data());
        if (Status visited = visit(record); !visited) return tl::unexpected(visited.error());
        return true;
      });
}

Status SsdIndex::ForEachSmall(const std::function<void(std::string_view key, int64_t expiry_ms,
                                                       std::string_view value)>& visit) const {
  return ForEach(kSmall, std::string(1, kSmall), kReadahead,
                 [&](auto key, auto value) -> Result<bool> {
                   Reader reader(value);
                   const auto expiry_ms = reader.Take<int64_t>();
                   if (!reader.ok()) return FailFormat();
                   visit(key, expiry_ms, reader.rest());
                   return true;
                 });
}

Result<std::vector<SsdPayload::Erased>> SsdIndex::ErasedFrom(uint64_t first, size_t limit) const {
  std::vector<SsdPayload::Erased> erased;
  Status read =
      ForEach(kErased, NumberKey(kErased, first), 0, [&](auto key, auto value) -> Result<bool> {
        Reader reader(value);
        SsdPayload::Erased version{};
        version.length = reader.Take<uint64_t>();
        version.chunks = reader.Take<uint32_t>();
        if (!reader.ok() || key.size() != 8) return FailFormat();
        version.id = LoadBigEndian<uint64_t>(key.data());
        erased.push_back(version);
        return erased.size() < limit;
      });
  if (!read) return tl::unexpected(read.error());
  return erased;
}

Status SsdIndex::Flush() {
  const auto status = db_->Flush(rocksdb::FlushOptions());
  if (!status.ok()) return watch_->FailWrite("flushing the SSD's index", status);
  return {};
}

uint64_t SsdIndex::disk_bytes() const {
  uint64_t bytes = 0;
  db_->GetIntProperty(rocksdb::DB::Properties::kTotalSstFilesSize, &bytes);
  return bytes;
}

uint64_t SsdIndex::memory_bytes() const {
  uint64_t total = 0, bytes = 0;
  using Properties = rocksdb::DB::Properties;
  for (const std::string& property :
       {Properties::kSizeAllMemTables, Properties::kEstimateTableReadersMem,
        Properties::kBlockCacheUsage}) {
    if (db_->GetIntProperty(property, &bytes)) total += bytes;
  }
  return total;
}

}  // namespace moonpool::storage
