#include "protocol/attach_wire.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace moonpool::protocol {
namespace {

size_t OpenFiles() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

UniqueFd MemoryFile(const std::string& contents) {
  UniqueFd fd(memfd_create("attach-wire-test", MFD_CLOEXEC));
  EXPECT_EQ(write(fd.get(), contents.data(), contents.size()),
            static_cast<ssize_t>(contents.size()));
  return fd;
}

class AttachWireTest : public testing::Test {
 protected:
  AttachWireTest() : open_files_(OpenFiles()) {
    int pair[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    here_.Reset(pair[0]);
    there_.Reset(pair[1]);
  }
  ~AttachWireTest() override {
    here_.Reset();
    there_.Reset();
    EXPECT_EQ(OpenFiles(), open_files_) << "file descriptors leak";
  }

  // Sends bytes and descriptors as no honest peer would.
  void SendRaw(const void* data, size_t size, const std::vector<int>& fds) {
    iovec bytes{const_cast<void*>(data), size};
    msghdr header{};
    header.msg_iov = &bytes;
    header.msg_iovlen = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))] = {};
    if (!fds.empty()) {
      header.msg_control = control;
      header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
      cmsghdr* rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
    }
    ASSERT_EQ(sendmsg(here_.get(), &header, 0), static_cast<ssize_t>(size));
  }
  ErrorCode ReceiveError() {
    const auto received = ReceiveAttachMessage(there_.get());
    EXPECT_FALSE(received);
    return received ? ErrorCode::kInvalidArgument : received.error().code;
  }

  size_t open_files_;
  UniqueFd here_, there_;
};

TEST_F(AttachWireTest, CarriesEveryField) {
  AttachMessage message;
  message.type = AttachMessage::kRegion;
  message.region = 77;
  message.bytes = 1ull << 40;
  message.epoch = 0x0123456789abcdef;
  message.writable = 1;
  message.tier = Tier::kGpu;
  message.handle = DeviceHandleKind::kFabric;
  std::memset(message.token.data(), 'f', message.token.size());
  for (size_t i = 0; i < message.device.size(); ++i) message.device[i] = static_cast<uint8_t>(i + 1);
  for (size_t i = 0; i < message.opaque.size(); ++i) message.opaque[i] = static_cast<char>(~i);
  ASSERT_TRUE(SendAttachMessage(here_.get(), message));
  const auto received = ReceiveAttachMessage(there_.get());
  ASSERT_TRUE(received);
  EXPECT_EQ(received->message.type, AttachMessage::kRegion);
  EXPECT_EQ(received->message.region, 77u);
  EXPECT_EQ(received->message.bytes, 1ull << 40);
  EXPECT_EQ(received->message.epoch, 0x0123456789abcdefu);
  EXPECT_EQ(received->message.writable, 1u);
  EXPECT_EQ(received->message.token, message.token);
  EXPECT_EQ(received->message.tier, Tier::kGpu);
  EXPECT_EQ(received->message.handle, DeviceHandleKind::kFabric);
  EXPECT_EQ(received->message.device, message.device);
  EXPECT_EQ(received->message.opaque, message.opaque);
  EXPECT_FALSE(received->fd);
}

