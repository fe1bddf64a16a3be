// Keyspace: entries that go in the background, because their time is over or KV.DROP voided them.
#include <algorithm>

#include "protocol/glob.h"
#include "storage/keyspace.h"

namespace moonpool::storage {

template <typename Doomed>
size_t Keyspace::RemoveNamed(Stripe& stripe, const std::vector<std::string>& names,
                             Doomed&& doomed) {
  size_t removed = 0;
  for (const std::string& name : names) {
    const uint64_t hash = HashKey(name);
    const Table::Slot slot = stripe.table.Find(hash, name);
    if (!slot || !doomed(*slot.entry(), hash)) continue;
    Remove(stripe, hash, slot, false);
    ++removed;
  }
  return removed;
}

size_t Keyspace::DropPassedPins(Stripe& stripe, int64_t now_ms) {
  const size_t looked_at = stripe.pins.size();
  for (auto pin = stripe.pins.begin(); pin != stripe.pins.end();) {
    if (pin->second.until_ms == 0 || pin->second.until_ms > now_ms) {
      ++pin;
      continue;
    }
    if (const Table::Slot slot = stripe.table.Find(HashKey(pin->first), pin->first)) {
      slot.entry()->flags &= static_cast<uint8_t>(~Entry::kPinned);
    }
    if (pin->second.hard) {
      hard_pinned_bytes_.fetch_sub(pin->second.bytes, std::memory_order_relaxed);
    }
    pin = stripe.pins.erase(pin);
  }
  return looked_at;
}

size_t Keyspace::ExpireSome(size_t buckets, int64_t now_ms) {
  size_t expired = 0;
  std::vector<std::string> names;
  for (size_t visited = 0; visited < kStripes && buckets > 0; ++visited) {
    Stripe& stripe =
        stripes_[expire_stripe_.load(std::memory_order_relaxed) & (kStripes - 1)];
    SpinLock lock(stripe.mu);
    uint64_t cursor = stripe.expire_cursor;
    if (cursor == 0 && !stripe.pins.empty()) {
      buckets -= std::min(buckets - 1, DropPassedPins(stripe, now_ms));
    }
    if (stripe.expiring > 0) {
      names.clear();
      do {
        cursor = stripe.table.ScanExpiring(cursor, [&](Entry* entry) {
          if (entry->expired(now_ms)) names.emplace_back(entry->key());
        });
      } while (--buckets > 0 && cursor != 0);
      expired += RemoveNamed(stripe, names, [&](const Entry& entry, uint64_t) {
        return entry.expired(now_ms);
      });
    } else {
      cursor = 0;
    }
    stripe.expire_cursor = cursor;
    if (cursor == 0) expire_stripe_.fetch_add(1, std::memory_order_relaxed);
  }
  expired_.fetch_add(expired, std::memory_order_relaxed);
  return expired;
}

// --- KV.DROP ---------------------------------------------------------------------------------


bool Keyspace::Void::Matches(std::string_view key) const {
  return is_glob ? protocol::GlobMatch(text, key) : key.substr(0, text.size()) == text;
}

bool Keyspace::AddVoid(std::string text, bool is_glob) {
  LockAll();
  const bool room = voids_.size() < kMaxVoids;
  if (room) {
    voids_.push_back({++void_sequence_, std::move(text), is_glob});
    if (log_ != nullptr) log_->PutVoid(void_sequence_, voids_.back().text, is_glob);
    any_void_.store(true, std::memory_order_relaxed);
  }
  UnlockAll();
  return room;
}

bool Keyspace::Voided(const Stripe& stripe, std::string_view key, uint64_t hash) const {
  const auto written = stripe.written.find(hash);
  const uint64_t since = written == stripe.written.end() ? 0 : written->second;
  return std::any_of(voids_.begin(), voids_.end(), [&](const Void& v) {
    return v.sequence > since && v.Matches(key);
  });
}

bool Keyspace::SweepVoids(int64_t now_ms) {
  if (!any_void_.load(std::memory_order_relaxed)) return false;
  constexpr size_t kBuckets = 256;
  const size_t index = void_cursor_ % kStripes;
  uint64_t inner = void_cursor_ / kStripes;
  {
    Stripe& stripe = stripes_[index];
    SpinLock lock(stripe.mu);
    // A pass takes everything that is void by now, and retires the voids that were there when it
    // began: a void that came in the middle gets a pass of its own.
    if (void_cursor_ == 0) void_pass_ = void_sequence_;
    if (inner == 0) {
      // Writes from before the oldest void are as good as none.
      const uint64_t oldest = voids_.front().sequence;
      std::erase_if(stripe.written, [=](const auto& write) { return write.second < oldest; });
    }
    std::vector<std::string> names;
    size_t buckets = kBuckets;
    do {
      inner = stripe.table.Scan(inner, [&](Entry* entry) {
        stripe.mu.AssertHeld();
        if (entry->expired(now_ms) || Voided(stripe, entry->key(), HashKey(entry->key()))) {
          names.emplace_back(entry->key());
        }
      });
    } while (inner != 0 && --buckets > 0);
    RemoveNamed(stripe, names, [](const Entry&, uint64_t) { return true; });
  }
  const bool pass_done = inner == 0 && index + 1 == kStripes;
  void_cursor_ = pass_done ? 0 : inner != 0 ? inner * kStripes + index : index + 1;
  if (!pass_done) return true;
  LockAll();
  std::erase_if(voids_, [this](const Void& v) {
    if (v.sequence > void_pass_) return false;
    if (log_ != nullptr) log_->EraseVoid(v.sequence);
    return true;
  });
  const bool more = !voids_.empty();
  if (!more) {
    any_void_.store(false, std::memory_order_relaxed);
    for (size_t i = 0; i < kStripes; ++i) {
      stripes_[i].mu.AssertHeld();
      stripes_[i].written.clear();
    }
  }
  UnlockAll();
  return more;
}
}  // namespace moonpool::storage
