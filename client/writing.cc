// ClientImpl: how values are written.
#include <algorithm>
#include <cstring>

#include "client/client_impl.h"
#include "client/errors.h"
#include "protocol/crc32c.h"

namespace moonpool::client {

namespace {

constexpr size_t kAllocKeys = 128;
constexpr uint64_t kAllocBytes = 256ull << 20;
// SETs sent before their replies are read.
constexpr size_t kSetPipeline = 64;

struct Allocation {
  size_t index;
  int64_t token;
  uint32_t region;
  uint64_t offset;
  std::shared_ptr<Mapping> mapping;
  uint32_t crc = 0;
};

void WordsOfAlloc(RespStream& stream, std::span<const std::string_view> keys,
                  std::span<const Source> sources, std::span<const size_t> indexes,
                  const PutOptions& options) {
  stream.Begin(2 + indexes.size() * 2 + OptionWords(options));
  stream.Word("KV.ALLOC");
  stream.Word(static_cast<int64_t>(indexes.size()));
  for (const size_t index : indexes) {
    stream.Word(keys[index]);
    stream.Word(static_cast<int64_t>(sources[index].bytes));
  }
  SayOptions(stream, options);
}

void AddPieces(char* to, const Source& source, std::vector<Copier::Piece>* pieces) {
  for (const ConstBuffer& piece : source.pieces) {
    pieces->push_back({to, piece.data, piece.size});
    to += piece.size;
  }
}

}  // namespace

uint32_t ChecksumOf(const Source& source) {
  uint32_t crc = 0;
  for (const ConstBuffer& piece : source.pieces) crc = protocol::Crc32c(crc, piece.data, piece.size);
  return crc;
}

size_t OptionWords(const PutOptions& options) {
  return (options.if_absent || options.if_present ? 1 : 0) + (options.ttl_ms > 0 ? 2 : 0) +
         (options.prefer.empty() ? 0 : 2);
}

void SayOptions(RespStream& stream, const PutOptions& options) {
  if (options.if_absent || options.if_present) stream.Word(options.if_absent ? "NX" : "XX");
  if (options.ttl_ms > 0) {
    stream.Word("PX");
    stream.Word(options.ttl_ms);
  }
  if (!options.prefer.empty()) {
    stream.Word("PREFER");
    stream.Word(options.prefer);
  }
}

std::vector<KeyResult> ClientImpl::PutFrom(std::span<const std::string_view> keys,
                                           std::span<const Source> sources,
                                           const PutOptions& options) {
  std::vector<KeyResult> results(keys.size());
  PutBatch batch{keys, sources, results, {}, Clock::now()};
  const char* wrong = nullptr;
  if (sources.size() != keys.size()) wrong = "one buffer per key is needed";
  if (options.if_absent && options.if_present) wrong = "if_absent and if_present exclude each other";
  if (options.ttl_ms < 0) wrong = "ttl_ms must not be negative";
  if (wrong != nullptr) {
    for (size_t i = 0; i < keys.size(); ++i) {
      batch.Done(i, Code::kInvalidArgument, Transport::kNone, 0, wrong);
    }
    return results;
  }
  batch.pending.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) batch.pending[i] = i;
  uint64_t bytes = 0;
  for (const Source& source : sources) bytes += source.bytes;
  std::optional<Transport> chosen;  // of rdma and tcp, once there is a choice
  const Status status = WithChannel([&](Channel& channel) {
    if (channel.shm()) {
      if (!AllocateAndPush(channel, batch, options)) return false;
    } else if (RdmaSession* rdma = QueuePairs(channel)) {
      bulk_threshold_.store(channel.limits().bulk_threshold, std::memory_order_relaxed);
      // SET has no PREFER.
      if (!chosen && options.prefer.empty()) chosen = ChooseFor(write_pace_, bytes);
      if (chosen != Transport::kTcp && !LetServerRead(channel, *rdma, batch, options)) return false;
    } else if (!channel.usable()) {
      return false;  // a token was asked for over it
    }
    return batch.pending.empty() || SetOverTcp(channel, batch, options);
  });
  for (const size_t index : batch.pending) batch.Error(index, status);
  if (chosen) Learn(write_pace_, *chosen, bytes, batch);
  return results;
}

