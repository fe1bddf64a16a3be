#include "tools/bench/bare_server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "tools/bench/failure.h"

namespace moonpool::bench {

BareServer::BareServer(size_t request_bytes, std::string reply)
    : request_bytes_(request_bytes),
      reply_(std::move(reply)),
      listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)),
      stop_(eventfd(0, EFD_CLOEXEC)) {
  constexpr char kCubic[] = "cubic";
  setsockopt(listener_.get(), IPPROTO_TCP, TCP_CONGESTION, kCubic, sizeof(kCubic) - 1);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (!listener_ || !stop_ ||
      bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener_.get(), SOMAXCONN) != 0 ||
      getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw Failure(std::string("bare server: ") + std::strerror(errno));
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::thread([this] { Serve(); });
}

BareServer::~BareServer() {
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void BareServer::Serve() {
  const UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  const auto watch = [&](int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event);
  };
  watch(listener_.get());
  watch(stop_.get());
  struct Client {
    UniqueFd fd;
    size_t received = 0;
  };
  std::unordered_map<int, Client> clients;
  char buffer[16384];
  epoll_event events[1024];
  for (;;) {
    const int ready = epoll_wait(epoll.get(), events, std::size(events), -1);
    for (int i = 0; i < ready; ++i) {
      const int fd = events[i].data.fd;
      if (fd == stop_.get()) return;
      if (fd == listener_.get()) {
        UniqueFd accepted(accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!accepted) continue;
        const int one = 1;
        setsockopt(accepted.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        watch(accepted.get());
        clients[accepted.get()].fd = std::move(accepted);
        continue;
      }
      Client& client = clients[fd];
      const ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
      if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) clients.erase(fd);
        continue;
      }
      for (client.received += static_cast<size_t>(n); client.received >= request_bytes_;
           client.received -= request_bytes_) {
        // One request at a time is all that is ever on its way, so the socket takes it.
        if (send(fd, reply_.data(), reply_.size(), MSG_NOSIGNAL) < 0) break;
      }
    }
  }
}

}  // namespace moonpool::bench
