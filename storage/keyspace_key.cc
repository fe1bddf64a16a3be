// Keyspace::Key: what is done with one key under its stripe's lock.
#include <algorithm>
#include <cstring>
#include <utility>

#include "storage/fast_random.h"
#include "storage/keyspace.h"

namespace moonpool::storage {

namespace {

// Changes of a stripe's memory reach the budget when they add up to this much, so that loops do
// not fight over one counter; for small limits sooner, to stay within 1/256 of the limit.
constexpr int64_t kReportBytes = 64 * 1024;
constexpr int kReportShift = 16;

// What keys that belong together begin with: "model@revision:block" -> "model@revision".
uint16_t GroupOf(std::string_view key) {
  const size_t end = key.find_first_of(":/");
  return end == std::string_view::npos ? 0 : static_cast<uint16_t>(HashKey(key.substr(0, end)));
}

}  // namespace

// --- entries of a locked stripe --------------------------------------------------------------

void Keyspace::Account(Stripe& stripe, int64_t bytes) {
  stripe.inline_bytes += bytes;
  stripe.unreported += bytes;
  const int64_t threshold =
      std::min(kReportBytes, static_cast<int64_t>(budget_->limit() >> kReportShift));
  if (std::abs(stripe.unreported) > threshold) {
    budget_->AddInline(std::exchange(stripe.unreported, 0));
  }
}

void Keyspace::RecordUse(Entry& entry, int64_t now_ms) const {
  uint32_t access;
  const MaxmemoryPolicy policy = this->policy();
  if (policy == MaxmemoryPolicy::kAllKeysLfu || policy == MaxmemoryPolicy::kVolatileLfu ||
      policy == MaxmemoryPolicy::kAllKeysS3Fifo || policy == MaxmemoryPolicy::kAllKeysPrefix) {
    access = LfuTouched(entry.access, now_ms, lfu_options(),
                        static_cast<uint32_t>(FastRandom() >> 32));
  } else {
    access = LruNow(now_ms);
  }
  // Most reads repeat within the clock's resolution: leave the cache line clean then.
  if (entry.access != access) entry.access = access & kAccessMask;
}

Table::Slot Keyspace::FindLive(Stripe& stripe, std::string_view key, uint64_t hash,
                               int64_t now_ms) {
  const Table::Slot slot = stripe.table.Find(hash, key);
  if (!slot) return slot;
  if (slot.entry()->expired(now_ms)) {
    expired_.fetch_add(1, std::memory_order_relaxed);
  } else if (!any_void_.load(std::memory_order_relaxed) || !Voided(stripe, key, hash)) {
    return slot;
  }
  Remove(stripe, hash, slot, false);
  return Table::Slot();
}

void Keyspace::Remove(Stripe& stripe, uint64_t hash, Table::Slot slot, bool evicted) {
  const size_t table_bytes = stripe.table.bytes();
  Entry* entry = stripe.table.Erase(hash, slot);
  if (entry->has(Entry::kHasExpiry)) --stripe.expiring;
  if (entry->has(Entry::kPinned)) DropPin(stripe, entry->key());
  DropBulk(stripe, *entry, evicted);
  if (evicted) evicted_.fetch_add(1, std::memory_order_relaxed);
  Account(stripe, static_cast<int64_t>(stripe.table.bytes() - table_bytes) -
                      static_cast<int64_t>(entry->block_bytes()));
  Entry::Destroy(entry);
}

void Keyspace::DropBulk(Stripe& stripe, const Entry& entry, bool evicted) {
  if (evicted && !entry.is_inline()) partitions_.CountDrop(SlotOf(entry));
  if (entry.has(Entry::kOnSsd)) {
    --stripe.ssd_entries;
    if (const SsdPlace place = entry.place()) EraseOnSsd(stripe, place);
  }
  if (!entry.has(Entry::kBulk)) return;
  --stripe.bulk_entries;
  BulkValue* value = entry.bulk();
  if (evicted) partitions_.CountEviction(value->partition());
  if (const SsdPlace place = value->place()) EraseOnSsd(stripe, place);
  value->set_place({});
  bulk_policy_->Unlink(value, evicted);
  LetGo(value);
}

// An entry's reference goes; others may keep the value alive for a while.
void Keyspace::LetGo(BulkValue* value) {
  CountLinked(*value, -1);
  ValueRef::Adopt(value).Reset();
}

void Keyspace::LinkBulk(const Entry& entry, bool cold) {
  const bool expires = entry.has(Entry::kHasExpiry);
  if (VolatileOnly(partitions_.policy(SlotOf(entry))) && !expires) return;
  bulk_policy_->Link(entry.bulk(), expires ? entry.expiry_ms() : 0, GroupOf(entry.key()), cold);
}

void Keyspace::DropPin(Stripe& stripe, std::string_view key) {
  const auto pin = stripe.pins.find(std::string(key));
  if (pin == stripe.pins.end()) return;
  if (pin->second.hard) {
    hard_pinned_bytes_.fetch_sub(pin->second.bytes, std::memory_order_relaxed);
  }
  stripe.pins.erase(pin);
}

void Keyspace::ResizePin(Stripe& stripe, const Entry& entry) {
  const auto pin = stripe.pins.find(std::string(entry.key()));
  if (pin == stripe.pins.end()) return;
  const uint64_t bytes = entry.has(Entry::kBulk)    ? entry.bulk()->length()
                         : entry.has(Entry::kOnSsd) ? entry.place().length
                                                    : entry.value_bytes;
  if (pin->second.hard) {
    hard_pinned_bytes_.fetch_add(bytes - pin->second.bytes, std::memory_order_relaxed);
  }
  pin->second.bytes = bytes;
}

Entry* Keyspace::Resize(Stripe& stripe, Table::Slot slot, size_t value_bytes, uint8_t flags) {
  Entry* const old = slot.entry();
  const size_t old_block = old->block_bytes();
  const size_t bytes = Entry::Bytes(old->key_bytes, value_bytes, flags);
  if (HeapBlockBytes(bytes) == old_block &&
      (old->flags & Entry::kHasExpiry) == (flags & Entry::kHasExpiry)) {
    old->flags = flags;
    old->value_bytes = static_cast<uint32_t>(value_bytes);
    return old;
  }
  Entry* entry = Entry::Create(old->key(), 0, value_bytes, flags);
  entry->hash = old->hash;
  entry->access = old->access;
  if ((flags & Entry::kHasExpiry) != 0 && old->has(Entry::kHasExpiry)) {
    entry->set_expiry_ms(old->expiry_ms());
  }
  stripe.table.Replace(slot, entry);
  Entry::Destroy(old);
  Account(stripe, static_cast<int64_t>(entry->block_bytes()) - static_cast<int64_t>(old_block));
  return entry;
}

// --- Key -------------------------------------------------------------------------------------


Entry* Keyspace::Key::Find() {
  stripe_->mu.AssertHeld();
  slot_ = keyspace_->FindLive(*stripe_, name_, hash_, now_ms_);
  return slot_ ? slot_.entry() : nullptr;
}

Entry* Keyspace::Key::Read() {
  Entry* entry = Find();
  if (entry != nullptr) keyspace_->RecordUse(*entry, now_ms_);
  return entry;
}

// Leaves an entry with room for the value, in place where its block fits, and everything that
// hung on the old value let go of.
Entry* Keyspace::Key::Put(size_t value_bytes, uint8_t kind, bool keep_expiry) {
  Stripe& stripe = *stripe_;
  stripe.mu.AssertHeld();
  ComesAfter();
  if (keyspace_->any_void_.load(std::memory_order_relaxed)) {
    Find();  // before the mark below makes a voided entry look alive
    stripe.written[hash_] = keyspace_->void_sequence_;
  }
  Entry* const old = Find();
  if (old == nullptr) {
    Entry* entry = Entry::Create(name_, hash_, value_bytes, kind);
    const size_t table_bytes = stripe.table.bytes();
    stripe.table.Insert(hash_, entry);
    slot_ = stripe.table.Find(hash_, name_);
    if (kind & Entry::kBulk) ++stripe.bulk_entries;
    if (kind & Entry::kOnSsd) ++stripe.ssd_entries;
    keyspace_->Account(stripe, static_cast<int64_t>(stripe.table.bytes() - table_bytes) +
                                   static_cast<int64_t>(entry->block_bytes()));
    entry->access = LfuNew(now_ms_) & kAccessMask;
    keyspace_->RecordUse(*entry, now_ms_);
    return entry;
  }
  keyspace_->DropBulk(stripe, *old, false);
  if (kind & Entry::kBulk) ++stripe.bulk_entries;
  if (kind & Entry::kOnSsd) ++stripe.ssd_entries;
  const bool expiry = keep_expiry && old->has(Entry::kHasExpiry);
  if (old->has(Entry::kHasExpiry) && !expiry) --stripe.expiring;
  const auto flags = static_cast<uint8_t>(kind | (expiry ? Entry::kHasExpiry : 0) |
                                          (old->flags & Entry::kPinned));
  Entry* entry = keyspace_->Resize(stripe, slot_, value_bytes, flags);
  keyspace_->RecordUse(*entry, now_ms_);
  return entry;
}

Entry* Keyspace::Key::Set(std::string_view value, bool keep_expiry) {
  Entry* entry = SetUninitialized(value.size(), keep_expiry);
  std::copy(value.begin(), value.end(), entry->value_data());
  return entry;
}

Entry* Keyspace::Key::SetUninitialized(size_t bytes, bool keep_expiry) {
  stripe_->mu.AssertHeld();
  Entry* entry = Put(bytes, 0, keep_expiry);
  if (entry->has(Entry::kPinned)) keyspace_->ResizePin(*stripe_, *entry);
  return entry;
}

Entry* Keyspace::Key::SetBulk(ValueRef value, bool keep_expiry) {
  Entry* entry = Put(sizeof(BulkValue*), Entry::kBulk, keep_expiry);
  stripe_->mu.AssertHeld();
  value->set_owner_hash(hash_);
  const uint8_t slot = partition();
  if (value->partition() != slot) keyspace_->bulk_policy_->Assign(value.get(), slot);
  keyspace_->CountLinked(*value, 1);
  entry->set_bulk(value.Release());
  keyspace_->LinkBulk(*entry);
  if (entry->has(Entry::kPinned)) keyspace_->ResizePin(*stripe_, *entry);
  if (keyspace_->stored_ && !keyspace_->MemoryOnly(*stripe_, name_)) {
    keyspace_->stored_(entry->bulk());
  }
  return entry;
}

bool Keyspace::Key::Erase() {
  stripe_->mu.AssertHeld();
  ComesAfter();
  if (Find() == nullptr) return false;
  keyspace_->Remove(*stripe_, hash_, slot_, false);
  return true;
}

ValueRef Keyspace::Key::TakeBulk() {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  ValueRef value = ValueRef::Share(entry->bulk());  // what is on the SSD does not go with it
  keyspace_->Remove(*stripe_, hash_, slot_, false);
  return value;
}

// Gives the entry the block that goes with other flags.
Entry* Keyspace::Key::SetFlags(Entry* entry, uint8_t flags) {
  stripe_->mu.AssertHeld();
  if (flags == entry->flags) return entry;
  Entry* const old = entry;
  if ((old->flags & Entry::kHasExpiry) != (flags & Entry::kHasExpiry)) {
    entry = Entry::Create(name_, hash_, old->value_bytes, flags);
    entry->access = old->access;
    std::memcpy(entry->value_data(), old->value_data(), old->value_bytes);
    stripe_->table.Replace(slot_, entry);
    keyspace_->Account(*stripe_, static_cast<int64_t>(entry->block_bytes()) -
                                     static_cast<int64_t>(old->block_bytes()));
    Entry::Destroy(old);
  } else {
    entry->flags = flags;
  }
  return entry;
}

Entry* Keyspace::Key::SetExpiry(int64_t at_ms) {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  if (!entry->has(Entry::kHasExpiry)) ++stripe_->expiring;
  entry = SetFlags(entry, static_cast<uint8_t>(entry->flags | Entry::kHasExpiry));
  entry->set_expiry_ms(at_ms);
  LogExpiry(*entry);
  if (entry->has(Entry::kBulk) &&
      VolatileOnly(keyspace_->partitions_.policy(entry->bulk()->partition()))) {
    keyspace_->bulk_policy_->Unlink(entry->bulk(), false);
    keyspace_->LinkBulk(*entry);
  }
  return entry;
}

Entry* Keyspace::Key::ClearExpiry() {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  if (!entry->has(Entry::kHasExpiry)) return entry;
  --stripe_->expiring;
  entry = SetFlags(entry, static_cast<uint8_t>(entry->flags & ~Entry::kHasExpiry));
  LogExpiry(*entry);
  if (entry->has(Entry::kBulk) &&
      VolatileOnly(keyspace_->partitions_.policy(entry->bulk()->partition()))) {
    keyspace_->bulk_policy_->Unlink(entry->bulk(), false);
  }
  return entry;
}

void Keyspace::Key::SetPin(Pin pin) {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  keyspace_->DropPin(*stripe_, name_);
  pin.bytes = 0;
  stripe_->pins.emplace(std::string(name_), pin);
  keyspace_->ResizePin(*stripe_, *entry);
  SetFlags(entry, static_cast<uint8_t>(entry->flags | Entry::kPinned));
}

bool Keyspace::Key::ClearPin() {
  stripe_->mu.AssertHeld();
  Entry* entry = slot_.entry();
  if (!entry->has(Entry::kPinned)) return false;
  keyspace_->DropPin(*stripe_, name_);
  SetFlags(entry, static_cast<uint8_t>(entry->flags & ~Entry::kPinned));
  return true;
}

std::optional<Pin> Keyspace::Key::GetPin() const {
  stripe_->mu.AssertHeld();
  const auto pin = stripe_->pins.find(std::string(name_));
  if (pin == stripe_->pins.end()) return std::nullopt;
  if (pin->second.until_ms != 0 && pin->second.until_ms <= now_ms_) return std::nullopt;
  return pin->second;
}
}  // namespace moonpool::storage
