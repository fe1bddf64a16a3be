// What travels between the two ends of a queue pair: the private data of its connection, and the
// short messages that are sent over it.
//
//   client                                     server
//   request: token, session, epoch, limits  ->
//                                           <-  acceptance: limits, where the generations are
//                                               or a refusal with its reason
//   kWant    region, offset                 ->
//                                           <-  kRegion  where it is, as far as one key reaches
//                                               or kUnknown: it cannot be read from here (now)
//                                           <-  kGone    region: sent unasked; its key stops
//                                           working
//   kDropped region                         ->  (answer: no READ of it is under way or to come)
//   kBuffer  buffer, where it is, access    ->
//                                           <-  kBufferKnown
//   kBufferGone buffer                      ->
//                                           <-  kBufferDropped: nothing touches it from now on
//
// Every message is one Message.  Numbers are little endian.
// Threads: none; values.
// Errors: kProtocol for bytes that are none of this, with what they were.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/status.h"
#include "rdma/verbs.h"

namespace moonpool::rdma {

inline constexpr uint8_t kOldestVersion = 1;
inline constexpr uint8_t kNewestVersion = 1;

// Good for one queue pair of one session.
using Token = std::array<uint8_t, 16>;
std::string TokenText(const Token& token);  // hexadecimal
std::optional<Token> ParseToken(std::string_view text);

// What two sides agree on is the smaller of each.
struct LaneLimits {
  uint16_t depth = 256;  // work requests posted and not completed
  uint16_t inline_bytes = 64;
  uint8_t reads = 16;  // READs in flight
};
LaneLimits Smaller(const LaneLimits& a, const LaneLimits& b);

struct ConnectRequest {
  uint8_t oldest_version = kOldestVersion;
  uint8_t newest_version = kNewestVersion;
  uint64_t epoch = 0;
  uint64_t session = 0;
  Token token{};
  LaneLimits limits;
};

struct ConnectAccept {
  uint8_t version = kNewestVersion;
  uint8_t nic = 0;  // of the server: queue pairs to the same one use the same keys
  uint64_t epoch = 0;
  LaneLimits limits;
  // The tenant's generation table.
  uint64_t generations_address = 0;
  uint64_t generations_bytes = 0;
  uint32_t generations_key = 0;
};

enum class RejectReason : uint8_t {
  kVersion = 1,
  kUnknownToken,
  kUsedToken,
  kExpiredToken,
  kWrongSession,
  kWrongEpoch,
  kTooMany,   // queue pairs of this session, or at all
  kNoMemory,  // for a queue pair
  kBadRequest,
  kStopping,
};
std::string_view RejectText(RejectReason reason);

struct ConnectReject {
  RejectReason reason = RejectReason::kBadRequest;
  uint8_t oldest_version = kOldestVersion;
  uint8_t newest_version = kNewestVersion;
};

// Private data may have zeros behind it.
std::string Encode(const ConnectRequest& request);
std::string Encode(const ConnectAccept& accept);
std::string Encode(const ConnectReject& reject);
Result<ConnectRequest> DecodeRequest(std::string_view bytes);
Result<ConnectAccept> DecodeAccept(std::string_view bytes);
Result<ConnectReject> DecodeReject(std::string_view bytes);

struct Message {
  enum Type : uint32_t {
    kWant = 1,
    kRegion,
    kUnknown,
    kGone,
    kDropped,
    kBuffer,
    kBufferKnown,
    kBufferGone,
    kBufferDropped,
  };
  uint32_t type = 0;
  uint32_t id = 0;      // of the region or buffer
  uint64_t offset = 0;  // of the part that the rest is about
  uint64_t length = 0;
  uint64_t address = 0;  // of that part, as the other side's NIC takes it
  uint32_t key = 0;
  uint32_t access = 0;  // Access, of a buffer
  uint64_t total = 0;   // bytes of the whole region or buffer
};
static_assert(sizeof(Message) == 48);
Result<Message> DecodeMessage(std::string_view bytes);

}  // namespace moonpool::rdma
