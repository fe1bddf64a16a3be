#include "rdma/lane.h"

#include <algorithm>
#include <cstring>

namespace moonpool::rdma {

namespace {

// A completion is asked for after so many bytes, or a quarter of the depth: often enough that the
// queue never runs dry while its end is awaited.
constexpr uint64_t kSignBytes = 4ull << 20;
constexpr size_t kPollAtOnce = 64;

}  // namespace

Lane::Lane(std::unique_ptr<Connection> connection, size_t device)
    : connection_(std::move(connection)), device_(device) {}

Lane::~Lane() = default;

Result<std::unique_ptr<Lane>> Lane::Create(std::unique_ptr<Connection> connection,
                                           const Domains& domains, CompletionChannel* channel,
                                           const LaneLimits& limits) {
  const size_t index = domains.IndexOf(connection->device());
  if (index == domains.size()) {
    return moonpool::Fail(ErrorCode::kUnavailable,
                          "the connection leads over a NIC that is not used");
  }
  Device& device = domains.device(index);
  std::unique_ptr<Lane> lane(new Lane(std::move(connection), index));
  QueuePairLimits wanted;
  wanted.depth = std::max<uint32_t>(limits.depth, 2 * kKept);
  wanted.receives = kReceives;
  wanted.inline_bytes = limits.inline_bytes;
  auto queue = device.NewCompletionQueue(wanted.depth + kReceives, channel);
  if (!queue) return tl::unexpected<Error>(std::move(queue.error()));
  lane->completions_ = std::move(*queue);
  if (Status status =
          lane->connection_->CreateQueuePair(domains.at(index), *lane->completions_, wanted);
      !status) {
    return tl::unexpected<Error>(std::move(status.error()));
  }
  const QueuePairLimits& made = lane->connection_->queue_pair()->limits();
  lane->limits_ = {static_cast<uint16_t>(std::min<uint32_t>(made.depth, limits.depth)),
                   static_cast<uint16_t>(made.inline_bytes), limits.reads};
  lane->max_pieces_ = made.max_pieces;
  lane->iwarp_ = made.iwarp;
  lane->message_memory_.resize(kReceives + kKept);
  auto keys = domains.at(index).Register(
      lane->message_memory_.data(), lane->message_memory_.size() * sizeof(Message), kLocalWrite);
  if (!keys) return tl::unexpected<Error>(std::move(keys.error()));
  lane->message_keys_ = std::move(*keys);
  for (uint64_t slot = 0; slot < kReceives; ++slot) {
    if (Status status = lane->PostReceive(slot); !status) {
      return tl::unexpected<Error>(std::move(status.error()));
    }
  }
  return lane;
}

Status Lane::PostReceive(uint64_t slot) {
  const Piece piece{reinterpret_cast<uint64_t>(&message_memory_[slot]), sizeof(Message),
                    message_keys_->local_key()};
  return connection_->queue_pair()->PostReceive(kReceiveBit | slot, piece);
}

void Lane::Open(const LaneLimits& agreed, RemoteKeys* remote) {
  MOONPOOL_CHECK(state_ == State::kConnecting);
  limits_ = Smaller(limits_, agreed);
  limits_.depth = static_cast<uint16_t>(std::max<uint32_t>(limits_.depth, 2 * kKept));
  remote_ = remote;
  state_ = State::kOpen;
}

void Lane::Sign(WorkRequest* request) {
  request->signalled = true;
  unsigned_requests_ = 0;
  unsigned_bytes_ = 0;
}

void Lane::Add(WorkRequest::Kind kind, std::span<const Piece> pieces, uint64_t remote_address,
               uint32_t remote_key, bool fenced, const Ticket& ticket) {
  const uint32_t requests = kind == WorkRequest::Kind::kWrite && iwarp_ ? 2 : 1;
  MOONPOOL_CHECK(open() && room() >= requests && pieces.size() <= max_pieces_ &&
                 !(fenced && iwarp_));
  if (requests == 1) {
    return AddOne(kind, pieces, remote_address, remote_key, fenced, {ticket, Posted::Kind::kRequest});
  }
  // RFC 5040, 5.5: the READ is looked at when what is before it was placed.
  AddOne(kind, pieces, remote_address, remote_key, fenced, {{}, Posted::Kind::kSent});
  const Piece nothing{reinterpret_cast<uint64_t>(message_memory_.data()), 0,
                      message_keys_->local_key()};
  AddOne(WorkRequest::Kind::kRead, std::span(&nothing, 1), remote_address, remote_key, false,
         {ticket, Posted::Kind::kRequest});
}

void Lane::AddOne(WorkRequest::Kind kind, std::span<const Piece> pieces, uint64_t remote_address,
                  uint32_t remote_key, bool fenced, const Posted& posted) {
  WorkRequest request;
  request.id = first_ + posted_.size();
  request.kind = kind;
  request.fenced = fenced;
  request.remote_address = remote_address;
  request.remote_key = remote_key;
  chain_counts_.push_back(pieces.size());
  chain_pieces_.insert(chain_pieces_.end(), pieces.begin(), pieces.end());
  unsigned_bytes_ += posted.ticket.bytes;
  if (++unsigned_requests_ >= std::max<uint32_t>(limits_.depth / 4, 1) ||
      unsigned_bytes_ >= kSignBytes) {
    Sign(&request);
  }
  chain_.push_back(request);
  posted_.push_back(posted);
  outstanding_bytes_ += posted.ticket.bytes;
}

bool Lane::Post() {
  if (chain_.empty()) return true;
  Sign(&chain_.back());
  const Piece* pieces = chain_pieces_.data();
  for (size_t i = 0; i < chain_.size(); ++i) {
    chain_[i].pieces = std::span(pieces, chain_counts_[i]);
    pieces += chain_counts_[i];
  }
  const size_t taken = connection_->queue_pair()->Post(chain_);
  chain_.erase(chain_.begin(), chain_.begin() + static_cast<ptrdiff_t>(taken));
  const bool all = chain_.empty();
  if (!all) Fail("the device refuses requests");
  ClearChain();
  return all;
}

bool Lane::Send(const Message& message, bool fenced) {
  if (!open() || messages_sent_ == kKept) return false;
  // The chain goes first: numbers are in the order of the queue.
  if (!Post()) return false;
  Message& copy = message_memory_[kReceives + next_message_];
  next_message_ = (next_message_ + 1) % kKept;
  copy = message;
  const Piece piece{reinterpret_cast<uint64_t>(&copy), sizeof(copy), message_keys_->local_key()};
  WorkRequest request;
  request.id = first_ + posted_.size();
  request.kind = WorkRequest::Kind::kSend;
  request.fenced = fenced;
  request.inlined = limits_.inline_bytes >= sizeof(copy);
  request.pieces = std::span(&piece, 1);
  Sign(&request);
  posted_.push_back({{}, Posted::Kind::kMessage});
  ++messages_sent_;
  if (connection_->queue_pair()->Post(std::span(&request, 1)) == 1) return true;
  never_posted_ = 1;
  Fail("the device refuses requests");
  return false;
}

void Lane::EndFront(Completion::Status status, const char* text, std::vector<End>* ends) {
  const Posted& front = posted_.front();
  if (front.kind == Posted::Kind::kMessage) {
    --messages_sent_;
  } else if (front.kind == Posted::Kind::kRequest) {
    outstanding_bytes_ -= front.ticket.bytes;
    if (status == Completion::Status::kOk) pace.completed_bytes += front.ticket.bytes;
    ends->push_back({front.ticket, status, text});
  }
  posted_.pop_front();
  ++first_;
}

bool Lane::Poll(std::vector<End>* ends, std::vector<Message>* messages) {
  if (state_ == State::kFenced) return false;
  bool any = false;
  Completion found[kPollAtOnce];
  size_t count;
  do {
    count = completions_->Poll(found);
    for (size_t i = 0; i < count; ++i) {
      const Completion& completion = found[i];
      any = true;
      if ((completion.id & kReceiveBit) != 0) {
        if (completion.status != Completion::Status::kOk) {
          if (!open()) continue;
          flushed_ = completion.status == Completion::Status::kFlushed;
          Fail(completion.text);
          continue;
        }
        const uint64_t slot = completion.id & ~kReceiveBit;
        const auto message = DecodeMessage(std::string_view(
            reinterpret_cast<const char*>(&message_memory_[slot]), completion.bytes));
        if (!message) {
          Fail(message.error().message);
          continue;
        }
        if (messages != nullptr) messages->push_back(*message);
        if (open() && !PostReceive(slot)) Fail("the device refuses receives");
        continue;
      }
      // All before this one are complete.
      while (!posted_.empty() && first_ < completion.id) {
        EndFront(Completion::Status::kOk, "", ends);
      }
      if (posted_.empty() || first_ != completion.id) continue;  // told of already
      EndFront(completion.status, completion.text, ends);
      if (completion.status == Completion::Status::kOk) continue;
      if (open()) refused_ = completion.status == Completion::Status::kRemoteRefused;
      Fail(completion.text);
    }
  } while (count == kPollAtOnce);
  if (state_ == State::kFailed && posted_.size() <= never_posted_) {
    any = true;
    while (!posted_.empty()) EndFront(Completion::Status::kFlushed, "not posted", ends);
    state_ = State::kFenced;
  }
  return any;
}

void Lane::ClearChain() {
  chain_.clear();
  chain_counts_.clear();
  chain_pieces_.clear();
}

void Lane::Arm() {
  if (armed_ || state_ == State::kFenced) return;
  armed_ = static_cast<bool>(completions_->Arm());
}

void Lane::Fail(const std::string& why) {
  if (state_ == State::kFailed || state_ == State::kFenced) return;
  state_ = State::kFailed;
  why_ = why;
  // These make no completion: Poll() tells of them when the others have ended.
  never_posted_ += chain_.size();
  ClearChain();
  if (!connection_->queue_pair()->ToError()) {
    // Then nothing is flushed, and only destroying it ends what is posted.
    why_ += "; and it cannot be stopped";
  }
}

void Lane::Destroy(std::vector<End>* ends) {
  Fail("closed");
  connection_ = nullptr;
  while (!posted_.empty()) EndFront(Completion::Status::kFlushed, "destroyed", ends);
  state_ = State::kFenced;
}

}  // namespace moonpool::rdma
