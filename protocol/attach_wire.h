// The messages of the attach socket: how a same-host client gets the memory files of its tenant.
//
// A SOCK_SEQPACKET Unix socket; every message is one AttachMessage in the machine's own byte
// order, with at most one file descriptor beside it.
//
//   client                                    server
//   kHello   token                     ->
//                                      <-     kWelcome  bytes = size of the generation table  +fd
//   kWant    region                    ->
//                                      <-     kRegion   region, bytes, writable               +fd
//                                             or kGone when there is no such region (any more)
//   kMapped  region (a write arena)    ->
//                                      <-     kSealed   region: nobody can map it writable now
//                                      <-     kGone     region: unmap it; sent unasked as well
//   kUnmapped region                   ->     (answer to kGone: no mapping of it is left here)
//   kDone                              ->     the last message: no work that was begun for this session
//                                             writes into memory of devices any more, and none will
//
// A region in a device's memory (`tier` is kGpu) is answered with what an import needs: the device's
// UUID, and the kind of handle, which is the file beside the message or the bytes of `opaque`.  Every
// session of the tenant may write there, so nobody says kMapped and nothing is sealed.
//
// One connection per session, opened with the one-time token that KV.HELLO handed out over RESP.
// End of file on either side ends the session's shared-memory part; what was mapped is not to
// be trusted from then on.  It proves nothing of copies that the client has put into a device's
// streams: kDone does, or the end of its process.  So that kDone can be said when the session is lost,
// the server shuts down only its own direction then, and reads on as long as it holds memory back.
#pragma once

#include <array>
#include <cstdint>

#include "protocol/descriptor.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"

namespace moonpool::protocol {

using AttachToken = std::array<char, 32>;  // hexadecimal digits

// How memory of a device is handed to another process.
enum class DeviceHandleKind : uint8_t {
  kNone = 0,     // host memory: the file is mapped
  kPosixFd = 1,  // the file beside the message
  kFabric = 2,   // the message's opaque bytes
  kIpc = 3,      // likewise
};

struct AttachMessage {
  enum Type : uint32_t {
    kHello = 1,
    kWelcome,
    kWant,
    kRegion,
    kMapped,
    kSealed,
    kGone,
    kUnmapped,
    kDone,
  };
  static constexpr uint32_t kMagic = 0x4c4f504d;  // "MPOL"
  static constexpr uint32_t kVersion = 3;

  uint32_t magic = kMagic;
  uint32_t version = kVersion;
  uint32_t type = 0;
  uint32_t region = 0;
  uint64_t bytes = 0;
  uint64_t epoch = 0;
  uint32_t writable = 0;
  Tier tier = Tier::kDram;
  DeviceHandleKind handle = DeviceHandleKind::kNone;
  uint16_t reserved = 0;
  AttachToken token{};
  std::array<uint8_t, 16> device{};  // UUID
  std::array<char, 64> opaque{};
};
static_assert(sizeof(AttachMessage) == 152);

// Sends one message, with `fd` beside it unless it is -1.  Blocks as the socket does.
Status SendAttachMessage(int socket, const AttachMessage& message, int fd = -1);

struct ReceivedAttachMessage {
  AttachMessage message;
  UniqueFd fd;
};
// kUnavailable at end of file, kTimeout when a non-blocking socket has nothing, kProtocol when
// the bytes are not a message of this version, or name a tier or a kind of handle that is none.
Result<ReceivedAttachMessage> ReceiveAttachMessage(int socket);

}  // namespace moonpool::protocol
