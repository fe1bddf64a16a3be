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

std::string WrongOptions(const PutOptions& options) {
  if (options.ttl_ms < 0) return "ttl_ms must not be negative";
  if (options.if_absent && options.if_present) {
    return "if_absent and if_present exclude each other";
  }
  return "";
}

std::vector<KeyResult> ClientImpl::PutFrom(std::span<const std::string_view> keys,
                                           std::span<const Source> sources,
                                           const PutOptions& options) {
  std::vector<KeyResult> results(keys.size());
  GpuWork gpu(parked_);
  PutBatch batch{keys, sources, results, {}, Clock::now(), &gpu};
  std::string wrong = WrongOptions(options);
  if (sources.size() != keys.size()) wrong = "one buffer per key is needed";
  if (!wrong.empty()) {
    for (size_t i = 0; i < keys.size(); ++i) {
      batch.Done(i, Code::kInvalidArgument, Transport::kNone, 0, wrong);
    }
    return results;
  }
  batch.pending.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) batch.pending[i] = i;
  FindDevices(batch);
  Put(batch, NearestFirst(gpu, options));
  return results;
}

void ClientImpl::Put(PutBatch& batch, const PutOptions& options) {
  if (batch.pending.empty()) return;
  // So that the session is given a device's memory, as far as this process may have it.
  if (options.prefer.find("gpu") != std::string::npos && DeviceMemoryPossible()) {
    gpu_wanted_.store(true, std::memory_order_relaxed);
  }
  uint64_t bytes = 0;
  for (const Source& source : batch.items) bytes += source.bytes;
  std::optional<Transport> chosen;  // of rdma and tcp, once there is a choice
  const auto let_server_read = [&](Channel& channel) {
    RdmaSession* const rdma = QueuePairs(channel);
    if (rdma == nullptr) return channel.usable();  // a token was asked for over it
    bulk_threshold_.store(channel.limits().bulk_threshold, std::memory_order_relaxed);
    // SET has no PREFER.
    if (!chosen && options.prefer.empty()) chosen = ChooseFor(write_pace_, bytes);
    return chosen == Transport::kTcp || LetServerRead(channel, *rdma, batch, options);
  };
  const Status status = WithChannel([&](Channel& channel) {
    // A checksum is the processor's work: it needs the bytes in host memory.
    if (channel.shm() && !options_.checksum && !AllocateAndPush(channel, batch, options)) {
      return false;
    }
    // Out of device memory, as far as NICs reach it.
    if (!channel.shm() && !batch.gpu->empty() && !options_.checksum && !let_server_read(channel)) {
      return false;
    }
    return batch.pending.empty() || PutStaged(batch, [&] {
      if (channel.shm()) {
        if (options_.checksum && !AllocateAndPush(channel, batch, options)) return false;
      } else if (!let_server_read(channel)) {
        return false;
      }
      return batch.pending.empty() || SetOverTcp(channel, batch, options);
    });
  });
  for (const size_t index : batch.pending) batch.Error(index, status);
  batch.pending.clear();
  if (chosen) Learn(write_pace_, *chosen, bytes, batch);
}

