// Works on an SSD store until it is killed, or ends without closing it.
//
//   moonpool-ssd-crash-child MODE DIRECTORY BOOT_ID LOG SYNC [SEED LEDGER_FD]
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "storage/ssd_store.h"
#include "tests/storage/ssd_crash_child.h"
#include "tests/storage/ssd_values.h"

namespace moonpool::storage {
namespace {

void Must(bool done, int otherwise) {
  if (!done) _exit(otherwise);
}

// Writes, erases and collects until it is killed.
void Work(SsdStore& store, const SsdOptions& options, Ledger* ledger, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<size_t> alive;
  for (;;) {
    const size_t index = ledger->count.load();
    if (index == Ledger::kMost) _exit(12);
    Ledger::Entry& entry = ledger->entries[index];
    SsdRecord record{store.NextId(), "key", 1 + random() % 300000, 0, options.chunk_bytes};
    if (record.id <= ledger->largest_id) _exit(13);
    ledger->largest_id = record.id;
    if (!store.WritePayload(record.id, SsdValue(record.id, record.length))) _exit(14);
    entry.length = record.length;
    entry.id = record.id;
    ledger->count = index + 1;
    SsdChange change;
    change.Put(record);
    if (!store.Apply(change)) _exit(15);
    entry.state = Ledger::kPut;
    alive.push_back(index);
    while (alive.size() > 40) {
      std::swap(alive[random() % alive.size()], alive.back());
      Ledger::Entry& victim = ledger->entries[alive.back()];
      alive.pop_back();
      change.Clear();
      change.Erase(victim.id, victim.length, options.chunk_bytes);
      if (!store.Apply(change)) _exit(16);
      victim.state = Ledger::kErased;
    }
    if (random() % 300 == 0) {
      const uint64_t floor = store.NextId();
      change.Clear();
      change.EraseBelow(floor);
      if (!store.Apply(change)) _exit(17);
      ledger->erased_below = floor;
      ledger->largest_id = floor;
      alive.clear();
    }
    if (random() % 8 == 0) store.CollectGarbage();
  }
}

SsdRecord PutOne(SsdStore& store, const SsdOptions& options) {
  SsdRecord record{store.NextId(), "k", 100000, 0, options.chunk_bytes};
  Must(store.WritePayload(record.id, SsdValue(record.id, record.length)).has_value(), 20);
  SsdChange change;
  change.Put(record);
  Must(store.Apply(change).has_value(), 21);
  return record;
}

int Main(int argc, char** argv) {
  Must(argc >= 6, 2);
  const std::string_view mode = argv[1];
  SsdOptions options = SmallSsd(argv[2]);
  options.boot_id = argv[3];
  options.log_payload = std::atoi(argv[4]) != 0;
  options.sync = std::atoi(argv[5]) != 0;
  auto opened = SsdStore::Open(options);
  Must(opened.has_value(), 10);
  SsdStore& store = **opened;
  Must(store
           .Recover(
               1, [](const SsdRecord&) {}, [](auto, auto, auto) {})
           .has_value(),
       11);
  if (mode == "work") {
    Must(argc == 8, 2);
    void* ledger =
        mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED, std::atoi(argv[7]), 0);
    Must(ledger != MAP_FAILED, 12);
    Work(store, options, static_cast<Ledger*>(ledger), std::strtoull(argv[6], nullptr, 10));
  } else if (mode == "flushed") {
    PutOne(store, options);
    Must(store.FlushPayload().has_value(), 22);
  } else if (mode == "clean") {
    PutOne(store, options);
    Must(store.MarkClean({}).has_value(), 23);
  } else if (mode == "orphans") {
    for (int i = 0; i < 200; ++i) {
      const uint64_t id = store.NextId();
      Must(store.WritePayload(id, SsdValue(id, 100000)).has_value(), 24);
    }
    Must(store.FlushPayload().has_value(), 25);
  } else if (mode == "small") {
    Must(store.SaveSmall("key", 0, std::string(2 << 20, 'v')).has_value(), 26);
  } else {
    _exit(2);
  }
  _exit(0);
}

}  // namespace
}  // namespace moonpool::storage

int main(int argc, char** argv) {
  return moonpool::storage::Main(argc, argv);
}