// Large values, through this session's write arenas.  Leaves small ones, and those that found no
// room in an arena, to SetOverTcp.
bool ClientImpl::AllocateAndPush(Channel& channel, PutBatch& batch, const PutOptions& options) {
  RespStream& stream = channel.stream();
  std::vector<size_t> large;
  std::vector<size_t> rest;
  for (const size_t index : batch.pending) {
    (batch.items[index].bytes >= channel.limits().bulk_threshold ? large : rest).push_back(index);
  }
  size_t done = 0;
  const auto fail = [&] {
    rest.insert(rest.end(), large.begin() + static_cast<ptrdiff_t>(done), large.end());
    batch.pending = std::move(rest);
    return false;
  };
  const auto chunks =
      Chunks(large, std::min(kAllocKeys, channel.limits().max_batch_keys), kAllocBytes,
             [&](size_t index) { return batch.items[index].bytes; });
  if (!chunks.empty()) {
    WordsOfAlloc(stream, batch.keys, batch.items, chunks[0], options);
    if (!stream.Flush()) return fail();
  }
  std::vector<Allocation> allocations;
  std::vector<Copier::Piece> pieces;
  for (size_t c = 0; c < chunks.size(); ++c) {
    allocations.clear();
    ReplyHeader reply;
    if (!stream.Next(&reply)) return fail();
    if (reply.is_error()) {
      const Status error = FromErrorReply(reply.text);
      for (const size_t index : chunks[c]) batch.Error(index, error);
      done += chunks[c].size();
      if (c + 1 < chunks.size()) {
        WordsOfAlloc(stream, batch.keys, batch.items, chunks[c + 1], options);
        if (!stream.Flush()) return fail();
      }
      continue;
    }
    if (reply.elements() != static_cast<int64_t>(chunks[c].size())) {
      stream.Unexpected("KV.ALLOC");
      return fail();
    }
    for (const size_t index : chunks[c]) {
      ReplyHeader element;
      if (!stream.Next(&element)) return fail();
      if (element.is_error()) {
        const Status error = FromErrorReply(element.text);
        if (error.code == Code::kOutOfMemory) {
          // No room for this session's arenas; the shared regions may have some.
          counters_.fallbacks.fetch_add(1, std::memory_order_relaxed);
          rest.push_back(index);
        } else {
          batch.Error(index, error);
        }
        continue;
      }
      ReplyHeader fields[4];
      if (element.elements() != 4) {
        stream.Unexpected("an element of KV.ALLOC");
        return fail();
      }
      for (ReplyHeader& field : fields) {
        if (!stream.Next(&field)) return fail();
        if (field.type != ':') {
          stream.Unexpected("a field of KV.ALLOC");
          return fail();
        }
      }
      allocations.push_back({index, fields[0].value, static_cast<uint32_t>(fields[1].value),
                             static_cast<uint64_t>(fields[2].value), nullptr});
    }
    std::erase_if(allocations, [&](Allocation& allocation) {
      const Source& source = batch.items[allocation.index];
      allocation.mapping = channel.Map(allocation.region, true);
      if (allocation.mapping == nullptr ||
          allocation.offset + source.bytes > allocation.mapping->bytes()) {
        // Its region is gone.
        counters_.fallbacks.fetch_add(1, std::memory_order_relaxed);
        rest.push_back(allocation.index);
        stream.Begin(4);
        stream.Word("KV.ABORT");
        stream.Word("1");
        stream.Word(batch.keys[allocation.index]);
        stream.Word(allocation.token);
        stream.DropReply();
        return true;
      }
      AddPieces(allocation.mapping->data() + allocation.offset, source, &pieces);
      if (options_.checksum) allocation.crc = ChecksumOf(source);
      return false;
    });
    // Into fresh extents, which nobody reads yet.
    copier_.Copy(pieces);
    pieces.clear();
    if (!allocations.empty()) {
      stream.Begin(2 + allocations.size() * 3);
      stream.Word("KV.COMMIT");
      stream.Word(static_cast<int64_t>(allocations.size()));
      for (const Allocation& allocation : allocations) {
        stream.Word(batch.keys[allocation.index]);
        stream.Word(allocation.token);
        if (options_.checksum) {
          stream.Word(static_cast<int64_t>(allocation.crc));
        } else {
          stream.Word("-");
        }
      }
    }
    // The next chunk's extents come back behind this chunk's commits.
    if (c + 1 < chunks.size()) {
      WordsOfAlloc(stream, batch.keys, batch.items, chunks[c + 1], options);
    }
    if (!stream.Flush()) return fail();
    if (!allocations.empty()) {
      if (!stream.Next(&reply)) return fail();
      const bool whole = reply.is_error();
      const Status error = whole ? FromErrorReply(reply.text) : Status();
      if (!whole && reply.elements() != static_cast<int64_t>(allocations.size())) {
        stream.Unexpected("KV.COMMIT");
        return fail();
      }
      for (const Allocation& allocation : allocations) {
        const uint64_t bytes = batch.items[allocation.index].bytes;
        ReplyHeader element;
        if (whole) {
          batch.Error(allocation.index, error);
          continue;
        }
        if (!stream.Next(&element)) return fail();
        if (element.is_null()) {
          batch.Done(allocation.index, Code::kConditionNotMet, Transport::kShm, bytes);
        } else if (element.is_error()) {
          batch.Error(allocation.index, FromErrorReply(element.text));
        } else {
          counters_.Wrote(Transport::kShm, bytes);
          batch.Done(allocation.index, Code::kOk, Transport::kShm, bytes);
        }
      }
    }
    done += chunks[c].size();
  }
  batch.pending = std::move(rest);
  return true;
}

