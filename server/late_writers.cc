#include "server/late_writers.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "protocol/attach_wire.h"
#include "server/log.h"
#include "storage/extent_pool.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace moonpool::server {

namespace {

using protocol::AttachMessage;
using storage::SessionId;

// What an event is of: a session's number and one bit, or the end.
constexpr uint64_t kStop = 0;
uint64_t NameOfSocket(SessionId id) {
  return id << 1;
}
uint64_t NameOfProcess(SessionId id) {
  return id << 1 | 1;
}

}  // namespace

Result<UniqueFd> PeerProcess(int socket) {
  int fd = -1;
  socklen_t size = sizeof(fd);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &size) == 0) return UniqueFd(fd);
  if (errno != ENOPROTOOPT) return FailErrno("SO_PEERPIDFD of the attach socket");
  ucred peer{};
  size = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return FailErrno("SO_PEERCRED of the attach socket");
  }
  if (peer.pid <= 0) {
    return Fail(ErrorCode::kUnavailable,
                "the client is in a PID namespace that is not seen from here");
  }
  // Should the number be another's by now, the client's process is gone: who is watched in its
  // place holds memory back for longer, never for shorter.
  UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0)));
  if (!process) return FailErrno("pidfd_open of the client");
  return process;
}

LateWriters::LateWriters(FindProcess find)
    : find_(find != nullptr ? std::move(find) : PeerProcess),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      stop_(eventfd(0, EFD_CLOEXEC)) {
  MOONPOOL_CHECK(epoll_ && stop_ && Watch(stop_.get(), kStop));
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "late-writers");
}

LateWriters::~LateWriters() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

UniqueFd LateWriters::PeerOf(int socket) {
  Result<UniqueFd> process = find_(socket);
  if (process) return std::move(*process);
  std::string& why = process.error().message;
  MutexLock lock(mu_);
  ++unwatched_;
  if (why != unwatched_reason_) {
    Log(LogLevel::kWarning,
        "sessions whose client's end would not be seen do not write into memory of GPUs: {}", why);
  }
  unwatched_reason_ = std::move(why);
  return {};
}

bool LateWriters::Watch(int fd, uint64_t name) const {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = name;
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void LateWriters::Await(storage::ExtentPool& pool, SessionId writer, UniqueFd socket,
                        UniqueFd process) {
  // As a socket that is closed to those who only read, so that the session is seen to be over.
  shutdown(socket.get(), SHUT_WR);
  // What is seen before it is known here is seen again.
  const bool watched =
      Watch(socket.get(), NameOfSocket(writer)) && Watch(process.get(), NameOfProcess(writer));
  if (!watched) {
    Log(LogLevel::kWarning, "what session {} had reserved on devices is lost: {}", writer,
        FailErrno("epoll_ctl").value().message);
  }
  MutexLock lock(mu_);
  writers_[writer] = Writer{&pool, std::move(socket), std::move(process)};
}

size_t LateWriters::size() const {
  MutexLock lock(mu_);
  return writers_.size();
}

uint64_t LateWriters::unwatched() const {
  MutexLock lock(mu_);
  return unwatched_;
}

std::string LateWriters::unwatched_reason() const {
  MutexLock lock(mu_);
  return unwatched_reason_;
}

void LateWriters::Run() {
  std::array<epoll_event, 64> events;
  for (;;) {
    const int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < count; ++i) {
      const uint64_t name = events[static_cast<size_t>(i)].data.u64;
      if (name == kStop) return;
      const SessionId id = name >> 1;
      if (name == NameOfProcess(id) || SaysDone(id)) Gone(id);
    }
  }
}

bool LateWriters::SaysDone(SessionId id) {
  int socket = -1;
  {
    MutexLock lock(mu_);
    const auto found = writers_.find(id);
    if (found != writers_.end()) socket = found->second.socket.get();
  }
  if (socket < 0) return false;
  for (;;) {
    // It does not block, as the session has left it.
    const auto received = protocol::ReceiveAttachMessage(socket);
    if (!received && received.error().code == ErrorCode::kTimeout) return false;
    if (!received) break;
    if (received->message.type == AttachMessage::kDone) return true;
    // What else it says was meant for the session.
  }
  // The end, or nonsense: its process is what is left to wait for.
  MutexLock lock(mu_);
  writers_.at(id).socket.Reset();
  return false;
}

void LateWriters::Gone(SessionId id) {
  storage::ExtentPool* pool = nullptr;
  {
    MutexLock lock(mu_);
    const auto found = writers_.find(id);
    if (found == writers_.end()) return;
    pool = found->second.pool;
    writers_.erase(found);
  }
  pool->WriterGone(id);
}

}  // namespace moonpool::server
