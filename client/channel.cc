#include "client/channel.h"

#include <algorithm>

#include "client/errors.h"
#include "client/gpu_devices.h"

namespace moonpool::client {

namespace {

Status NoShm(const Status& why) { return {why.code, "no shared memory: " + why.message}; }
Status NoRdma(const Status& why) { return {why.code, "no RDMA: " + why.message}; }

}  // namespace

Status Channel::Open(const Endpoint& endpoint, const Options& options, Common* common,
                     std::unique_ptr<Channel>* channel) {
  using enum Options::TransportChoice;
  if (options.transport == kRdma) {
    if (Status opened = common->rdma->OpenDevices(); !opened.ok()) return NoRdma(opened);
  }
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
  if (Status hello = opened->Hello(options, common); !hello.ok()) return hello;
  *channel = std::move(opened);
  return {};
}

Channel::~Channel() {
  if (attachment_ == nullptr) return;
  // Whatever writes to its extents holds the channel (GpuMove::channel, GpuWork::Park()).
  if (asked_gpu_) attachment_->SayDone();
  attachment_->Abandon(*memory_);
}

Status Channel::Hello(const Options& options, Common* common) {
  using enum Options::TransportChoice;
  const bool want_shm =
      options.transport == kShm || (options.transport == kAuto && common->try_shm);
  const bool want_rdma = options.transport == kRdma ||
                         (options.transport == kAuto && common->rdma->MayTry());
  std::vector<std::string> devices;
  if (want_shm && common->want_gpu) devices = GpuNames(options.gpu);
  asked_gpu_ = common->want_gpu;
  gpu_ = options.gpu;
  WordsOfHello(stream_, want_shm, want_rdma, devices);
  ReplyHeader reply;
  if (!stream_.Flush() || !stream_.Next(&reply)) return stream_.failure();
  if (reply.is_error() && !devices.empty() && reply.text.starts_with("ERR syntax error")) {
    // A server that knows nothing of devices.
    WordsOfHello(stream_, want_shm, want_rdma, {});
    if (!stream_.Flush() || !stream_.Next(&reply)) return stream_.failure();
  }
  if (reply.is_error()) {
    // A server that is plain Redis can still be used, value by value.
    if (!reply.text.starts_with("ERR unknown command")) return FromErrorReply(reply.text);
    plain_ = true;
    const Status plain{Code::kUnavailable, "the server does not know KV.HELLO"};
    if (options.transport == kShm) return NoShm(plain);
    if (options.transport == kRdma) return NoRdma(plain);
    return {};
  }
  HelloAnswer answer;
  if (!ReadHello(stream_, reply, &answer)) return stream_.failure();
  limits_ = answer.limits;
  attach_failed_ = options.transport == kAuto;
  if (want_shm) {
    const Status attached = AttachTo(answer, options, common);
    attach_failed_ = !attached.ok();
    if (attached.ok()) return {};
    if (options.transport == kShm) return NoShm(attached);
  }
  rdma_failed_ = options.transport == kAuto && !want_rdma && !common->rdma->error().empty();
  if (want_rdma) {
    const Status connected = ConnectQueuePairs(answer, options, common);
    if (options.transport == kRdma && !connected.ok()) return NoRdma(connected);
    rdma_failed_ = !connected.ok() && answer.rdma.has_value();
  }
  // On another host shared memory is nothing to be missed.
  if (rdma_ != nullptr && answer.attach.empty()) attach_failed_ = false;
  return stream_.failure();
}

Status Channel::AttachTo(const HelloAnswer& answer, const Options& options, Common* common) {
  if (answer.attach.empty()) {
    return {Code::kUnavailable, "the server offers none (another host, or shm is off)"};
  }
  auto attached = Attachment::Connect(answer.attach, answer.token, options.connect_timeout_ms);
  if (!attached) return FromError(attached.error());
  attachment_ = std::move(*attached);
  if (common->memory == nullptr || common->memory->epoch() != answer.epoch) {
    common->memory = std::make_shared<NodeMemory>(answer.epoch, attachment_->generations());
  }
  memory_ = common->memory;
  return {};
}

Status Channel::ConnectQueuePairs(const HelloAnswer& answer, const Options&, Common* common) {
  if (!answer.rdma) {
    return {Code::kUnavailable,
            "the server offers none (built without it, without a NIC, or switched off: its log and "
            "INFO rdma say which)"};
  }
  return common->rdma->Open(
      *answer.rdma, [this](std::string* token) { return NewToken(token); }, &rdma_);
}

Status Channel::NewToken(std::string* token) {
  stream_.Begin(1);
  stream_.Word("KV.TOKEN");
  ReplyHeader reply;
  if (!stream_.Flush() || !stream_.Next(&reply)) return stream_.failure();
  if (reply.is_error()) return FromErrorReply(reply.text);
  if (reply.elements() != 1) {
    stream_.Unexpected("KV.TOKEN");
  } else if (stream_.ReadText(token)) {
    return {};
  }
  return stream_.failure();
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
