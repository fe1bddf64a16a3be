// ClientImpl: how values are read.
#include <algorithm>

#include "client/client_impl.h"
#include "client/errors.h"
#include "client/view_state.h"
#include "protocol/crc32c.h"
#include "protocol/seqlock.h"

namespace moonpool::client {

namespace {

// One KV.LOCATE asks for at most this many keys, and for values of at most this many bytes, so
// that its leases outlast the copies.
constexpr size_t kLocateKeys = 128;
constexpr uint64_t kLocateBytes = 512ull << 20;
// A value that changes under every copy is read over RESP instead after so many tries.
constexpr int kPullAttempts = 8;
constexpr size_t kGetPipeline = 64;

uint64_t Room(const Target& target) {
  uint64_t room = 0;
  for (const Buffer& piece : target.pieces) room += piece.size;
  return room;
}

// Where the `bytes` from `from` on go.
void AddPieces(const Target& target, const char* from, uint64_t bytes,
               std::vector<Copier::Piece>* pieces) {
  if (target.text != nullptr) {
    pieces->push_back({target.text->data(), from, bytes});
    return;
  }
  for (const Buffer& piece : target.pieces) {
    const uint64_t part = std::min<uint64_t>(bytes, piece.size);
    if (part == 0) break;
    pieces->push_back({piece.data, from, part});
    from += part;
    bytes -= part;
  }
}

uint32_t ChecksumOf(const Target& target, uint64_t bytes) {
  if (target.text != nullptr) return protocol::Crc32c(0, target.text->data(), bytes);
  uint32_t crc = 0;
  for (const Buffer& piece : target.pieces) {
    const uint64_t part = std::min<uint64_t>(bytes, piece.size);
    crc = protocol::Crc32c(crc, piece.data, part);
    bytes -= part;
  }
  return crc;
}

void WordsOfLocate(RespStream& stream, std::span<const std::string_view> keys,
                   std::span<const size_t> indexes, int lease_ms) {
  stream.Begin(2 + indexes.size() + (lease_ms > 0 ? 2 : 0));
  stream.Word("KV.LOCATE");
  stream.Word(static_cast<int64_t>(indexes.size()));
  for (const size_t index : indexes) stream.Word(keys[index]);
  if (lease_ms > 0) {
    stream.Word("LEASE");
    stream.Word(static_cast<int64_t>(lease_ms));
  }
}

}  // namespace

std::vector<KeyResult> ClientImpl::GetInto(std::span<const std::string_view> keys,
                                           std::span<const Target> targets) {
  std::vector<KeyResult> results(keys.size());
  GetBatch batch{keys, targets, results, {}, Clock::now()};
  if (targets.size() != keys.size()) {
    for (size_t i = 0; i < keys.size(); ++i) {
      batch.Done(i, Code::kInvalidArgument, Transport::kNone, 0, "one buffer per key is needed");
    }
    return results;
  }
  batch.pending.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) batch.pending[i] = i;
  Status status;
  for (int attempt = 0; !batch.pending.empty() && status.ok(); ++attempt) {
    status = WithChannel([&](Channel& channel) {
      if (channel.shm() && attempt < kPullAttempts) return LocateAndPull(channel, batch);
      if (options_.transport != Options::TransportChoice::kTcp) {
        counters_.fallbacks.fetch_add(batch.pending.size(), std::memory_order_relaxed);
      }
      return GetOverTcp(channel, batch);
    });
  }
  for (const size_t index : batch.pending) batch.Error(index, status);
  return results;
}

bool ClientImpl::LocateAndPull(Channel& channel, GetBatch& batch) {
  RespStream& stream = channel.stream();
  // Chunks of the pending keys; while one is copied, the server works on the next.
  const std::vector<size_t> todo = std::move(batch.pending);
  batch.pending.clear();
  const auto chunks =
      Chunks(todo, std::min(kLocateKeys, channel.limits().max_batch_keys), kLocateBytes,
             [&](size_t index) { return Room(batch.items[index]); });
  size_t done = 0;
  std::vector<Pull> pulls;
  const auto fail = [&] {
    RunPulls(channel, pulls, batch);
    batch.pending.insert(batch.pending.end(), todo.begin() + static_cast<ptrdiff_t>(done),
                         todo.end());
    return false;
  };
  if (!chunks.empty()) {
    WordsOfLocate(stream, batch.keys, chunks[0], options_.lease_ms);
    if (!stream.Flush()) return fail();
  }
  for (size_t c = 0; c < chunks.size(); ++c) {
    if (c + 1 < chunks.size()) {
      WordsOfLocate(stream, batch.keys, chunks[c + 1], options_.lease_ms);
      if (!stream.Flush()) return fail();
    }
    ReplyHeader reply;
    if (!stream.Next(&reply)) return fail();
    if (reply.is_error()) {
      const Status error = FromErrorReply(reply.text);
      for (const size_t index : chunks[c]) batch.Error(index, error);
      done += chunks[c].size();
      continue;
    }
    if (reply.elements() != static_cast<int64_t>(chunks[c].size())) {
      stream.Unexpected("KV.LOCATE");
      return fail();
    }
    for (const size_t index : chunks[c]) {
      ReplyHeader element;
      if (!stream.Next(&element)) return fail();
      if (element.is_null()) {
        batch.Done(index, Code::kMiss);
      } else if (element.is_error()) {
        batch.Error(index, FromErrorReply(element.text));
      } else if (element.is_bulk()) {
        if (!ReadInline(channel, element, index, batch)) return fail();
        counters_.inline_values.fetch_add(1, std::memory_order_relaxed);
      } else if (element.elements() == protocol::Descriptor::kFields) {
        Pull pull{index, {}, nullptr, nullptr};
        if (!channel.ReadDescriptor(&pull.descriptor)) return fail();
        if (PreparePull(channel, pull, batch)) pulls.push_back(std::move(pull));
      } else {
        stream.Unexpected("an element of KV.LOCATE");
        return fail();
      }
      ++done;
    }
    RunPulls(channel, pulls, batch);
    pulls.clear();
  }
  return true;
}

