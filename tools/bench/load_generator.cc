#include "tools/bench/load_generator.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <hiredis/hiredis.h>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"

namespace moonpool::bench {

namespace {

constexpr size_t kBufferBytes = 256 * 1024;
constexpr int kEvents = 512;
constexpr double kSilenceSeconds = 30;

[[noreturn]] void Lost(const char* what) {
  throw Failure(std::string("load generator: ") + what + ": " + std::strerror(errno));
}

}  // namespace

UniqueFd ConnectTo(int port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  constexpr std::string_view kCubic = "cubic";
  setsockopt(fd.get(), IPPROTO_TCP, TCP_CONGESTION, kCubic.data(), kCubic.size());
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (!fd || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    throw Failure("cannot connect to port " + std::to_string(port) + ": " +
                  std::strerror(errno));
  }
  const int on = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

LoadGenerator::LoadGenerator(int port, const Requests& requests, int connections, int pipeline)
    : requests_(requests),
      pipeline_(static_cast<size_t>(pipeline)),
      batches_(requests.count / static_cast<size_t>(pipeline)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      connections_(static_cast<size_t>(connections)),
      buffer_(kBufferBytes),
      random_(7) {
  if (batches_ == 0) throw Failure("load generator: fewer requests than one pipeline");
  for (Connection& connection : connections_) {
    connection.fd = ConnectTo(port);
    if (!requests.greeting.empty()) SayGreeting(connection.fd.get());
    fcntl(connection.fd.get(), F_SETFL, fcntl(connection.fd.get(), F_GETFL) | O_NONBLOCK);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = &connection;
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection.fd.get(), &event) != 0) {
      Lost("epoll_ctl");
    }
  }
}

void LoadGenerator::SayGreeting(int fd) {
  const std::string text =
      EncodeCommand({requests_.greeting.begin(), requests_.greeting.end()});
  if (send(fd, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size())) {
    Lost("greeting the server");
  }
  redisReader* reader = redisReaderCreate();
  void* reply = nullptr;
  while (reply == nullptr) {
    const ssize_t n = recv(fd, buffer_.data(), buffer_.size(), 0);
    if (n <= 0) Lost("greeting the server");
    redisReaderFeed(reader, buffer_.data(), static_cast<size_t>(n));
    if (redisReaderGetReply(reader, &reply) != REDIS_OK) Lost("greeting the server");
  }
  const bool error = static_cast<redisReply*>(reply)->type == REDIS_REPLY_ERROR;
  const std::string why = error ? static_cast<redisReply*>(reply)->str : "";
  freeReplyObject(reply);
  redisReaderFree(reader);
  if (error) throw Failure(requests_.greeting[0] + ": " + why);
}

void LoadGenerator::SendBatch(Connection& connection, uint64_t due_ns) {
  connection.next = requests_.bytes.data() + cursor_ * pipeline_ * requests_.request_bytes;
  connection.unsent = pipeline_ * requests_.request_bytes;
  connection.missing =
      pipeline_ * (requests_.reply.bytes != 0 ? requests_.reply.bytes : requests_.reply.lines);
  connection.received = 0;
  connection.due_ns = due_ns;
  if (++cursor_ == batches_) cursor_ = 0;
  ContinueSending(connection);
}

void LoadGenerator::ContinueSending(Connection& connection) {
  const ssize_t n =
      send(connection.fd.get(), connection.next, connection.unsent, MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN && errno != EINTR) Lost("sending");
  const size_t before = connection.unsent;
  if (n > 0) {
    connection.next += n;
    connection.unsent -= static_cast<size_t>(n);
  }
  const bool was_blocked = before < pipeline_ * requests_.request_bytes;
  if (connection.unsent > 0 || was_blocked) {
    epoll_event event{};
    event.events = connection.unsent > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN;
    event.data.ptr = &connection;
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd.get(), &event);
  }
}

// Looks at the first byte of every reply that begins in `data`.
void LoadGenerator::CheckReply(const Connection& connection, const char* data,
                               size_t bytes) const {
  const ReplyShape& shape = requests_.reply;
  size_t at = 0;
  if (shape.bytes != 0) {
    at = (shape.bytes - connection.received % shape.bytes) % shape.bytes;
  } else if (connection.received > 0) {
    return;
  }
  for (; at < bytes; at += shape.bytes) {
    if (data[at] != shape.first) {
      throw Failure("load generator: unexpected reply: " +
                    std::string(data + at, std::min<size_t>(bytes - at, 80)));
    }
    if (shape.bytes == 0) return;
  }
}

