#include "client/resp_stream.h"

#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "protocol/decimal.h"

namespace moonpool::client {

namespace {

constexpr size_t kInputBytes = 32 * 1024;
// What is read ahead behind a large value: the header of the next.
constexpr size_t kHeaderBytes = 512;
constexpr size_t kFlushBytes = 64 * 1024;

// Non-blocking connect with a deadline; the socket is blocking again afterwards.
int ConnectWithin(int fd, const sockaddr* address, socklen_t size, int timeout_ms) {
  if (connect(fd, address, size) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  pollfd poll_fd{fd, POLLOUT, 0};
  const int ready = poll(&poll_fd, 1, timeout_ms);
  if (ready == 0) return ETIMEDOUT;
  if (ready < 0) return errno;
  int error = 0;
  socklen_t length = sizeof(error);
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  return error;
}

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
  }
  return address->sa_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

void SetTimeouts(int fd, int timeout_ms) {
  const timeval time{timeout_ms / 1000, (timeout_ms % 1000) * 1000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
}

}  // namespace

bool RespStream::Fail(Code code, std::string message) {
  if (failure_.ok()) failure_ = {code, std::move(message)};
  fd_.Close();
  return false;
}

bool RespStream::FailErrno(std::string_view what) {
  const bool timeout = errno == EAGAIN || errno == EWOULDBLOCK || errno == ETIMEDOUT;
  char buffer[128];
  return Fail(timeout ? Code::kTimeout : Code::kUnavailable,
              std::string(what) + ": " +
                  (timeout ? "timed out" : strerror_r(errno, buffer, sizeof(buffer))));
}

bool RespStream::Unexpected(std::string_view what) {
  return Fail(Code::kProtocol, "unexpected reply: " + std::string(what));
}

bool RespStream::Connect(const Endpoint& endpoint, const Options& options) {
  failure_ = {};
  in_.reset(new char[kInputBytes]);
  in_begin_ = in_end_ = 0;
  dropped_ = 0;
  out_.Clear();
  unix_ = !endpoint.unix_path.empty();
  if (unix_) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (endpoint.unix_path.size() >= sizeof(address.sun_path)) {
      return Fail(Code::kInvalidArgument, "the socket's path is too long");
    }
    std::memcpy(address.sun_path, endpoint.unix_path.c_str(), endpoint.unix_path.size() + 1);
    fd_ = ForkSafeFd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd_ || connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
      return FailErrno("connecting to " + endpoint.unix_path);
    }
    SetTimeouts(fd_.get(), options.timeout_ms);
    spin_ = std::chrono::microseconds(options.spin_us);
    return true;
  }
  const std::string where = endpoint.host + ":" + std::to_string(endpoint.port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(endpoint.host.c_str(), std::to_string(endpoint.port).c_str(), &hints, &found);
  if (error != 0) return Fail(Code::kUnavailable, where + ": " + gai_strerror(error));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
  int last_error = 0;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    ForkSafeFd fd(socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) continue;
    if (IsLoopback(a->ai_addr)) {
      // Pacing, which the default of many systems does, only costs time on loopback.
      constexpr std::string_view kCubic = "cubic";
      setsockopt(fd.get(), IPPROTO_TCP, TCP_CONGESTION, kCubic.data(), kCubic.size());
    }
    last_error = ConnectWithin(fd.get(), a->ai_addr, a->ai_addrlen, options.connect_timeout_ms);
    if (last_error != 0) continue;
    const int on = 1;
    setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    const int flags = fcntl(fd.get(), F_GETFL);
    fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK);
    SetTimeouts(fd.get(), options.timeout_ms);
    spin_ = std::chrono::microseconds(IsLoopback(a->ai_addr) ? options.spin_us : 0);
    fd_ = std::move(fd);
    return true;
  }
  errno = last_error;
  return FailErrno("connecting to " + where);
}

// --- writing -----------------------------------------------------------------------------------

void RespStream::Begin(size_t words) {
  char* start = out_.Reserve(protocol::kMaxInt64Text + 3);
  char* p = start;
  *p++ = '*';
  p = protocol::FormatUint64(p, words);
  *p++ = '\r';
  *p++ = '\n';
  out_.Advance(static_cast<size_t>(p - start));
}