// Large values, through this session's write arenas.  Leaves small ones, and those that found no
// room in an arena, to SetOverTcp.  When devices copy later, only registers what they are to copy.
bool ClientImpl::AllocateAndPush(Channel& channel, PutBatch& batch, const PutOptions& options) {
  RespStream& stream = channel.stream();
  std::vector<size_t> large;
  std::vector<size_t> rest;
  for (const size_t index : batch.pending) {
    (batch.items[index].bytes >= channel.limits().bulk_threshold ? large : rest).push_back(index);
  }
  const bool deferred = batch.gpu->deferred();
  size_t done = 0;
  const auto fail = [&] {
    if (deferred) {
      // The session is lost, and all that it was given.
      batch.gpu->Clear();
      return false;
    }
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
  for (size_t c = 0; c < chunks.size(); ++c) {
    if (!ReadAllocations(channel, chunks[c], batch, &allocations, &rest)) return fail();
    FindExtents(channel, batch, &allocations, &rest);
    // Into fresh extents, which nobody reads yet.
    if (deferred) {
      for (const Allocation& allocation : allocations) PushByDevice(channel, allocation, batch);
      allocations.clear();
    } else {
      Push(channel, batch, &allocations);
    }
    WordsOfCommit(stream, batch, allocations);
    // The next chunk's extents come back behind this chunk's commits.
    if (c + 1 < chunks.size()) {
      WordsOfAlloc(stream, batch.keys, batch.items, chunks[c + 1], options);
    }
    if (!stream.Flush() || !ReadCommits(stream, batch, allocations)) return fail();
    done += chunks[c].size();
  }
  batch.pending = std::move(rest);
  return true;
}

// What KV.ALLOC answers.  Leaves keys without an extent to `rest`.
bool ClientImpl::ReadAllocations(Channel& channel, std::span<const size_t> chunk, PutBatch& batch,
                                 std::vector<Allocation>* allocations,
                                 std::vector<size_t>* rest) {
  RespStream& stream = channel.stream();
  allocations->clear();
  ReplyHeader reply;
  if (!stream.Next(&reply)) return false;
  if (reply.is_error()) {
    const Status error = FromErrorReply(reply.text);
    for (const size_t index : chunk) batch.Error(index, error);
    return true;
  }
  if (reply.elements() != static_cast<int64_t>(chunk.size())) {
    return stream.Unexpected("KV.ALLOC");
  }
  for (const size_t index : chunk) {
    ReplyHeader element;
    if (!stream.Next(&element)) return false;
    if (element.is_error()) {
      const Status error = FromErrorReply(element.text);
      if (error.code == Code::kOutOfMemory) {
        // No room for this session's arenas; the shared regions may have some.
        counters_.fallbacks.fetch_add(1, std::memory_order_relaxed);
        rest->push_back(index);
      } else {
        batch.Error(index, error);
      }
      continue;
    }
    ReplyHeader fields[4];
    if (element.elements() != 4) return stream.Unexpected("an element of KV.ALLOC");
    for (ReplyHeader& field : fields) {
      if (!stream.Next(&field)) return false;
      if (field.type != ':') return stream.Unexpected("a field of KV.ALLOC");
    }
    allocations->push_back({index, fields[0].value, static_cast<uint32_t>(fields[1].value),
                            static_cast<uint64_t>(fields[2].value), nullptr, 0});
  }
  return true;
}

void ClientImpl::Abort(Channel& channel, std::string_view key, int64_t token) {
  RespStream& stream = channel.stream();
  stream.Begin(4);
  stream.Word("KV.ABORT");
  stream.Word("1");
  stream.Word(key);
  stream.Word(token);
  stream.DropReply();
}

// Maps what was allocated.  Leaves to `rest` what cannot be had.
void ClientImpl::FindExtents(Channel& channel, PutBatch& batch,
                             std::vector<Allocation>* allocations, std::vector<size_t>* rest) {
  std::erase_if(*allocations, [&](Allocation& allocation) {
    const uint64_t bytes = batch.items[allocation.index].bytes;
    allocation.mapping = channel.Map(allocation.region, true);
    if (allocation.mapping != nullptr && allocation.offset <= allocation.mapping->bytes() &&
        bytes <= allocation.mapping->bytes() - allocation.offset) {
      return false;
    }
    // Its region is gone, or of a device that this process does not reach.
    counters_.fallbacks.fetch_add(1, std::memory_order_relaxed);
    rest->push_back(allocation.index);
    Abort(channel, batch.keys[allocation.index], allocation.token);
    return true;
  });
}

// Copies the values into their extents.  What could not be copied is done with an error.
void ClientImpl::Push(Channel& channel, PutBatch& batch, std::vector<Allocation>* allocations) {
  GpuWork& gpu = *batch.gpu;
  std::vector<Copier::Piece> pieces;
  for (Allocation& allocation : *allocations) {
    const Source& source = batch.items[allocation.index];
    if (gpu.Takes(allocation.index) || allocation.mapping->device() != nullptr) {
      PushByDevice(channel, allocation, batch);
    } else {
      AddPieces(allocation.mapping->data() + allocation.offset, source, &pieces);
    }
    if (options_.checksum) allocation.crc = ChecksumOf(source);
  }
  gpu.Submit(Deadline());
  copier_.Copy(pieces);
  gpu.WaitUntil(Deadline());
  for (const GpuMove& move : gpu.moves()) {
    if (move.outcome == GpuMove::Outcome::kDone) {
      counters_.gpu_values.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    batch.Error(move.index, FromDeviceError(move.error));
    if (move.outcome == GpuMove::Outcome::kLeft) {
      channel.Park();
    } else {
      Abort(channel, batch.keys[move.index], move.token);
    }
    std::erase_if(*allocations,
                  [&](const Allocation& allocation) { return allocation.index == move.index; });
  }
  gpu.Clear();
}

void ClientImpl::WordsOfCommit(RespStream& stream, const PutBatch& batch,
                               std::span<const Allocation> allocations) {
  if (allocations.empty()) return;
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

bool ClientImpl::ReadCommits(RespStream& stream, PutBatch& batch,
                             std::span<const Allocation> allocations) {
  if (allocations.empty()) return true;
  ReplyHeader reply;
  if (!stream.Next(&reply)) return false;
  const bool whole = reply.is_error();
  const Status error = whole ? FromErrorReply(reply.text) : Status();
  if (!whole && reply.elements() != static_cast<int64_t>(allocations.size())) {
    return stream.Unexpected("KV.COMMIT");
  }
  for (const Allocation& allocation : allocations) {
    const uint64_t bytes = batch.items[allocation.index].bytes;
    const Transport transport = allocation.transport();
    ReplyHeader element;
    if (whole) {
      batch.Error(allocation.index, error);
      continue;
    }
    if (!stream.Next(&element)) return false;
    if (element.is_null()) {
      batch.Done(allocation.index, Code::kConditionNotMet, transport, bytes);
    } else if (element.is_error()) {
      batch.Error(allocation.index, FromErrorReply(element.text));
    } else {
      counters_.Wrote(transport, bytes);
      batch.Done(allocation.index, Code::kOk, transport, bytes);
    }
  }
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
