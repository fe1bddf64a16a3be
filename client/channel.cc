#include "client/channel.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "client/errors.h"

namespace moonpool::client {

namespace {

// As the server builds its own: one boot of one kernel, one network namespace.
std::string HostId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  std::getline(file, boot);
  char net[64] = "net:[0]";
  const ssize_t n = readlink("/proc/self/ns/net", net, sizeof(net) - 1);
  if (n > 0) net[n] = '\0';
  return boot + "/" + net;
}

}  // namespace

Status Channel::Open(const Endpoint& endpoint, const Options& options,
                     std::shared_ptr<NodeMemory>* memory, std::unique_ptr<Channel>* channel) {
  std::unique_ptr<Channel> opened(new Channel());
  if (!opened->stream_.Connect(endpoint, options)) return opened->stream_.failure();
  RespStream& stream = opened->stream_;
  ReplyHeader reply;
  if (!options.password.empty()) {
    stream.Begin(2);
    stream.Word("AUTH");
    stream.Word(options.password);
    if (!stream.Flush() || !stream.Next(&reply)) return stream.failure();
    if (reply.is_error()) return FromErrorReply(reply.text);
  }
  if (Status hello = opened->Hello(endpoint, options, memory); !hello.ok()) return hello;
  *channel = std::move(opened);
  return {};
}

Channel::~Channel() {
  if (attachment_ != nullptr) attachment_->Abandon(*memory_);
}

Status Channel::Hello(const Endpoint&, const Options& options,
                      std::shared_ptr<NodeMemory>* memory) {
  const bool want_shm = options.transport != Options::TransportChoice::kTcp;
  stream_.Begin(want_shm ? 8 : 5);
  stream_.Word("KV.HELLO");
  stream_.Word("1");
  stream_.Word("TRANSPORTS");
  stream_.Word(want_shm ? "2" : "1");
  if (want_shm) stream_.Word("shm");
  stream_.Word("tcp");
  if (want_shm) {
    stream_.Word("HOST");
    stream_.Word(HostId());
  }
  ReplyHeader reply;
  if (!stream_.Flush() || !stream_.Next(&reply)) return stream_.failure();
  if (reply.is_error()) {
    // A server that is plain Redis can still be used, value by value.
    if (reply.text.starts_with("ERR unknown command")) {
      plain_ = true;
      attach_error_ = "the server does not know KV.HELLO";
      if (options.transport != Options::TransportChoice::kShm) return {};
      return {Code::kUnavailable, "no shared memory: " + attach_error_};
    }
    return FromErrorReply(reply.text);
  }
  if (reply.elements() < 0 || reply.elements() % 2 != 0) {
    stream_.Unexpected("KV.HELLO");
    return stream_.failure();
  }
  std::string name, text, attach, token, transport;
  uint64_t epoch = 0;
  for (int64_t i = 0; i < reply.elements(); i += 2) {
    if (!stream_.ReadText(&name)) return stream_.failure();
    ReplyHeader value;
    if (!stream_.Next(&value)) return stream_.failure();
    if (name == "epoch" && value.type == ':') {
      epoch = static_cast<uint64_t>(value.value);
    } else if (name == "limits" && value.elements() > 0) {
      for (int64_t j = 0; j < value.elements(); j += 2) {
        ReplyHeader limit;
        if (!stream_.ReadText(&text) || !stream_.Next(&limit)) return stream_.failure();
        if (limit.type != ':') {
          if (!stream_.Skip(limit)) return stream_.failure();
        } else if (text == "bulk-threshold") {
          limits_.bulk_threshold = static_cast<uint64_t>(limit.value);
        } else if (text == "max-batch-keys" && limit.value > 0) {
          limits_.max_batch_keys = static_cast<size_t>(limit.value);
        }
      }
    } else if (name == "transports" && value.elements() > 0) {
      for (int64_t t = 0; t < value.elements(); ++t) {
        ReplyHeader entry;
        if (!stream_.Next(&entry)) return stream_.failure();
        transport.clear();
        for (int64_t j = 0; j < entry.elements(); j += 2) {
          std::string field, content;
          if (!stream_.ReadText(&field) || !stream_.ReadText(&content)) return stream_.failure();
          if (field == "name") transport = content;
          if (transport == "shm" && field == "attach") attach = content;
          if (transport == "shm" && field == "token") token = content;
        }
      }
    } else if (!stream_.Skip(value)) {
      return stream_.failure();
    }
  }
  if (!want_shm) return {};
  if (attach.empty()) {
    attach_error_ = "the server offers none (another host, or shm is off)";
  } else {
    auto attached = Attachment::Connect(attach, token, options.connect_timeout_ms);
    if (attached) {
      attachment_ = std::move(*attached);
      if (*memory == nullptr || (*memory)->epoch() != epoch) {
        *memory = std::make_shared<NodeMemory>(epoch, attachment_->generations());
      }
      memory_ = *memory;
      return {};
    }
    attach_error_ = attached.error().message;
  }
  if (options.transport != Options::TransportChoice::kShm) return {};
  return {Code::kUnavailable, "no shared memory: " + attach_error_};
}

bool Channel::ReadDescriptor(protocol::Descriptor* descriptor) {
  // [region, offset, length, slot, generation, crc|null, tier, lease, lease_ms]
  int64_t numbers[protocol::Descriptor::kFields] = {};
  for (size_t i = 0; i < protocol::Descriptor::kFields; ++i) {
    ReplyHeader field;
    if (!stream_.Next(&field)) return false;
    if (i == 5 && field.is_null()) {
      descriptor->crc.reset();
      continue;
    }
    if (i == 6) {
      const auto tier = protocol::ParseTier(field.text);
      if (field.type != '+' || !tier) return stream_.Unexpected("a tier in a descriptor");
      descriptor->tier = *tier;
      continue;
    }
    if (field.type != ':') return stream_.Unexpected("a field of a descriptor");
    numbers[i] = field.value;
    if (i == 5) descriptor->crc = static_cast<uint32_t>(field.value);
  }
  descriptor->region = static_cast<uint32_t>(numbers[0]);
  descriptor->offset = static_cast<uint64_t>(numbers[1]);
  descriptor->length = static_cast<uint64_t>(numbers[2]);
  descriptor->slot = static_cast<uint32_t>(numbers[3]);
  descriptor->generation = static_cast<uint64_t>(numbers[4]);
  descriptor->lease = static_cast<uint64_t>(numbers[7]);
  descriptor->lease_ms = numbers[8];
  return true;
}

void Channel::QueueRelease(uint64_t lease) {
  MutexLock lock(releases_mu_);
  releases_.push_back(lease);
  has_releases_.store(true, std::memory_order_relaxed);
}

void Channel::BeginReleases() {
  std::vector<uint64_t> releases;
  {
    MutexLock lock(releases_mu_);
    releases.swap(releases_);
    has_releases_.store(false, std::memory_order_relaxed);
  }
  for (size_t first = 0; first < releases.size(); first += limits_.max_batch_keys) {
    const size_t count = std::min(limits_.max_batch_keys, releases.size() - first);
    stream_.Begin(2 + count);
    stream_.Word("KV.RELEASE");
    stream_.Word(static_cast<int64_t>(count));
    for (size_t i = 0; i < count; ++i) stream_.Word(static_cast<int64_t>(releases[first + i]));
    stream_.DropReply();
  }
}

}  // namespace moonpool::client
