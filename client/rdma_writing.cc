// ClientImpl: values that the server reads out of this process's memory (KV.WRITE).
//
// What lies in a registered buffer is read from there, be it a GPU's memory: what the GPU is to
// read was written when the call began, and a NIC finds it.  The rest is copied into registered
// memory of the session first: one copy that costs less than the two and the protocol work of a
// socket.  What is larger than that memory goes over tcp.
#include "client/client_impl.h"
#include "client/errors.h"

namespace moonpool::client {

namespace {

// In one command: the server has memory reserved for all of it at once.
constexpr size_t kWriteKeys = 128;
constexpr uint64_t kWriteBytes = 64ull << 20;

struct Placed {
  size_t index;
  RdmaSession::Place place;
};

void WordsOfWrite(RespStream& stream, std::span<const std::string_view> keys,
                  std::span<const Source> sources, std::span<const Placed> round,
                  const PutOptions& options, bool checksum) {
  stream.Begin(2 + round.size() * 4 + OptionWords(options) + (checksum ? 1 + round.size() : 0));
  stream.Word("KV.WRITE");
  stream.Word(static_cast<int64_t>(round.size()));
  for (const Placed& value : round) {
    stream.Word(keys[value.index]);
    stream.Word(static_cast<int64_t>(value.place.buffer));
    stream.Word(static_cast<int64_t>(value.place.offset));
    stream.Word(static_cast<int64_t>(sources[value.index].bytes));
  }
  SayOptions(stream, options);
  if (!checksum) return;
  stream.Word("CRC");
  for (const Placed& value : round) {
    stream.Word(static_cast<int64_t>(ChecksumOf(sources[value.index])));
  }
}

// The bytes did not move; over RESP they can.
bool NotMoved(const ReplyHeader& reply) {
  return reply.text.starts_with("TRYAGAIN rdma:") || reply.text.starts_with("ERR rdma:");
}

}  // namespace

// Leaves small values, and those that cannot go this way, to SetOverTcp.  Of a batch with device
// memory only what is read from there: the caller brings the rest into host memory.
bool ClientImpl::LetServerRead(Channel& channel, RdmaSession& rdma, PutBatch& batch,
                               const PutOptions& options) {
  RespStream& stream = channel.stream();
  std::vector<size_t> large;
  std::vector<size_t> rest;
  const bool direct = !batch.gpu->empty();
  for (const size_t index : batch.pending) {
    const uint64_t bytes = batch.items[index].bytes;
    const bool wanted = bytes > 0 && bytes >= channel.limits().bulk_threshold &&
                        (!direct || batch.gpu->Takes(index));
    (wanted ? large : rest).push_back(index);
  }
  batch.pending.clear();
  const size_t most_keys = std::min(kWriteKeys, channel.limits().max_batch_keys);
  size_t next = 0;
  std::vector<Placed> round;
  size_t answered = 0;  // of the round
  // The caller's memory is its own again when the call returns, whatever the server does.
  const auto fail = [&] {
    rdma.Fence();
    batch.now.reset();
    for (size_t i = answered; i < round.size(); ++i) rest.push_back(round[i].index);
    rest.insert(rest.end(), large.begin() + static_cast<ptrdiff_t>(next), large.end());
    batch.pending = std::move(rest);
    return false;
  };
  const auto fall_back = [&](size_t index) {
    if (!direct) counters_.FellBack(1);
    rest.push_back(index);
  };
  while (next < large.size()) {
    round.clear();
    answered = 0;
    uint64_t bytes = 0;
    rdma.BeginRound();
    for (; next < large.size() && round.size() < most_keys && bytes < kWriteBytes; ++next) {
      const size_t index = large[next];
      const Source& source = batch.items[index];
      std::optional<RdmaSession::Place> place;
      if (source.pieces.size() == 1) place = rdma.PlaceOf(source.pieces[0].data, source.bytes);
      if (!place && !direct) {
        place = rdma.Stage(source.pieces, source.bytes);
        if (!place && !round.empty() && source.bytes <= rdma.staging_bytes()) break;
        if (place) counters_.rdma_staged_values.fetch_add(1, std::memory_order_relaxed);
      }
      if (place) {
        round.push_back({index, *place});
        bytes += source.bytes;
      } else {
        fall_back(index);
      }
    }
    if (round.empty()) continue;
    WordsOfWrite(stream, batch.keys, batch.items, round, options, options_.checksum);
    ReplyHeader reply;
    if (!stream.Flush() || !stream.Next(&reply)) return fail();
    batch.now = Clock::now();
    const bool whole = reply.is_error();
    const Status error = whole ? FromErrorReply(reply.text) : Status();
    if (!whole && reply.elements() != static_cast<int64_t>(round.size())) {
      stream.Unexpected("KV.WRITE");
      return fail();
    }
    for (; answered < round.size(); ++answered) {
      const size_t index = round[answered].index;
      const uint64_t length = batch.items[index].bytes;
      ReplyHeader element;
      if (whole) {
        batch.Error(index, error);
        continue;
      }
      if (!stream.Next(&element)) return fail();
      if (element.is_null()) {
        batch.Done(index, Code::kConditionNotMet, Transport::kRdma, length);
      } else if (element.is_error() && NotMoved(element)) {
        fall_back(index);
      } else if (element.is_error()) {
        batch.Error(index, FromErrorReply(element.text));
      } else if (element.type == ':') {
        counters_.Wrote(Transport::kRdma, length);
        if (direct) counters_.gpu_rdma_direct_values.fetch_add(1, std::memory_order_relaxed);
        batch.Done(index, Code::kOk, Transport::kRdma, length);
      } else {
        stream.Unexpected("an element of KV.WRITE");
        return fail();
      }
    }
    batch.now.reset();
  }
  batch.pending = std::move(rest);
  return true;
}

}  // namespace moonpool::client