// The value itself came in the reply.
bool ClientImpl::ReadInline(Channel& channel, const ReplyHeader& header, size_t index,
                            GetBatch& batch) {
  const auto bytes = static_cast<uint64_t>(header.value);
  const Target& target = batch.items[index];
  if (!target.Accept(bytes)) {
    if (!channel.stream().Skip(header)) return false;
    batch.Done(index, Code::kBufferTooSmall, Transport::kTcp, bytes,
               "the value has " + std::to_string(bytes) + " bytes");
    return true;
  }
  Buffer whole;
  std::span<const Buffer> pieces = target.pieces;
  if (target.text != nullptr) {
    whole = {target.text->data(), target.text->size()};
    pieces = std::span(&whole, 1);
  }
  if (!channel.stream().ReadBulk(pieces, bytes)) return false;
  const auto tcp = static_cast<size_t>(Transport::kTcp);
  counters_.values_read[tcp].fetch_add(1, std::memory_order_relaxed);
  counters_.bytes_read[tcp].fetch_add(bytes, std::memory_order_relaxed);
  batch.Done(index, Code::kOk, Transport::kTcp, bytes);
  return true;
}

bool ClientImpl::PreparePull(Channel& channel, Pull& pull, GetBatch& batch) {
  const protocol::Descriptor& descriptor = pull.descriptor;
  const uint64_t bytes = descriptor.length;
  pull.mapping = channel.Map(descriptor.region, false);
  pull.counter = channel.memory()->counter(descriptor.slot);
  if (pull.mapping != nullptr &&
      (pull.counter == nullptr || descriptor.offset > pull.mapping->bytes() ||
       bytes > pull.mapping->bytes() - descriptor.offset)) {
    batch.Done(pull.index, Code::kProtocol, Transport::kShm, bytes,
               "a descriptor points outside its region");
  } else if (pull.mapping == nullptr ||
             protocol::LoadGeneration(*pull.counter) != descriptor.generation) {
    // It is not that version any more, or its region is gone: a fresh descriptor will tell.
    counters_.generation_retries.fetch_add(1, std::memory_order_relaxed);
    batch.pending.push_back(pull.index);
  } else if (!batch.items[pull.index].Accept(bytes)) {
    batch.Done(pull.index, Code::kBufferTooSmall, Transport::kShm, bytes,
               "the value has " + std::to_string(bytes) + " bytes");
  } else {
    return true;
  }
  if (descriptor.lease != 0) channel.QueueRelease(descriptor.lease);
  return false;
}

// Copies the values that the descriptors show.
void ClientImpl::RunPulls(Channel& channel, std::span<const Pull> pulls, GetBatch& batch) {
  std::vector<Copier::Piece> pieces;
  pieces.reserve(pulls.size());
  for (const Pull& pull : pulls) {
    AddPieces(batch.items[pull.index], pull.mapping->data() + pull.descriptor.offset,
              pull.descriptor.length, &pieces);
  }
  copier_.Copy(pieces);
  for (const Pull& pull : pulls) {
    const uint64_t bytes = pull.descriptor.length;
    if (pull.descriptor.lease != 0) channel.QueueRelease(pull.descriptor.lease);
    if (!protocol::GenerationUnchanged(*pull.counter, pull.descriptor.generation)) {
      counters_.generation_retries.fetch_add(1, std::memory_order_relaxed);
      batch.pending.push_back(pull.index);
    } else if (options_.checksum && pull.descriptor.crc &&
               ChecksumOf(batch.items[pull.index], bytes) != *pull.descriptor.crc) {
      batch.Done(pull.index, Code::kCorrupt, Transport::kShm, bytes,
                 "the bytes do not have their checksum");
    } else {
      const auto shm = static_cast<size_t>(Transport::kShm);
      counters_.values_read[shm].fetch_add(1, std::memory_order_relaxed);
      counters_.bytes_read[shm].fetch_add(bytes, std::memory_order_relaxed);
      batch.Done(pull.index, Code::kOk, Transport::kShm, bytes);
    }
  }
}