void RespStream::Word(std::string_view word) {
  char* start = out_.Reserve(protocol::kMaxInt64Text + 5 + word.size());
  char* p = start;
  *p++ = '$';
  p = protocol::FormatUint64(p, word.size());
  *p++ = '\r';
  *p++ = '\n';
  if (!word.empty()) std::memcpy(p, word.data(), word.size());
  p += word.size();
  *p++ = '\r';
  *p++ = '\n';
  out_.Advance(static_cast<size_t>(p - start));
}

void RespStream::Word(int64_t number) {
  char text[protocol::kMaxInt64Text];
  const char* end = protocol::FormatInt64(text, number);
  Word(std::string_view(text, static_cast<size_t>(end - text)));
}

bool RespStream::SendAll(const char* data, size_t size) {
  while (size > 0) {
    const ssize_t n = send(fd_.get(), data, size, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      return FailErrno("sending to the server");
    }
    data += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

bool RespStream::Flush() {
  if (broken()) return false;
  const bool sent = SendAll(out_.data(), out_.size());
  out_.Clear();
  return sent;
}

bool RespStream::BodyAndFlush(std::span<const ConstBuffer> pieces, uint64_t bytes) {
  if (broken()) return false;
  char header[protocol::kMaxInt64Text + 3];
  char* p = header;
  *p++ = '$';
  p = protocol::FormatUint64(p, bytes);
  *p++ = '\r';
  *p++ = '\n';
  out_.Append({header, static_cast<size_t>(p - header)});
  constexpr std::string_view kEnd = "\r\n";
  // Everything in as few calls as possible: what was built, the pieces, the end.
  std::vector<iovec> parts;
  parts.reserve(pieces.size() + 2);
  parts.push_back({const_cast<char*>(out_.data()), out_.size()});
  for (const ConstBuffer& piece : pieces) {
    if (piece.size > 0) parts.push_back({const_cast<void*>(piece.data), piece.size});
  }
  parts.push_back({const_cast<char*>(kEnd.data()), kEnd.size()});
  size_t first = 0;
  while (first < parts.size()) {
    msghdr message{};
    message.msg_iov = &parts[first];
    message.msg_iovlen = std::min<size_t>(parts.size() - first, IOV_MAX);
    ssize_t n = sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      return FailErrno("sending to the server");
    }
    while (n > 0) {
      const size_t part = std::min(static_cast<size_t>(n), parts[first].iov_len);
      parts[first].iov_base = static_cast<char*>(parts[first].iov_base) + part;
      parts[first].iov_len -= part;
      n -= static_cast<ssize_t>(part);
      if (parts[first].iov_len == 0) ++first;
    }
  }
  out_.Clear();
  out_.ShrinkTo(kFlushBytes);
  return true;
}

// --- reading -----------------------------------------------------------------------------------

ssize_t RespStream::Receive(char* to, size_t room) {
  if (spin_.count() > 0) {
    const auto end = std::chrono::steady_clock::now() + spin_;
    do {
      const ssize_t n = recv(fd_.get(), to, room, MSG_DONTWAIT);
      if (n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) return n;
      sched_yield();
    } while (std::chrono::steady_clock::now() < end);
  }
  return recv(fd_.get(), to, room, 0);
}

bool RespStream::Fill() {
  if (broken()) return false;
  if (in_begin_ == in_end_) {
    in_begin_ = in_end_ = 0;
  } else if (in_begin_ > 0 && in_end_ == kInputBytes) {
    std::memmove(in_.get(), in_.get() + in_begin_, in_end_ - in_begin_);
    in_end_ -= in_begin_;
    in_begin_ = 0;
  }
  if (in_end_ == kInputBytes) return Fail(Code::kProtocol, "a reply line is too long");
  for (;;) {
    const ssize_t n = Receive(in_.get() + in_end_, kInputBytes - in_end_);
    if (n > 0) {
      in_end_ += static_cast<size_t>(n);
      return true;
    }
    if (n == 0) return Fail(Code::kUnavailable, "the server closed the connection");
    if (errno != EINTR) return FailErrno("reading from the server");
  }
}

bool RespStream::ReadLine(std::string_view* line) {
  size_t searched = in_begin_;
  for (;;) {
    const auto* end = static_cast<const char*>(
        std::memchr(in_.get() + searched, '\n', in_end_ - searched));
    if (end != nullptr) {
      const char* start = in_.get() + in_begin_;
      if (end == start || end[-1] != '\r') return Unexpected("a line without CR");
      *line = {start, static_cast<size_t>(end - start) - 1};
      in_begin_ = static_cast<size_t>(end - in_.get()) + 1;
      return true;
    }
    const size_t seen = in_end_ - in_begin_;
    if (!Fill()) return false;
    searched = in_begin_ + seen;
  }
}

bool RespStream::Next(ReplyHeader* header) {
  while (dropped_ > 0) {
    --dropped_;
    ReplyHeader unwanted;
    if (!ReadHeader(&unwanted)) return false;
    // Its elements are read with Next() too.
    const int others = std::exchange(dropped_, 0);
    if (!Skip(unwanted)) return false;
    dropped_ = others;
  }
  return ReadHeader(header);
}

bool RespStream::ReadHeader(ReplyHeader* header) {
  std::string_view line;
  if (broken() || !ReadLine(&line)) return false;
  if (line.empty()) return Unexpected("an empty line");
  header->type = line[0];
  header->text = line.substr(1);
  header->value = 0;
  switch (header->type) {
    case ':':
    case '$':
    case '=':
    case '*':
    case '%':
    case '~': {
      const auto number = protocol::ParseInt64(header->text);
      if (!number || (header->type != ':' && *number < -1)) return Unexpected(line);
      header->value = *number;
      return true;
    }
    case '+':
    case '-':
    case '_':
    case '#':
    case ',':
    case '(':
      return true;
    default:
      return Unexpected(line);
  }
}

bool RespStream::ReadInto(char* to, uint64_t bytes) {
  const size_t here = std::min<uint64_t>(bytes, in_end_ - in_begin_);
  std::copy_n(in_.get() + in_begin_, here, to);
  in_begin_ += here;
  to += here;
  bytes -= here;
  while (bytes > 0) {
    // The buffer is empty.  Let the last call bring the next header along.
    in_begin_ = in_end_ = 0;
    iovec parts[2] = {{to, bytes}, {in_.get(), kHeaderBytes}};
    const ssize_t n = readv(fd_.get(), parts, 2);
    if (n == 0) return Fail(Code::kUnavailable, "the server closed the connection");
    if (n < 0) {
      if (errno == EINTR) continue;
      return FailErrno("reading from the server");
    }
    const size_t got = std::min<uint64_t>(static_cast<uint64_t>(n), bytes);
    to += got;
    bytes -= got;
    in_end_ = static_cast<size_t>(n) - got;
  }
  return true;
}

bool RespStream::SkipBytes(uint64_t bytes) {
  char sink[4096];
  while (bytes > 0) {
    const uint64_t part = std::min<uint64_t>(bytes, sizeof(sink));
    if (!ReadInto(sink, part)) return false;
    bytes -= part;
  }
  return true;
}

bool RespStream::ReadBulk(std::span<const Buffer> pieces, uint64_t bytes) {
  if (broken()) return false;
  uint64_t left = bytes;
  for (const Buffer& piece : pieces) {
    const uint64_t part = std::min<uint64_t>(left, piece.size);
    if (!ReadInto(static_cast<char*>(piece.data), part)) return false;
    left -= part;
  }
  if (left > 0) return Fail(Code::kInvalidArgument, "buffers shorter than the value");
  return SkipBytes(2);
}

bool RespStream::ReadBulk(std::string* to, uint64_t bytes) {
  to->resize(bytes);
  const Buffer piece{to->data(), to->size()};
  return ReadBulk(std::span(&piece, 1), bytes);
}

bool RespStream::Skip(const ReplyHeader& header) {
  if (header.is_bulk()) return SkipBytes(static_cast<uint64_t>(header.value) + 2);
  for (int64_t i = 0; i < header.elements(); ++i) {
    ReplyHeader element;
    if (!Next(&element) || !Skip(element)) return false;
  }
  return true;
}

bool RespStream::AppendText(const ReplyHeader& header, std::string* text) {
  if (header.is_bulk()) {
    std::string bulk;
    if (!ReadBulk(&bulk, static_cast<uint64_t>(header.value))) return false;
    *text += bulk;
    return true;
  }
  if (header.is_null()) return true;
  if (header.elements() < 0) {
    *text += header.text;
    return true;
  }
  for (int64_t i = 0; i < header.elements(); ++i) {
    if (i > 0) *text += '\n';
    ReplyHeader element;
    if (!Next(&element) || !AppendText(element, text)) return false;
  }
  return true;
}

bool RespStream::ReadText(std::string* text) {
  ReplyHeader header;
  text->clear();
  return Next(&header) && AppendText(header, text);
}

}  // namespace moonpool::client
