// Keyspace: partitions, and values that change over when partitions or policies do.
//
// A change goes like this:
//   1. what is new gets a policy of its own, still empty
//   2. with every stripe locked, the new set takes the place of the old one: from here on each
//   write is
//      of its new partition
//   3. policies that are others now start over
//   4. a few at a time, values move to the partition of their key, with what they count for
//   5. what is gone gives up its policy: no entry refers to a value of it any more
// A value that 4 has not come to is in its old partition as a whole: linked, counted and evicted
// there.
#include <algorithm>

#include "storage/keyspace.h"

namespace moonpool::storage {

// --- what counts where -------------------------------------------------------------------------

uint8_t Keyspace::SlotOf(const Entry& entry) const {
  if (entry.has(Entry::kBulk)) return entry.bulk()->partition();
  if (entry.has(Entry::kOnSsd)) return entry.place().slot();
  return PartitionOf(entry.key());
}

void Keyspace::CountLinked(const BulkValue& value, int sign) {
  const int64_t bytes = sign * static_cast<int64_t>(value.policy_bytes);
  if (value.tier() == protocol::Tier::kDram) budget_->AddLinked(bytes);
  partitions_.AddMemory(value.tier(), value.partition(), bytes, sign);
}

void Keyspace::CountOnSsd(const SsdPlace& place, int sign) {
  partitions_.AddSsd(place.slot(), sign * static_cast<int64_t>(place.length), sign);
}

void Keyspace::EraseOnSsd(Stripe& stripe, const SsdPlace& place) {
  CountOnSsd(place, -1);
  stripe.taken_away = log_->Erase(place);
}

void Keyspace::MoveToPartition(SsdPlace* place, uint8_t slot) {
  if (!*place || place->slot() == slot) return;
  CountOnSsd(*place, -1);
  place->partition = slot;
  CountOnSsd(*place, 1);
}

void Keyspace::MoveToPartition(BulkValue* value, uint8_t slot) {
  SsdPlace place = value->place();
  MoveToPartition(&place, slot);
  value->set_place(place);
  if (value->partition() == slot) return;
  const auto bytes = static_cast<int64_t>(value->policy_bytes);
  partitions_.AddMemory(value->tier(), value->partition(), -bytes, -1);
  bulk_policy_->Assign(value, slot);
  partitions_.AddMemory(value->tier(), slot, bytes, 1);
}

// --- changes -----------------------------------------------------------------------------------

void Keyspace::RelinkEntry(Entry* entry) {
  if (entry->is_inline()) return;
  const uint8_t slot = PartitionOf(entry->key());
  if (entry->has(Entry::kOnSsd)) {
    SsdPlace place = entry->place();
    if (place.slot() == slot) return;
    MoveToPartition(&place, slot);
    entry->set_place(place);
    return;
  }
  BulkValue* const value = entry->bulk();
  MoveToPartition(value, slot);
  // Linked meanwhile, under a policy that was still the old one.
  if (VolatileOnly(partitions_.policy(slot)) && !entry->has(Entry::kHasExpiry)) {
    bulk_policy_->Unlink(value, false);
  }
  LinkBulk(*entry, value->arrival() != BulkValue::Arrival::kNone);
}

void Keyspace::Relink() {
  // Commands get in between: what they write is where it belongs, and a scan meets what was there
  // before at least once.
  constexpr size_t kBuckets = 256;
  for (size_t i = 0; i < kStripes; ++i) {
    Stripe& stripe = stripes_[i];
    uint64_t cursor = 0;
    do {
      SpinLock lock(stripe.mu);
      if (stripe.bulk_entries + stripe.ssd_entries == 0) break;
      size_t buckets = kBuckets;
      do {
        cursor = stripe.table.Scan(cursor, [this](Entry* entry) { RelinkEntry(entry); });
      } while (cursor != 0 && --buckets > 0);
    } while (cursor != 0);
  }
}

void Keyspace::SetPolicy(MaxmemoryPolicy policy) {
  MutexLock change(change_mu_);
  LockAll();
  std::vector<uint8_t> changed = {0};
  partitions_.SetPolicy(0, policy);
  if (set_ != nullptr) {
    for (const PartitionSet::Member& member : set_->members()) {
      if (member.options.policy) continue;
      partitions_.SetPolicy(member.slot, policy);
      changed.push_back(member.slot);
    }
  }
  UnlockAll();
  for (const uint8_t slot : changed) bulk_policy_->Change(policy, slot);
  Relink();
}

void Keyspace::SetPartitions(std::vector<PartitionOptions> options) {
  MutexLock change(change_mu_);
  const std::shared_ptr<const PartitionSet> before = partition_set();
  std::shared_ptr<const PartitionSet> next;
  if (!options.empty())
    next = std::make_shared<const PartitionSet>(std::move(options), before.get());
  const MaxmemoryPolicy standard = policy();
  std::vector<std::pair<uint8_t, MaxmemoryPolicy>> changed;
  if (next != nullptr) {
    for (const PartitionSet::Member& member : next->members()) {
      const MaxmemoryPolicy wanted = member.options.policy.value_or(standard);
      if (before == nullptr || !before->Uses(member.slot)) {
        partitions_.Open(member.slot, wanted);
        bulk_policy_->Change(wanted, member.slot);
      } else if (partitions_.policy(member.slot) != wanted) {
        changed.emplace_back(member.slot, wanted);
      }
      bulk_policy_->SetAdmission(member.slot, member.options.admission);
    }
  }
  LockAll();
  {
    MutexLock lock(set_mu_);
    set_ = next;
  }
  partitions_.Configure(next.get(), standard);
  UnlockAll();
  for (const auto& [slot, wanted] : changed) bulk_policy_->Change(wanted, slot);
  Relink();
  if (before == nullptr) return;
  for (const PartitionSet::Member& member : before->members()) {
    if (next != nullptr && next->Uses(member.slot)) continue;
    partitions_.Close(member.slot);
    bulk_policy_->Close(member.slot);
  }
}

std::shared_ptr<const PartitionSet> Keyspace::partition_set() const {
  if (!partitions_.any()) return nullptr;
  MutexLock lock(set_mu_);
  return set_;
}

std::vector<Keyspace::PartitionReport> Keyspace::PartitionReports() const {
  const std::shared_ptr<const PartitionSet> set = partition_set();
  PartitionReport rest;
  rest.options.name = kDefaultPartition;
  rest.options.dram_share = rest.options.ssd_share = 1;
  rest.policy = policy();
  rest.counts = partitions_.counts(0);
  std::vector<PartitionReport> reports = {rest};
  if (set == nullptr) return reports;
  PartitionOptions& left = reports.front().options;
  for (const PartitionSet::Member& member : set->members()) {
    left.dram_share = std::max(left.dram_share - member.options.dram_share, 0.0);
    left.ssd_share = std::max(left.ssd_share - member.options.ssd_share, 0.0);
  }
  for (const PartitionSet::Member& member : set->members()) {
    reports.push_back(
        {member.options, partitions_.policy(member.slot), partitions_.counts(member.slot)});
  }
  return reports;
}

}  // namespace moonpool::storage