bool ClientImpl::GetOverTcp(Channel& channel, GetBatch& batch) {
  RespStream& stream = channel.stream();
  const std::vector<size_t> todo = std::move(batch.pending);
  batch.pending.clear();
  size_t done = 0;
  size_t sent = 0;
  const auto fail = [&] {
    batch.pending.assign(todo.begin() + static_cast<ptrdiff_t>(done), todo.end());
    return false;
  };
  while (done < todo.size()) {
    // Keep the pipeline filled: ask for more when half of it has been read.
    if (sent - done <= kGetPipeline / 2 && sent < todo.size()) {
      for (; sent < todo.size() && sent - done < kGetPipeline; ++sent) {
        stream.Begin(2);
        stream.Word("GET");
        stream.Word(batch.keys[todo[sent]]);
      }
      if (!stream.Flush()) return fail();
    }
    const size_t index = todo[done];
    ReplyHeader reply;
    if (!stream.Next(&reply)) return fail();
    if (reply.is_null()) {
      batch.Done(index, Code::kMiss);
    } else if (reply.is_error()) {
      batch.Error(index, FromErrorReply(reply.text));
    } else if (reply.is_bulk()) {
      if (!ReadInline(channel, reply, index, batch)) return fail();
    } else {
      stream.Unexpected("GET");
      return fail();
    }
    ++done;
  }
  return true;
}

Status ClientImpl::GetView(std::string_view key, View* view) {
  Status answer;
  *view = View();
  counters_.views.fetch_add(1, std::memory_order_relaxed);
  Status status;
  for (int attempt = 0; attempt < kPullAttempts; ++attempt) {
    protocol::Descriptor descriptor;
    bool located = false;
    std::shared_ptr<Channel> holder;
    auto state = std::make_unique<View::State>();
    status = WithChannel([&](Channel& channel) {
      RespStream& stream = channel.stream();
      answer = {};
      if (!channel.shm()) return ReadCopy(channel, key, &state->copy, &answer);
      stream.Begin(4);
      stream.Word("KV.LOCATE");
      stream.Word("1");
      stream.Word(key);
      stream.Word("HOLD");
      ReplyHeader reply;
      if (!stream.Flush() || !stream.Next(&reply)) return false;
      if (reply.is_error()) {
        answer = FromErrorReply(reply.text);
        return true;
      }
      ReplyHeader element;
      if (reply.elements() != 1 || !stream.Next(&element)) {
        return stream.Unexpected("KV.LOCATE");
      }
      if (element.is_null()) {
        answer.code = Code::kMiss;
      } else if (element.is_error()) {
        answer = FromErrorReply(element.text);
      } else if (element.is_bulk()) {
        return stream.ReadBulk(&state->copy, static_cast<uint64_t>(element.value));
      } else {
        if (!channel.ReadDescriptor(&descriptor)) return false;
        located = true;
        holder = channel.shared_from_this();
      }
      return true;
    });
    if (!status.ok()) return status;
    if (!answer.ok()) return answer;
    if (!located) {
      counters_.view_copies.fetch_add(1, std::memory_order_relaxed);
      view->data_ = state->copy.data();
      view->size_ = state->copy.size();
      view->state_ = std::move(state);
      return {};
    }
    state->mapping = holder->Map(descriptor.region, false);
    state->memory = holder->memory();
    state->channel = holder;
    state->counter = holder->memory()->counter(descriptor.slot);
    state->generation = descriptor.generation;
    if (descriptor.lease_ms == protocol::Descriptor::kHold) state->hold = descriptor.lease;
    if (state->mapping == nullptr || state->counter == nullptr ||
        descriptor.offset > state->mapping->bytes() ||
        descriptor.length > state->mapping->bytes() - descriptor.offset ||
        protocol::LoadGeneration(*state->counter) != descriptor.generation) {
      continue;
    }
    const char* data = state->mapping->data() + descriptor.offset;
    if (state->hold == 0) {
      // The server is short of memory and gave a lease instead: copy now.
      state->copy.resize(descriptor.length);
      protocol::RacyCopy(state->copy.data(), data, descriptor.length);
      if (!protocol::GenerationUnchanged(*state->counter, descriptor.generation)) continue;
      data = state->copy.data();
      state->channel = nullptr;
      counters_.view_copies.fetch_add(1, std::memory_order_relaxed);
    }
    view->data_ = data;
    view->size_ = descriptor.length;
    view->state_ = std::move(state);
    return {};
  }
  return {Code::kUnavailable, "the value changed under every attempt to hold it"};
}

bool ClientImpl::ReadCopy(Channel& channel, std::string_view key, std::string* copy,
                          Status* answer) {
  RespStream& stream = channel.stream();
  stream.Begin(2);
  stream.Word("GET");
  stream.Word(key);
  ReplyHeader reply;
  if (!stream.Flush() || !stream.Next(&reply)) return false;
  if (reply.is_error()) {
    *answer = FromErrorReply(reply.text);
    return true;
  }
  if (reply.is_null()) {
    answer->code = Code::kMiss;
    return true;
  }
  if (!reply.is_bulk()) return stream.Unexpected("GET");
  return stream.ReadBulk(copy, static_cast<uint64_t>(reply.value));
}

}  // namespace moonpool::client
