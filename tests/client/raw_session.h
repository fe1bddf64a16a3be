// A client that speaks to the server byte by byte: what the library would not do, it does.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/resp_stream.h"
#include "protocol/attach_wire.h"
#include "tests/client/live_server.h"

namespace moonpool::client {

using protocol::AttachMessage;

// A RESP connection and a raw attach socket, without the library's manners.
class RawSession {
 public:
  // `hello_words`: KV.HELLO's arguments behind the version.
  explicit RawSession(LiveServer& server, std::vector<std::string_view> hello_words = {})
      : RawSession(server.Url(), std::move(hello_words)) {}
  explicit RawSession(const std::string& url, std::vector<std::string_view> hello_words = {}) {
    Endpoint endpoint;
    Options options;
    EXPECT_TRUE(ParseUrl(url, &endpoint, &options).ok());
    EXPECT_TRUE(stream_.Connect(endpoint, options)) << stream_.failure().message;
    // version node epoch host session tenant limits transports regions, as lines of text.
    hello_words.insert(hello_words.begin(), {"KV.HELLO", "1"});
    Send(hello_words);
    const std::string hello = hello_ = Receive();
    const auto after = [&](const std::string& word) {
      const size_t at = hello.find("\n" + word + "\n");
      EXPECT_NE(at, std::string::npos) << hello;
      const size_t start = at + word.size() + 2;
      return hello.substr(start, hello.find('\n', start) - start);
    };
    address_ = after("attach");
    token_ = after("token");
    session_ = after("session");
  }

  // A command and its reply as text; errors begin with their code.
  std::string Run(std::initializer_list<std::string_view> words) {
    Send(words);
    return Receive();
  }
  void Send(std::span<const std::string_view> words) {
    stream_.Begin(words.size());
    for (const std::string_view word : words) stream_.Word(word);
    EXPECT_TRUE(stream_.Flush()) << stream_.failure().message;
  }
  void Send(std::initializer_list<std::string_view> words) {
    Send(std::span(words.begin(), words.size()));
  }
  std::string Receive() {
    std::string text;
    EXPECT_TRUE(stream_.ReadText(&text)) << stream_.failure().message;
    return text;
  }

  // Connects to the attach socket; false when the server hangs up on the token.
  bool Attach(std::string token) {
    sockaddr_un where{};
    where.sun_family = AF_UNIX;
    std::memcpy(where.sun_path, address_.data(), address_.size());
    where.sun_path[0] = '\0';
    fd_.Reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(fd_.get(), reinterpret_cast<sockaddr*>(&where),
                      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size())),
              0);
    AttachMessage hello;
    hello.type = AttachMessage::kHello;
    std::copy(token.begin(), token.end(), hello.token.begin());
    EXPECT_TRUE(protocol::SendAttachMessage(fd_.get(), hello));
    auto welcome = protocol::ReceiveAttachMessage(fd_.get());
    if (!welcome) return false;
    EXPECT_EQ(welcome->message.type, AttachMessage::kWelcome);
    generations_ = std::move(welcome->fd);
    generations_bytes_ = welcome->message.bytes;
    return true;
  }
  bool Attach() { return Attach(token_); }

  // Asks for a region: its descriptor, size and whether it may be written.
  struct Region {
    UniqueFd fd;
    size_t bytes = 0;
    bool writable = false;
    AttachMessage message;
  };
  Region Want(uint32_t region) {
    AttachMessage want;
    want.type = AttachMessage::kWant;
    want.region = region;
    EXPECT_TRUE(protocol::SendAttachMessage(fd_.get(), want));
    auto answer = ReceiveAnswer(region);
    if (!answer || answer->message.type != AttachMessage::kRegion) return {};
    return {std::move(answer->fd), answer->message.bytes, answer->message.writable != 0,
            answer->message};
  }
  bool Mapped(uint32_t region) {
    AttachMessage mapped;
    mapped.type = AttachMessage::kMapped;
    mapped.region = region;
    EXPECT_TRUE(protocol::SendAttachMessage(fd_.get(), mapped));
    auto answer = ReceiveAnswer(region);
    return answer && answer->message.type == AttachMessage::kSealed;
  }
  // That none of its copies writes into memory of devices any more.
  void SayDone() { SayDone(fd_.get()); }
  static void SayDone(int socket) {
    AttachMessage done;
    done.type = AttachMessage::kDone;
    EXPECT_TRUE(protocol::SendAttachMessage(socket, done));
  }
  // Waits until the server ends its side of the attach socket.
  void AwaitEnd() {
    for (;;) {
      const auto received = protocol::ReceiveAttachMessage(fd_.get());
      if (received) continue;
      EXPECT_EQ(received.error().code, ErrorCode::kUnavailable) << received.error().message;
      return;
    }
  }
  // Waits until the server says that the region goes; it may have said so already.
  void AwaitGone(uint32_t region) {
    while (std::find(gone_.begin(), gone_.end(), region) == gone_.end()) {
      auto received = protocol::ReceiveAttachMessage(fd_.get());
      ASSERT_TRUE(received);
      ASSERT_EQ(received->message.type, AttachMessage::kGone);
      gone_.push_back(received->message.region);
    }
  }

  // KV.ALLOC of one key: token, region, offset.
  struct Allocation {
    std::string token;
    uint32_t region = 0;
    uint64_t offset = 0;
  };
  Allocation Alloc(std::string_view key, size_t bytes, std::string_view prefer = "") {
    const std::string length = std::to_string(bytes);
    const std::string reply = prefer.empty()
                                  ? Run({"KV.ALLOC", "1", key, length})
                                  : Run({"KV.ALLOC", "1", key, length, "PREFER", prefer});
    Allocation allocation;
    unsigned long long region = 0, offset = 0, token = 0;
    EXPECT_EQ(std::sscanf(reply.c_str(), "%llu\n%llu\n%llu", &token, &region, &offset), 3)
        << reply;
    allocation.token = std::to_string(token);
    allocation.region = static_cast<uint32_t>(region);
    allocation.offset = offset;
    return allocation;
  }

  // The answer to KV.HELLO as lines of text.
  const std::string& hello() const { return hello_; }
  const std::string& token() const { return token_; }
  int attach_fd() const { return fd_.get(); }
  int generations() const { return generations_.get(); }
  size_t generations_bytes() const { return generations_bytes_; }
  void HangUp() { fd_.Reset(); }
  RespStream& stream() { return stream_; }

 private:
  // About this region; others may go at any time.
  Result<protocol::ReceivedAttachMessage> ReceiveAnswer(uint32_t region) {
    for (;;) {
      auto received = protocol::ReceiveAttachMessage(fd_.get());
      if (!received || received->message.type != AttachMessage::kGone ||
          received->message.region == region) {
        return received;
      }
      gone_.push_back(received->message.region);
    }
  }

  RespStream stream_;
  std::string address_;
  std::string token_;
  std::string session_;
  std::string hello_;
  UniqueFd fd_;
  UniqueFd generations_;
  std::vector<uint32_t> gone_;
  size_t generations_bytes_ = 0;
};

}  // namespace moonpool::client
