#include "client/attachment.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "client/gpu_devices.h"

namespace moonpool::client {

namespace {

using protocol::AttachMessage;
using protocol::ReceivedAttachMessage;

}  // namespace

Result<std::unique_ptr<Attachment>> Attachment::Connect(const std::string& address,
                                                        const std::string& token,
                                                        int timeout_ms) {
  std::unique_ptr<Attachment> attachment(new Attachment());
  sockaddr_un where{};
  where.sun_family = AF_UNIX;
  AttachMessage hello;
  hello.type = AttachMessage::kHello;
  if (address.empty() || address.size() >= sizeof(where.sun_path) ||
      token.size() != hello.token.size()) {
    return Fail(ErrorCode::kProtocol, "the server sent a bad attach address or token");
  }
  std::memcpy(where.sun_path, address.data(), address.size());
  if (where.sun_path[0] == '@') where.sun_path[0] = '\0';
  const auto size =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.size() +
                             (where.sun_path[0] == '\0' ? 0 : 1));
  attachment->fd_ = ForkSafeFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!attachment->fd_ ||
      connect(attachment->fd_.get(), reinterpret_cast<sockaddr*>(&where), size) != 0) {
    return FailErrno("connecting to the attach socket " + address);
  }
  const timeval time{timeout_ms / 1000, (timeout_ms % 1000) * 1000};
  setsockopt(attachment->fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
  setsockopt(attachment->fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
  std::copy(token.begin(), token.end(), hello.token.begin());
  if (auto sent = protocol::SendAttachMessage(attachment->fd_.get(), hello); !sent) {
    return tl::unexpected<Error>(std::move(sent.error()));
  }
  auto welcome = protocol::ReceiveAttachMessage(attachment->fd_.get());
  if (!welcome) return tl::unexpected<Error>(std::move(welcome.error()));
  if (welcome->message.type != AttachMessage::kWelcome || !welcome->fd) {
    return Fail(ErrorCode::kProtocol, "the attach socket did not welcome us");
  }
  attachment->epoch_ = welcome->message.epoch;
  attachment->generations_ = Mapping::Create(welcome->fd.get(), welcome->message.bytes, false);
  if (attachment->generations_ == nullptr) return FailErrno("mapping the generation table");
  return attachment;
}

Attachment::~Attachment() = default;

void Attachment::Gone(NodeMemory& memory, uint32_t region) {
  memory.Remove(region);
  std::erase(arenas_, region);
  gone_.push_back(region);
  SayWhatLeft(memory);
}

void Attachment::SayWhatLeft(NodeMemory& memory) {
  for (size_t i = 0; i < gone_.size();) {
    if (memory.InUse(gone_[i])) {
      ++i;
      continue;
    }
    SayUnmapped(gone_[i]);
    gone_.erase(gone_.begin() + static_cast<ptrdiff_t>(i));
  }
}

void Attachment::SayUnmapped(uint32_t region) {
  AttachMessage unmapped;
  unmapped.type = AttachMessage::kUnmapped;
  unmapped.region = region;
  if (!protocol::SendAttachMessage(fd_.get(), unmapped)) alive_ = false;
}

bool Attachment::Receive(NodeMemory& memory, ReceivedAttachMessage* message) {
  for (;;) {
    auto received = protocol::ReceiveAttachMessage(fd_.get());
    if (!received) {
      alive_ = false;
      return false;
    }
    // Answers carry what was asked for; kGone for another region came unasked.
    if (received->message.type == AttachMessage::kGone) Gone(memory, received->message.region);
    *message = std::move(*received);
    return true;
  }
}

std::shared_ptr<Mapping> Attachment::Import(NodeMemory& memory,
                                            const ReceivedAttachMessage& answer,
                                            Options::GpuChoice gpu) {
  gpu::RegionHandle handle;
  handle.kind = static_cast<gpu::HandleKind>(answer.message.handle);
  handle.device.bytes = answer.message.device;
  handle.bytes = answer.message.bytes;
  handle.opaque = answer.message.opaque;
  auto imported = ImportDeviceMemory(gpu, handle, answer.fd.get());
  if (!imported) {
    memory.CannotImport(answer.message.region, imported.error().message);
    return nullptr;
  }
  memory.Add(answer.message.region, *imported);
  return std::move(*imported);
}

std::shared_ptr<Mapping> Attachment::Map(NodeMemory& memory, uint32_t region, bool for_writing,
                                         Options::GpuChoice gpu) {
  const auto usable = [&](const std::shared_ptr<Mapping>& mapping) {
    return mapping != nullptr && (!for_writing || mapping->writable());
  };
  std::shared_ptr<Mapping> mapping = memory.Find(region);
  if (usable(mapping)) return mapping;
  MutexLock lock(mu_);
  mapping = memory.Find(region);  // somebody else was faster
  if (usable(mapping)) return mapping;
  if (!alive_ || !memory.importable(region)) return nullptr;
  AttachMessage want;
  want.type = AttachMessage::kWant;
  want.region = region;
  if (!protocol::SendAttachMessage(fd_.get(), want)) {
    alive_ = false;
    return nullptr;
  }
  ReceivedAttachMessage answer;
  for (;;) {
    if (!Receive(memory, &answer)) return nullptr;
    if (answer.message.region != region) continue;
    if (answer.message.type == AttachMessage::kGone) return nullptr;
    if (answer.message.type == AttachMessage::kRegion) break;
  }
  if (answer.message.handle != protocol::DeviceHandleKind::kNone) {
    return Import(memory, answer, gpu);
  }
  const bool writable = answer.message.writable != 0;
  if (!answer.fd || (for_writing && !writable)) return nullptr;
  mapping = Mapping::Create(answer.fd.get(), answer.message.bytes, writable);
  if (mapping == nullptr) return nullptr;
  if (writable) {
    // Only when nobody else can map it writable any more may values be committed there.
    answer.fd.Reset();
    AttachMessage mapped;
    mapped.type = AttachMessage::kMapped;
    mapped.region = region;
    if (!protocol::SendAttachMessage(fd_.get(), mapped)) {
      alive_ = false;
      return nullptr;
    }
    do {
      if (!Receive(memory, &answer)) return nullptr;
    } while (answer.message.type != AttachMessage::kSealed || answer.message.region != region);
    arenas_.push_back(region);
  }
  memory.Add(region, mapping);
  return mapping;
}

void Attachment::Pump(NodeMemory& memory) {
  MutexLock lock(mu_);
  SayWhatLeft(memory);
  while (alive_) {
    char probe;
    const ssize_t n = recv(fd_.get(), &probe, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
    ReceivedAttachMessage message;
    if (!Receive(memory, &message)) return;
  }
}

bool Attachment::alive() {
  if (!alive_) return false;
  char probe;
  const ssize_t n = recv(fd_.get(), &probe, 1, MSG_PEEK | MSG_DONTWAIT);
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
    alive_ = false;
  }
  return alive_;
}

void Attachment::SayDone() {
  MutexLock lock(mu_);
  AttachMessage done;
  done.type = AttachMessage::kDone;
  // A server that is gone needs no answer; and what it shut down is its own direction.
  [[maybe_unused]] const auto sent = protocol::SendAttachMessage(fd_.get(), done);
  alive_ = false;
}

void Attachment::Abandon(NodeMemory& memory) {
  MutexLock lock(mu_);
  alive_ = false;
  for (const uint32_t region : arenas_) memory.Remove(region);
  arenas_.clear();
}

}  // namespace moonpool::client
