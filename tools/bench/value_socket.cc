#include "tools/bench/value_socket.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tools/bench/failure.h"
#include "tools/bench/load_generator.h"
#include "tools/bench/requests.h"

namespace moonpool::bench {

ValueSocket::ValueSocket(int port, size_t buffer_bytes)
    : fd_(ConnectTo(port)), buffer_(buffer_bytes, 'x') {
  const timeval patience{120, 0};
  setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  setsockopt(fd_.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
}

void ValueSocket::SendAll(const char* data, size_t bytes, bool more) {
  while (bytes > 0) {
    const ssize_t n = send(fd_.get(), data, bytes, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Failure(std::string("sending a value: ") + std::strerror(errno));
    data += n;
    bytes -= static_cast<size_t>(n);
  }
}

// A line without its CRLF.
std::string ValueSocket::ReadLine() {
  for (;;) {
    const size_t end = ahead_.find("\r\n");
    if (end != std::string::npos) {
      std::string line = ahead_.substr(0, end);
      ahead_.erase(0, end + 2);
      return line;
    }
    char some[512];
    const ssize_t n = recv(fd_.get(), some, sizeof(some), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Failure("reading a reply: the connection is gone");
    ahead_.append(some, static_cast<size_t>(n));
  }
}

void ValueSocket::Get(std::string_view key, uint64_t bytes) {
  const std::string request = EncodeCommand({"GET", key});
  SendAll(request.data(), request.size());
  const std::string header = ReadLine();
  if (header != "$" + std::to_string(bytes)) {
    throw Failure("GET " + std::string(key) + ": unexpected reply " + header);
  }
  uint64_t missing = bytes + 2;
  missing -= std::min<uint64_t>(missing, ahead_.size());
  ahead_.clear();
  while (missing > 0) {
    const ssize_t n =
        recv(fd_.get(), buffer_.data(), std::min<uint64_t>(missing, buffer_.size()), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Failure("GET: the connection is gone");
    missing -= static_cast<uint64_t>(n);
  }
}

bool ValueSocket::Set(std::string_view key, uint64_t bytes) {
  std::string head = EncodeCommand({"SET", key, ""});
  head.resize(head.size() - std::strlen("$0\r\n\r\n"));
  head += "$" + std::to_string(bytes) + "\r\n";
  // As one command in one piece would go out: no packet for the header or the end alone.
  SendAll(head.data(), head.size(), true);
  for (uint64_t left = bytes; left > 0;) {
    const uint64_t part = std::min<uint64_t>(left, buffer_.size());
    SendAll(buffer_.data(), part, true);
    left -= part;
  }
  SendAll("\r\n", 2);
  const std::string reply = ReadLine();
  if (reply == "+OK") return true;
  if (reply.rfind("-OOM", 0) == 0) return false;
  throw Failure("SET " + std::string(key) + ": " + reply);
}

void ValueSocket::Del(std::string_view key) {
  const std::string request = EncodeCommand({"DEL", key});
  SendAll(request.data(), request.size());
  const std::string reply = ReadLine();
  if (reply.empty() || reply[0] != ':') throw Failure("DEL " + std::string(key) + ": " + reply);
}

}  // namespace moonpool::bench
