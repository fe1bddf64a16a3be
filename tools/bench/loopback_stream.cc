#include "tools/bench/loopback_stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>

#include "protocol/unique_fd.h"
#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/load_generator.h"

namespace moonpool::bench {

double LoopbackStream(const char* from, char* to, uint64_t block_bytes, uint64_t piece_bytes,
                      uint64_t bytes) {
  const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  constexpr char kCubic[] = "cubic";
  setsockopt(listener.get(), IPPROTO_TCP, TCP_CONGESTION, kCubic, sizeof(kCubic) - 1);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (!listener ||
      bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener.get(), 1) != 0 ||
      getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw Failure(std::string("loopback stream: ") + std::strerror(errno));
  }
  UniqueFd sender = ConnectTo(ntohs(address.sin_port));
  const UniqueFd receiver(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!receiver) throw Failure(std::string("loopback stream: ") + std::strerror(errno));
  const Stopwatch watch;
  std::thread writer([&] {
    for (uint64_t at = 0; at < bytes;) {
      const uint64_t offset = at % block_bytes;
      const ssize_t n =
          send(sender.get(), from + offset,
               std::min({piece_bytes - offset % piece_bytes, block_bytes - offset, bytes - at}),
               MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) break;
      at += static_cast<uint64_t>(n);
    }
    sender.Reset();
  });
  uint64_t at = 0;
  while (at < bytes) {
    const uint64_t offset = at % block_bytes;
    const ssize_t n = recv(receiver.get(), to + offset,
                           std::min(piece_bytes - offset % piece_bytes, block_bytes - offset), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    at += static_cast<uint64_t>(n);
  }
  const double seconds = watch.seconds();
  writer.join();
  if (at < bytes) throw Failure("loopback stream: it broke off");
  return static_cast<double>(bytes) / seconds / 1e9;
}

}  // namespace moonpool::bench
