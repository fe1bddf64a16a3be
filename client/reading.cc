// ClientImpl: how values are read.
#include <algorithm>
#include <utility>

#include "client/client_impl.h"
#include "client/errors.h"
#include "protocol/crc32c.h"
#include "protocol/seqlock.h"

namespace moonpool::client {

namespace {

// One KV.LOCATE asks for at most this many keys, and for values of at most this many bytes, so
// that its leases outlast the copies.
constexpr size_t kLocateKeys = 128;
constexpr uint64_t kLocateBytes = 512ull << 20;
// What this processor copies itself is asked for in smaller parts: the server brings the next up from its
// SSD meanwhile.
constexpr uint64_t kPullBytes = 8ull << 20;
// A value that changes under every copy is read over RESP instead after so many tries.
constexpr int kPullAttempts = 8;
constexpr size_t kGetPipeline = 64;
// Pieces of device memory that are smaller on the average are filled by one launch out of staged
// bytes: a NIC takes a request for every sixteen or thirty of them, each a short write to the
// device.
constexpr uint64_t kLeastDirectPiece = 4096;

uint64_t Room(const Target& target) {
  if (target.pages != nullptr) return target.pages->bytes();
  uint64_t room = 0;
  for (const Buffer& piece : target.pieces) room += piece.size;
  return room;
}

// The first `bytes` of where it goes.
void AddParts(const Target& target, uint64_t bytes, std::vector<Buffer>* parts) {
  if (target.text != nullptr) {
    parts->push_back({target.text->data(), bytes});
    return;
  }
  for (const Buffer& piece : target.pieces) {
    const uint64_t part = std::min<uint64_t>(bytes, piece.size);
    if (bytes == 0) break;
    if (part == 0) continue;  // an empty piece among others
    parts->push_back({piece.data, part});
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
  GpuWork gpu(parked_);
  GetBatch batch{keys, targets, results, {}, Clock::now(), &gpu};
  if (targets.size() != keys.size()) {
    for (size_t i = 0; i < keys.size(); ++i) {
      batch.Done(i, Code::kInvalidArgument, Transport::kNone, 0, "one buffer per key is needed");
    }
    return results;
  }
  batch.pending.resize(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) batch.pending[i] = i;
  FindDevices(batch);
  Get(batch);
  return results;
}

void ClientImpl::Get(GetBatch& batch) {
  uint64_t room = 0;
  for (const Target& target : batch.items) room += Room(target);  // of strings it is not known
  batch.room = room;
  std::optional<Transport> chosen;  // of rdma and tcp, once there is a choice
  Status status;
  for (int attempt = 0; !batch.pending.empty() && status.ok(); ++attempt) {
    status = WithChannel([&](Channel& channel) {
      if (attempt < kPullAttempts) {
        if (channel.shm()) return LocateAndPull(channel, nullptr, batch);
        if (RdmaSession* rdma = QueuePairs(channel)) {
          bulk_threshold_.store(channel.limits().bulk_threshold, std::memory_order_relaxed);
          if (!chosen) chosen = ChooseFor(read_pace_, room);
          return *chosen == Transport::kTcp ? GetOverTcp(channel, batch)
                                            : LocateAndPull(channel, rdma, batch);
        }
        if (!channel.usable()) return false;  // a token was asked for over it
      }
      if (options_.transport != Options::TransportChoice::kTcp) {
        counters_.FellBack(batch.pending.size());
      }
      return GetOverTcp(channel, batch);
    });
  }
  for (const size_t index : batch.pending) batch.Error(index, status);
  batch.pending.clear();
  if (chosen) Learn(read_pace_, *chosen, room, batch);
}

bool ClientImpl::LocateAndPull(Channel& channel, RdmaSession* rdma, GetBatch& batch) {
  RespStream& stream = channel.stream();
  // Chunks of the pending keys; while one is copied, the server works on the next.
  const std::vector<size_t> todo = std::move(batch.pending);
  batch.pending.clear();
  const auto chunks =
      Chunks(todo, std::min(kLocateKeys, channel.limits().max_batch_keys),
             rdma != nullptr || !batch.gpu->empty() ? kLocateBytes : kPullBytes,
             [&](size_t index) { return Room(batch.items[index]); });
  size_t done = 0;
  std::vector<Pull> pulls;
  const auto run = [&] {
    if (rdma != nullptr) {
      RunReads(channel, *rdma, pulls, batch);
    } else {
      RunPulls(channel, pulls, batch);
    }
    pulls.clear();
  };
  const auto fail = [&] {
    run();
    batch.pending.insert(batch.pending.end(), batch.unreachable.begin(), batch.unreachable.end());
    batch.unreachable.clear();
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
        const bool wanted = rdma != nullptr ? PrepareRead(channel, pull, batch)
                                            : PreparePull(channel, pull, batch);
        if (wanted) pulls.push_back(std::move(pull));
      } else {
        stream.Unexpected("an element of KV.LOCATE");
        return fail();
      }
      ++done;
    }
    run();
  }
  if (batch.unreachable.empty()) return true;
  counters_.FellBack(batch.unreachable.size());
  std::vector<size_t> again = std::exchange(batch.pending, std::move(batch.unreachable));
  batch.unreachable.clear();
  const bool got = GetOverTcp(channel, batch);
  batch.pending.insert(batch.pending.end(), again.begin(), again.end());
  return got;
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
  if (batch.gpu->Takes(index)) return ReadStaged(channel, header, index, batch);
  Buffer whole;
  std::span<const Buffer> pieces = target.pieces;
  if (target.text != nullptr) {
    whole = {target.text->data(), target.text->size()};
    pieces = std::span(&whole, 1);
  }
  if (!channel.stream().ReadBulk(pieces, bytes)) return false;
  counters_.Read(Transport::kTcp, bytes);
  batch.Done(index, Code::kOk, Transport::kTcp, bytes);
  return true;
}

bool ClientImpl::PreparePull(Channel& channel, Pull& pull, GetBatch& batch) {
  const protocol::Descriptor& descriptor = pull.descriptor;
  const uint64_t bytes = descriptor.length;
  const bool in_device = descriptor.tier == protocol::Tier::kGpu;
  pull.mapping = channel.Map(descriptor.region, false);
  pull.counter = channel.memory()->counter(descriptor.slot);
  if (pull.mapping != nullptr &&
      (pull.counter == nullptr || descriptor.offset > pull.mapping->bytes() ||
       bytes > pull.mapping->bytes() - descriptor.offset)) {
    batch.Done(pull.index, Code::kProtocol, Transport::kShm, bytes,
               "a descriptor points outside its region");
  } else if (pull.mapping == nullptr && in_device) {
    // A device that this process cannot reach: the server can.
    batch.unreachable.push_back(pull.index);
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
  std::vector<Buffer> parts;
  std::vector<const Pull*> copied;
  pieces.reserve(pulls.size());
  copied.reserve(pulls.size());
  for (const Pull& pull : pulls) {
    if (batch.gpu->Takes(pull.index) || pull.mapping->device() != nullptr) {
      PullByDevice(channel, pull, batch);
      continue;
    }
    copied.push_back(&pull);
    parts.clear();
    AddParts(batch.items[pull.index], pull.descriptor.length, &parts);
    const char* from = pull.mapping->data() + pull.descriptor.offset;
    for (const Buffer& part : parts) {
      pieces.push_back({part.data, from, part.size});
      from += part.size;
    }
  }
  if (!batch.gpu->deferred()) batch.gpu->Submit(Deadline());
  copier_.Copy(pieces, batch.room);
  batch.now = Clock::now();
  for (const Pull* pull : copied) {
    if (pull->descriptor.lease != 0) channel.QueueRelease(pull->descriptor.lease);
    if (!protocol::GenerationUnchanged(*pull->counter, pull->descriptor.generation)) {
      counters_.generation_retries.fetch_add(1, std::memory_order_relaxed);
      batch.pending.push_back(pull->index);
    } else {
      Pulled(*pull, Transport::kShm, batch);
    }
  }
  batch.now.reset();
  FinishMoves(batch);
}

void ClientImpl::Pulled(const Pull& pull, Transport transport, GetBatch& batch) {
  const uint64_t bytes = pull.descriptor.length;
  if (options_.checksum && pull.descriptor.crc &&
      ChecksumOf(batch.items[pull.index], bytes) != *pull.descriptor.crc) {
    batch.Done(pull.index, Code::kCorrupt, transport, bytes,
               "the bytes do not have their checksum");
    return;
  }
  counters_.Read(transport, bytes);
  batch.Done(pull.index, Code::kOk, transport, bytes);
}

// --- over RDMA ---------------------------------------------------------------------------------

bool ClientImpl::PrepareRead(Channel& channel, const Pull& pull, GetBatch& batch) {
  const uint64_t bytes = pull.descriptor.length;
  if (batch.items[pull.index].Accept(bytes)) return true;
  batch.Done(pull.index, Code::kBufferTooSmall, Transport::kRdma, bytes,
             "the value has " + std::to_string(bytes) + " bytes");
  if (pull.descriptor.lease != 0) channel.QueueRelease(pull.descriptor.lease);
  return false;
}

void ClientImpl::RunReads(Channel& channel, RdmaSession& rdma, std::span<const Pull> pulls,
                          GetBatch& batch) {
  std::vector<Pull> staged;
  while (!pulls.empty()) pulls = pulls.subspan(ReadSome(channel, rdma, pulls, &staged, batch));
  for (std::span<const Pull> left = staged; !left.empty();) {
    left = left.subspan(ReadSome(channel, rdma, left, nullptr, batch));
  }
  FinishMoves(batch);
}

// READs are in the order of nobody's stream.  What must find its place there, behind work that may
// still use the buffer, is staged: to wait for the stream would hold the caller up.  So is what the
// processor is to check, and pages, which are put into streams.
bool ClientImpl::MayLandOnDevice(const Pull& pull, const GetBatch& batch) const {
  const Target& target = batch.items[pull.index];
  return options_.gpu_rdma != Options::GpuChoice::kNo && !batch.gpu->deferred() &&
         !(options_.checksum && pull.descriptor.crc) && !target.pieces.empty() &&
         pull.descriptor.length / target.pieces.size() >= kLeastDirectPiece;
}

// One transfer for all of them: slices of several values are under way at once.  Device memory that
// NICs do not reach is filled from pinned memory afterwards.
size_t ClientImpl::ReadSome(Channel& channel, RdmaSession& rdma, std::span<const Pull> pulls,
                            std::vector<Pull>* not_direct, GetBatch& batch) {
  std::vector<const Pull*> read;
  std::vector<Buffer> parts;
  std::vector<size_t> ends;
  std::vector<bool> direct;
  if (batch.gpu->full()) FinishMoves(batch);
  size_t count = 0;
  for (; count < pulls.size() && !batch.gpu->full(); ++count) {
    const Pull& pull = pulls[count];
    const bool on_device = batch.gpu->Takes(pull.index);
    const bool lands = on_device && not_direct != nullptr && MayLandOnDevice(pull, batch);
    if (!on_device || lands) {
      AddParts(batch.items[pull.index], pull.descriptor.length, &parts);
    } else if (const Result<char*> memory =
                   batch.gpu->Stage(batch.gpu->DeviceFor(pull.index), pull.descriptor.length)) {
      parts.push_back({*memory, pull.descriptor.length});
    } else {
      batch.Error(pull.index, FromDeviceError(memory.error()));
      if (pull.descriptor.lease != 0) channel.QueueRelease(pull.descriptor.lease);
      continue;
    }
    read.push_back(&pull);
    ends.push_back(parts.size());
    direct.push_back(lands);
  }
  std::vector<RdmaSession::Value> values;
  values.reserve(read.size());
  for (size_t i = 0; i < read.size(); ++i) {
    const protocol::Descriptor& descriptor = read[i]->descriptor;
    const size_t first = i == 0 ? 0 : ends[i - 1];
    values.push_back({descriptor.region, descriptor.offset, descriptor.length, descriptor.slot,
                      descriptor.generation, std::span(parts).subspan(first, ends[i] - first),
                      direct[i]});
  }
  std::vector<RdmaSession::Outcome> outcomes;
  const Status flushed =
      rdma.Read(values, Clock::now() + std::chrono::milliseconds(options_.timeout_ms), &outcomes);
  batch.now = Clock::now();
  for (size_t i = 0; i < read.size(); ++i) {
    const Pull& pull = *read[i];
    if (direct[i] && (outcomes[i] == RdmaSession::Outcome::kNotRegistered ||
                      outcomes[i] == RdmaSession::Outcome::kUnreachable)) {
      not_direct->push_back(pull);
      continue;
    }
    if (pull.descriptor.lease != 0) channel.QueueRelease(pull.descriptor.lease);
    switch (outcomes[i]) {
      case RdmaSession::Outcome::kDone:
        if (batch.gpu->Takes(pull.index) && !direct[i]) {
          PutOnDevice(pull, static_cast<char*>(values[i].into[0].data), batch);
          break;
        }
        if (direct[i]) counters_.gpu_rdma_direct_values.fetch_add(1, std::memory_order_relaxed);
        Pulled(pull, Transport::kRdma, batch);
        break;
      case RdmaSession::Outcome::kChanged:
      case RdmaSession::Outcome::kNotThere:
        counters_.generation_retries.fetch_add(1, std::memory_order_relaxed);
        batch.pending.push_back(pull.index);
        break;
      case RdmaSession::Outcome::kUnreachable:
      case RdmaSession::Outcome::kNotRegistered:
        batch.unreachable.push_back(pull.index);
        break;
      case RdmaSession::Outcome::kDeviceFailed:
        batch.Error(pull.index, flushed);
        break;
    }
  }
  batch.now.reset();
  return count;
}

// --- over RESP ---------------------------------------------------------------------------------

bool ClientImpl::GetOverTcp(Channel& channel, GetBatch& batch) {
  RespStream& stream = channel.stream();
  const std::vector<size_t> todo = std::move(batch.pending);
  batch.pending.clear();
  size_t done = 0;
  size_t sent = 0;
  const auto fail = [&] {
    batch.pending.assign(todo.begin() + static_cast<ptrdiff_t>(done), todo.end());
    FinishMoves(batch);
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
  FinishMoves(batch);
  return true;
}

}  // namespace moonpool::client
