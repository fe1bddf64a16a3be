// Service: bytes that it moves for clients.
#include <algorithm>
#include <utility>

#include "rdma/service.h"

namespace moonpool::rdma {

void Service::Move(std::vector<BufferTransfer> batch, Done done) {
  const size_t count = batch.size();
  if (!Post([this, batch = std::move(batch), done] { StartMove(batch, done); })) {
    done(std::vector<Outcome>(count, Outcome::kUnreachable), "the service has stopped");
  }
}

void Service::StartMove(const std::vector<BufferTransfer>& batch, Done done) {
  Session* const session = batch.empty() ? nullptr : Find(batch[0].session);
  if (session == nullptr || session->lanes.empty()) {
    return done(std::vector<Outcome>(batch.size(), Outcome::kUnreachable),
                "the session has no queue pair");
  }
  Moving moving;
  moving.done = std::move(done);
  moving.pieces.resize(batch.size());
  // A READ over iWARP takes remote write access to where it lands, which the pool never has.
  const bool copies = batch[0].direction == Transfer::Direction::kRead &&
                      std::any_of(nics_.nics().begin(), nics_.nics().end(), [](const Nic& nic) {
                        return nic.protocol == Protocol::kIwarp;
                      });
  std::vector<TransferItem> items(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    const BufferTransfer& what = batch[i];
    auto [keys, fresh] = moving.keys.emplace(what.region, nullptr);
    if (fresh && !copies) keys->second = session->memory->Keys(what.region);
    if (what.on_device && keys->second == nullptr) {
      return moving.done(std::vector<Outcome>(batch.size(), Outcome::kNotThere),
                         "memory of the device is not registered");
    }
    AddPieces(what, keys->second.get(), &moving.pieces[i]);
    items[i].remote = what.buffer;
    items[i].offset = what.offset;
    items[i].length = what.length;
    items[i].pieces = moving.pieces[i];
  }
  moving.transfer = std::make_unique<Transfer>(batch[0].direction, std::move(items));
  session->engine.Start(moving.transfer.get());
  session->moving.push_back(std::move(moving));
  while (Serve(session)) {
  }
}

// `keys`: null when the region is not registered (yet), or not for this: the engine stages the bytes.
void Service::AddPieces(const BufferTransfer& what, const Registration* keys,
                        std::vector<LocalPiece>* pieces) {
  if (keys == nullptr) return pieces->push_back({what.data, what.length, nullptr});
  auto offset = static_cast<uint64_t>(what.data - keys->data());
  for (uint64_t left = what.length; left > 0;) {
    const Registration::Part part = keys->At(offset);
    const uint64_t length = std::min(left, part.offset + part.length - offset);
    pieces->push_back({keys->data() + offset, length, part.keys});
    offset += length;
    left -= length;
  }
}

void Service::FinishMoves(Session* session) {
  std::vector<Moving> finished;
  for (size_t i = session->moving.size(); i-- > 0;) {
    if (!session->moving[i].transfer->done()) continue;
    finished.push_back(std::move(session->moving[i]));
    session->moving.erase(session->moving.begin() + static_cast<ptrdiff_t>(i));
  }
  for (Moving& moving : finished) {
    const Transfer& transfer = *moving.transfer;
    const bool reads = transfer.direction() == Transfer::Direction::kRead;
    std::vector<Outcome> outcomes(transfer.items().size());
    uint64_t bytes = 0;
    bool refused = false;
    for (size_t i = 0; i < outcomes.size(); ++i) {
      outcomes[i] = transfer.outcome(i);
      if (outcomes[i] == Outcome::kDone) bytes += transfer.items()[i].length;
      refused |= outcomes[i] == Outcome::kNotThere;
    }
    (reads ? counters_.bytes_read : counters_.bytes_written)
        .fetch_add(bytes, std::memory_order_relaxed);
    std::string error = transfer.error();
    if (error.empty() && refused) {
      error = reads ? "the buffer is not known, too short, or not lent for reading"
                    : "the buffer is not known, too short, or not lent for writing";
    }
    // Whoever is told may let the region go, which must not be registered any more then.
    moving.keys.clear();
    moving.done(outcomes, error);
  }
}

}  // namespace moonpool::rdma
