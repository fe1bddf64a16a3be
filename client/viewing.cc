// ClientImpl: views, and what is given in their stead.
#include "client/client_impl.h"
#include "client/errors.h"
#include "client/view_state.h"
#include "protocol/seqlock.h"

namespace moonpool::client {

namespace {

constexpr int kHoldAttempts = 8;

}  // namespace

Status ClientImpl::GetView(std::string_view key, View* view) {
  Status answer;
  *view = View();
  counters_.views.fetch_add(1, std::memory_order_relaxed);
  Status status;
  for (int attempt = 0; attempt < kHoldAttempts; ++attempt) {
    protocol::Descriptor descriptor;
    bool located = false;
    bool by_copy = false;
    std::shared_ptr<Channel> holder;
    auto state = std::make_unique<View::State>();
    status = WithChannel([&](Channel& channel) {
      RespStream& stream = channel.stream();
      answer = {};
      by_copy = !channel.shm() && channel.rdma() != nullptr;
      if (by_copy) return true;
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
        // Nobody looks at a device's memory in place.
        by_copy = descriptor.tier == protocol::Tier::kGpu;
        located = !by_copy;
        holder = channel.shared_from_this();
        if (by_copy && descriptor.lease != 0) channel.QueueRelease(descriptor.lease);
      }
      return true;
    });
    if (!status.ok()) return status;
    if (by_copy) {
      const Target target{{}, &state->copy};
      const KeyResult result = GetInto(std::span(&key, 1), std::span(&target, 1)).front();
      answer = {result.code, result.message};
    }
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