bool ClientImpl::SetOverTcp(Channel& channel, PutBatch& batch, const PutOptions& options) {
  RespStream& stream = channel.stream();
  const std::vector<size_t> todo = std::move(batch.pending);
  batch.pending.clear();
  size_t sent = 0;
  size_t done = 0;
  const auto fail = [&] {
    batch.pending.assign(todo.begin() + static_cast<ptrdiff_t>(done), todo.end());
    return false;
  };
  const auto read_one = [&] {
    const size_t index = todo[done];
    ReplyHeader reply;
    if (!stream.Next(&reply)) return false;
    const uint64_t bytes = batch.items[index].bytes;
    if (reply.is_null()) {
      batch.Done(index, Code::kConditionNotMet, Transport::kTcp, bytes);
    } else if (reply.is_error()) {
      batch.Error(index, FromErrorReply(reply.text));
    } else if (reply.type == '+') {
      counters_.Wrote(Transport::kTcp, bytes);
      batch.Done(index, Code::kOk, Transport::kTcp, bytes);
    } else {
      return stream.Unexpected("SET");
    }
    ++done;
    return true;
  };
  for (; sent < todo.size(); ++sent) {
    if (sent - done == kSetPipeline) {
      if (!stream.Flush() || !read_one()) return fail();
    }
    const Source& source = batch.items[todo[sent]];
    stream.Begin(3 + (options.ttl_ms > 0 ? 2 : 0) +
                 (options.if_absent || options.if_present ? 1 : 0));
    stream.Word("SET");
    stream.Word(batch.keys[todo[sent]]);
    constexpr uint64_t kCopyBelow = 4096;
    if (source.bytes < kCopyBelow) {
      std::string value;
      value.reserve(source.bytes);
      for (const ConstBuffer& piece : source.pieces) {
        value.append(static_cast<const char*>(piece.data), piece.size);
      }
      stream.Word(value);
    } else if (!stream.BodyAndFlush(source.pieces, source.bytes)) {
      return fail();
    }
    if (options.ttl_ms > 0) {
      stream.Word("PX");
      stream.Word(options.ttl_ms);
    }
    if (options.if_absent || options.if_present) stream.Word(options.if_absent ? "NX" : "XX");
  }
  if (!stream.Flush()) return fail();
  while (done < todo.size()) {
    if (!read_one()) return fail();
  }
  return true;
}

}  // namespace moonpool::client