TEST_F(AttachWireTest, PassesAFileThatIsClosedOnExec) {
  const UniqueFd file = MemoryFile("hello");
  ASSERT_TRUE(SendAttachMessage(here_.get(), AttachMessage{}, file.get()));
  ASSERT_TRUE(SendAttachMessage(here_.get(), AttachMessage{}));
  auto received = ReceiveAttachMessage(there_.get());
  ASSERT_TRUE(received);
  ASSERT_TRUE(received->fd);
  EXPECT_NE(received->fd.get(), file.get());
  EXPECT_EQ(fcntl(received->fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  struct stat mine {
  }, theirs{};
  ASSERT_EQ(fstat(file.get(), &mine), 0);
  ASSERT_EQ(fstat(received->fd.get(), &theirs), 0);
  EXPECT_EQ(mine.st_ino, theirs.st_ino);
  // The next message comes without one.
  received = ReceiveAttachMessage(there_.get());
  ASSERT_TRUE(received);
  EXPECT_FALSE(received->fd);
}

TEST_F(AttachWireTest, MessagesKeepTheirBoundaries) {
  for (uint32_t i = 0; i < 20; ++i) {
    AttachMessage message;
    message.region = i;
    ASSERT_TRUE(SendAttachMessage(here_.get(), message));
  }
  for (uint32_t i = 0; i < 20; ++i) {
    const auto received = ReceiveAttachMessage(there_.get());
    ASSERT_TRUE(received);
    EXPECT_EQ(received->message.region, i);
  }
}

TEST_F(AttachWireTest, RefusesMessagesOfAnotherSize) {
  const UniqueFd file = MemoryFile("x");
  std::string bytes(sizeof(AttachMessage) + 8, '\0');
  const AttachMessage message;
  std::memcpy(bytes.data(), &message, sizeof(message));
  for (const size_t size :
       {size_t{1}, size_t{4}, sizeof(message) - 1, sizeof(message) + 1, sizeof(message) + 8}) {
    SCOPED_TRACE(size);
    ASSERT_NO_FATAL_FAILURE(SendRaw(bytes.data(), size, {}));
    EXPECT_EQ(ReceiveError(), ErrorCode::kProtocol);
    ASSERT_NO_FATAL_FAILURE(SendRaw(bytes.data(), size, {file.get()}));
    EXPECT_EQ(ReceiveError(), ErrorCode::kProtocol);
  }
  ASSERT_NO_FATAL_FAILURE(SendRaw(bytes.data(), sizeof(message), {}));
  EXPECT_TRUE(ReceiveAttachMessage(there_.get()));
}

TEST_F(AttachWireTest, RefusesAnotherMagicAndNamesAnotherVersion) {
  AttachMessage message;
  message.magic ^= 1;
  ASSERT_TRUE(SendAttachMessage(here_.get(), message));
  EXPECT_EQ(ReceiveError(), ErrorCode::kProtocol);

  const UniqueFd file = MemoryFile("x");
  message = {};
  message.version = 9;
  ASSERT_TRUE(SendAttachMessage(here_.get(), message, file.get()));
  const auto received = ReceiveAttachMessage(there_.get());
  ASSERT_FALSE(received);
  EXPECT_EQ(received.error().code, ErrorCode::kProtocol);
  EXPECT_NE(received.error().message.find("version 9"), std::string::npos);
  EXPECT_NE(received.error().message.find("version " + std::to_string(AttachMessage::kVersion)),
            std::string::npos);
}

TEST_F(AttachWireTest, NamesAnOlderVersionWhoseMessagesAreShorter) {
  AttachMessage message;
  message.version = 1;
  ASSERT_NO_FATAL_FAILURE(SendRaw(&message, 72, {}));
  const auto received = ReceiveAttachMessage(there_.get());
  ASSERT_FALSE(received);
  EXPECT_EQ(received.error().code, ErrorCode::kProtocol);
  EXPECT_NE(received.error().message.find("version 1"), std::string::npos);
}

TEST_F(AttachWireTest, RefusesTiersAndHandlesThatAreNone) {
  AttachMessage message;
  message.tier = static_cast<Tier>(kTiers);
  ASSERT_TRUE(SendAttachMessage(here_.get(), message));
  EXPECT_EQ(ReceiveError(), ErrorCode::kProtocol);
  message = {};
  message.handle = static_cast<DeviceHandleKind>(4);
  ASSERT_TRUE(SendAttachMessage(here_.get(), message));
  EXPECT_EQ(ReceiveError(), ErrorCode::kProtocol);
}

TEST_F(AttachWireTest, RefusesAndClosesMoreThanOneFile) {
  const UniqueFd file = MemoryFile("x");
  const AttachMessage message;
  for (const size_t count : {2, 3, 10}) {
    SCOPED_TRACE(count);
    ASSERT_NO_FATAL_FAILURE(
        SendRaw(&message, sizeof(message), std::vector<int>(count, file.get())));
    EXPECT_EQ(ReceiveError(), ErrorCode::kProtocol);
  }
}

TEST_F(AttachWireTest, EndOfFileAndEmptySocketAreToldApart) {
  ASSERT_EQ(fcntl(there_.get(), F_SETFL, O_NONBLOCK), 0);
  EXPECT_EQ(ReceiveError(), ErrorCode::kTimeout);
  ASSERT_TRUE(SendAttachMessage(here_.get(), AttachMessage{}));
  here_.Reset();
  EXPECT_TRUE(ReceiveAttachMessage(there_.get()));  // what was sent before still comes
  EXPECT_EQ(ReceiveError(), ErrorCode::kUnavailable);
  EXPECT_EQ(ReceiveError(), ErrorCode::kUnavailable);
}

TEST_F(AttachWireTest, SendingToAClosedPeerIsAnErrorNotASignal) {
  there_.Reset();
  const Status sent = SendAttachMessage(here_.get(), AttachMessage{});
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().code, ErrorCode::kSystem);
}

TEST_F(AttachWireTest, AFullSocketIsAnErrorOfTheSender) {
  ASSERT_EQ(fcntl(here_.get(), F_SETFL, O_NONBLOCK), 0);
  int sent = 0;
  while (sent < 1'000'000 && SendAttachMessage(here_.get(), AttachMessage{})) ++sent;
  EXPECT_GT(sent, 0);
  EXPECT_LT(sent, 1'000'000);
  for (int i = 0; i < sent; ++i) ASSERT_TRUE(ReceiveAttachMessage(there_.get()));
}

}  // namespace
}  // namespace moonpool::protocol