bool LoadGenerator::Receive(Connection& connection) {
  const ssize_t n = recv(connection.fd.get(), buffer_.data(), buffer_.size(), 0);
  if (n <= 0) {
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (n == 0) throw Failure("load generator: the server closed a connection");
    Lost("receiving");
  }
  const auto bytes = static_cast<size_t>(n);
  CheckReply(connection, buffer_.data(), bytes);
  connection.received += bytes;
  const size_t units =
      requests_.reply.bytes != 0
          ? bytes
          : static_cast<size_t>(std::count(buffer_.data(), buffer_.data() + bytes, '\n'));
  if (units > connection.missing) throw Failure("load generator: more replies than requests");
  connection.missing -= units;
  return connection.missing == 0;
}

LoadResult LoadGenerator::Loop(double seconds, uint64_t operations, double rate) {
  // Wake-ups at the time asked for, not up to 50 us later.
  prctl(PR_SET_TIMERSLACK, 1);
  LoadResult result;
  const uint64_t start = NowNs();
  const uint64_t end = start + Nanoseconds(seconds);
  uint64_t started = 0;  // operations
  size_t busy = 0;
  std::vector<Connection*> idle;
  std::deque<uint64_t> due;  // batches that wait for a connection
  std::exponential_distribution<double> pause(rate > 0 ? rate / static_cast<double>(pipeline_)
                                                       : 1);
  uint64_t next_due = start;
  uint64_t now = start;
  uint64_t last_reply = start;
  const auto begin = [&](Connection& connection, uint64_t due_ns) {
    SendBatch(connection, due_ns);
    started += pipeline_;
    ++busy;
  };
  // Sends what is due; false when nothing more is to come.
  const auto feed = [&] {
    if (rate <= 0) return;
    for (; next_due <= now && next_due < end; next_due += Nanoseconds(pause(random_)) + 1) {
      due.push_back(next_due);
    }
    while (!due.empty() && !idle.empty()) {
      Connection* connection = idle.back();
      idle.pop_back();
      begin(*connection, due.front());
      due.pop_front();
    }
  };
  for (Connection& connection : connections_) {
    if (rate > 0) {
      idle.push_back(&connection);
    } else if (started < operations) {
      begin(connection, NowNs());
    }
  }
  epoll_event events[kEvents];
  for (;;) {
    now = NowNs();
    feed();
    if (busy == 0 && due.empty() && (rate <= 0 || next_due >= end)) break;
    uint64_t wait_ns = Nanoseconds(kSilenceSeconds);
    if (rate > 0 && next_due < end) wait_ns = next_due > now ? next_due - now : 0;
    const timespec timeout{static_cast<time_t>(wait_ns / 1'000'000'000),
                           static_cast<long>(wait_ns % 1'000'000'000)};
    const int ready = epoll_pwait2(epoll_.get(), events, kEvents, &timeout, nullptr);
    if (ready < 0 && errno != EINTR) Lost("epoll_pwait2");
    if (ready == 0 && wait_ns >= Nanoseconds(kSilenceSeconds)) {
      throw Failure("load generator: the server has stopped answering");
    }
    for (int i = 0; i < ready; ++i) {
      auto& connection = *static_cast<Connection*>(events[i].data.ptr);
      if ((events[i].events & EPOLLOUT) != 0 && connection.unsent > 0) {
        ContinueSending(connection);
      }
      if ((events[i].events & ~EPOLLOUT) == 0 || !Receive(connection)) continue;
      last_reply = NowNs();
      result.latency.Record(last_reply - connection.due_ns);
      result.operations += pipeline_;
      --busy;
      if (rate > 0) {
        result.times.push_back({connection.due_ns, last_reply});
        idle.push_back(&connection);
      } else if (last_reply < end && started < operations) {
        begin(connection, last_reply);
      }
    }
  }
  result.seconds = Seconds(std::max<uint64_t>(last_reply - start, 1));
  return result;
}

}  // namespace moonpool::bench
