// What processes_test and the processes that it starts say to each other, over a SOCK_SEQPACKET
// socket; a file descriptor may come with a message.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "gpu/memory.h"
#include "protocol/fd_message.h"
#include "protocol/unique_fd.h"

namespace moonpool::gpu {

struct PeerMessage {
  enum Command : uint32_t {
    kReady = 1,  // peer: it has its device, or says why not
    kImport,     // take this region; a further one takes the place of the one before
    kSum,        // pull it and say the SumOf() its bytes
    kFill,       // write PeerBytes(seed) into it
    kSpin,       // answer, and then pull it for ever
    kAllocate,   // make a region, fill it, and send it
    kEnd,
  };
  uint32_t command = 0;
  uint32_t ok = 0;
  RegionHandle handle;
  uint64_t seed = 0;
  uint64_t value = 0;
  char text[300] = {};
};

inline constexpr int kPeerSocket = 3;

inline bool SendPeer(int socket, const PeerMessage& message, int fd = -1) {
  return protocol::SendWithFd(socket, &message, sizeof(message), fd);
}

// False at the end of the other side.
inline bool ReceivePeer(int socket, PeerMessage* message, UniqueFd* fd) {
  protocol::FdMessage received = protocol::ReceiveWithFd(socket, message, sizeof(*message));
  *fd = std::move(received.fd);
  return received.bytes == static_cast<ssize_t>(sizeof(*message));
}

// The bytes that belong to a seed (SplitMix64).
inline std::string PeerBytes(uint64_t seed, size_t bytes) {
  std::string text(bytes, '\0');
  for (size_t at = 0; at < bytes; at += 8) {
    uint64_t word = seed += 0x9e3779b97f4a7c15;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
    word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
    word ^= word >> 31;
    std::memcpy(text.data() + at, &word, bytes - at < 8 ? bytes - at : 8);
  }
  return text;
}

// FNV-1a.
inline uint64_t SumOf(const std::string& bytes) {
  uint64_t sum = 0xcbf29ce484222325;
  for (const char c : bytes) sum = (sum ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return sum;
}

}  // namespace moonpool::gpu
