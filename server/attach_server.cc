#include "server/attach_server.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "server/connection.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"

namespace moonpool::server {

namespace {

// Clients between connect and their first message.
constexpr size_t kMaxPending = 256;
constexpr int kBacklog = 128;

int64_t MonotonicMilliseconds() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

AttachServer::~AttachServer() {
  Stop();
  if (unlink_) unlink(address_.c_str());
}

void AttachServer::Stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_fd_.get(), &one, sizeof(one));
  thread_.join();
}

Status AttachServer::Start(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socklen_t size = sizeof(address);
  if (path.empty()) {
    const std::string name = "moonpool-" + server_.run_id();
    address_ = "@" + name;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  } else {
    if (path.size() >= sizeof(address.sun_path)) {
      return Fail(ErrorCode::kInvalidArgument,
                  "attach-socket: the path is longer than " +
                      std::to_string(sizeof(address.sun_path) - 1) + " bytes: " + path);
    }
    address_ = path;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    UniqueFd probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (connect(probe.get(), reinterpret_cast<sockaddr*>(&address), size) == 0) {
      return Fail(ErrorCode::kInvalidArgument, "attach-socket: another server listens on " + path);
    }
    // Its server is dead; what is not a socket is somebody's file.
    struct stat file{};
    if (errno == ECONNREFUSED && lstat(path.c_str(), &file) == 0 && S_ISSOCK(file.st_mode)) {
      unlink(path.c_str());
    }
  }
  listen_fd_.Reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listen_fd_ ||
      bind(listen_fd_.get(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listen_fd_.get(), kBacklog) != 0) {
    return FailErrno("listening on the attach socket " + address_);
  }
  unlink_ = !path.empty();
  stop_fd_.Reset(eventfd(0, EFD_CLOEXEC));
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), "attach");
  return {};
}

protocol::AttachToken AttachServer::Issue(Loop& loop, uint64_t connection, uint64_t session) {
  unsigned char random[16];
  MOONPOOL_CHECK(getrandom(random, sizeof(random), 0) == sizeof(random));
  protocol::AttachToken token;
  for (size_t i = 0; i < sizeof(random); ++i) {
    token[2 * i] = "0123456789abcdef"[random[i] >> 4];
    token[2 * i + 1] = "0123456789abcdef"[random[i] & 15];
  }
  const int64_t now_ms = MonotonicMilliseconds();
  const int64_t expires_ms =
      now_ms + server_.config().number(Key::kAttachTimeout) * 1000;
  MutexLock lock(mu_);
  std::erase_if(tickets_, [now_ms](const auto& t) { return t.second.expires_ms <= now_ms; });
  tickets_[std::string(token.data(), token.size())] = {&loop, connection, session, expires_ms};
  return token;
}

void AttachServer::Revoke(const protocol::AttachToken& token) {
  MutexLock lock(mu_);
  tickets_.erase(std::string(token.data(), token.size()));
}

void AttachServer::Run() {
  std::vector<Pending> pending;
  std::vector<pollfd> polls;
  for (;;) {
    polls.clear();
    polls.push_back({stop_fd_.get(), POLLIN, 0});
    polls.push_back({listen_fd_.get(), POLLIN, 0});
    for (const Pending& p : pending) polls.push_back({p.fd.get(), POLLIN, 0});
    if (poll(polls.data(), polls.size(), pending.empty() ? -1 : 100) < 0) continue;
    if (polls[0].revents != 0) return;
    const int64_t now_ms = MonotonicMilliseconds();
    // `pending` and the polls behind the first two are in the same order.
    std::vector<Pending> still;
    for (size_t i = 0; i < pending.size(); ++i) {
      const bool settled = polls[i + 2].revents != 0 && Greet(pending[i]);
      if (!settled && pending[i].expires_ms > now_ms) still.push_back(std::move(pending[i]));
    }
    pending = std::move(still);
    if (polls[1].revents != 0) Accept(pending);
  }
}

void AttachServer::Accept(std::vector<Pending>& pending) {
  for (;;) {
    UniqueFd fd(accept4(listen_fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) return;
    if (pending.size() >= kMaxPending) continue;  // closed
    pending.push_back({std::move(fd), MonotonicMilliseconds() +
                                          server_.config().number(Key::kAttachTimeout) * 1000});
  }
}

bool AttachServer::Greet(Pending& pending) {
  auto received = protocol::ReceiveAttachMessage(pending.fd.get());
  if (!received && received.error().code == ErrorCode::kTimeout) return false;
  if (!received || received->message.type != protocol::AttachMessage::kHello) return true;
  const protocol::AttachToken& token = received->message.token;
  Ticket ticket;
  {
    MutexLock lock(mu_);
    const auto found = tickets_.find(std::string(token.data(), token.size()));
    if (found == tickets_.end() || found->second.expires_ms <= MonotonicMilliseconds()) {
      Log(LogLevel::kWarning, "attach refused: unknown, used or expired token");
      return true;
    }
    ticket = found->second;
    tickets_.erase(found);
  }
  auto fd = std::make_shared<UniqueFd>(std::move(pending.fd));
  ticket.loop->Post([ticket, fd] {
    Connection* connection = ticket.loop->Find(ticket.connection);
    if (connection == nullptr || connection->session() == nullptr ||
        connection->session()->id() != ticket.session) {
      return;  // the session ended meanwhile
    }
    connection->session()->Attach(std::move(*fd));
  });
  return true;
}

}  // namespace moonpool::server
