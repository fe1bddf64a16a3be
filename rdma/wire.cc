#include "rdma/wire.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace moonpool::rdma {

static_assert(std::endian::native == std::endian::little, "the wire's byte order");

namespace {

constexpr uint32_t kMagic = 0x52504d4d;  // "MMPR"

// The three forms of private data, as they travel.  Members without gaps between them.
struct RawRequest {
  uint32_t magic = kMagic;
  uint8_t oldest_version = 0;
  uint8_t newest_version = 0;
  uint16_t depth = 0;
  uint64_t epoch = 0;
  uint64_t session = 0;
  Token token{};
  uint16_t inline_bytes = 0;
  uint8_t reads = 0;
  uint8_t reserved[5] = {};
};
static_assert(sizeof(RawRequest) == 48 && sizeof(RawRequest) <= kMaxRequestBytes);

struct RawAccept {
  uint32_t magic = kMagic;
  uint8_t version = 0;
  uint8_t nic = 0;
  uint16_t depth = 0;
  uint64_t epoch = 0;
  uint64_t generations_address = 0;
  uint64_t generations_bytes = 0;
  uint32_t generations_key = 0;
  uint16_t inline_bytes = 0;
  uint8_t reads = 0;
  uint8_t reserved = 0;
};
static_assert(sizeof(RawAccept) == 40 && sizeof(RawAccept) <= kMaxAcceptBytes);

struct RawReject {
  uint32_t magic = kMagic;
  uint8_t reason = 0;
  uint8_t oldest_version = 0;
  uint8_t newest_version = 0;
  uint8_t reserved = 0;
};
static_assert(sizeof(RawReject) == 8 && sizeof(RawReject) <= kMaxRejectBytes);

template <typename Raw>
std::string Bytes(const Raw& raw) {
  return std::string(reinterpret_cast<const char*>(&raw), sizeof(raw));
}

template <typename Raw>
Result<Raw> Parse(std::string_view bytes, const char* what) {
  Raw raw;
  if (bytes.size() < sizeof(raw)) {
    return Fail(ErrorCode::kProtocol, std::string(what) + " of " + std::to_string(bytes.size()) +
                                          " bytes: the other side does not speak this protocol");
  }
  std::memcpy(&raw, bytes.data(), sizeof(raw));
  if (raw.magic != kMagic) {
    return Fail(ErrorCode::kProtocol,
                std::string(what) + ": the other side does not speak this protocol");
  }
  return raw;
}

constexpr char kHex[] = "0123456789abcdef";

}  // namespace

std::string TokenText(const Token& token) {
  std::string text;
  for (const uint8_t byte : token) {
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

std::optional<Token> ParseToken(std::string_view text) {
  Token token{};
  if (text.size() != 2 * token.size()) return std::nullopt;
  for (size_t i = 0; i < text.size(); ++i) {
    const char* const digit = static_cast<const char*>(std::memchr(kHex, text[i], 16));
    if (digit == nullptr) return std::nullopt;
    token[i / 2] = static_cast<uint8_t>(token[i / 2] << 4 | (digit - kHex));
  }
  return token;
}

LaneLimits Smaller(const LaneLimits& a, const LaneLimits& b) {
  return {std::min(a.depth, b.depth), std::min(a.inline_bytes, b.inline_bytes),
          std::min(a.reads, b.reads)};
}

std::string_view RejectText(RejectReason reason) {
  switch (reason) {
    case RejectReason::kVersion:
      return "no version of the protocol that both sides speak";
    case RejectReason::kUnknownToken:
      return "the token is not one of this server's";
    case RejectReason::kUsedToken:
      return "the token was used before";
    case RejectReason::kExpiredToken:
      return "the token has expired";
    case RejectReason::kWrongSession:
      return "the token is of another session";
    case RejectReason::kWrongEpoch:
      return "the server has been restarted";
    case RejectReason::kTooMany:
      return "too many queue pairs";
    case RejectReason::kNoMemory:
      return "the server cannot make a queue pair";
    case RejectReason::kBadRequest:
      return "the request is not of this protocol";
    case RejectReason::kStopping:
      return "the server is stopping";
  }
  return "for a reason of a newer version";
}

std::string Encode(const ConnectRequest& request) {
  RawRequest raw;
  raw.oldest_version = request.oldest_version;
  raw.newest_version = request.newest_version;
  raw.depth = request.limits.depth;
  raw.epoch = request.epoch;
  raw.session = request.session;
  raw.token = request.token;
  raw.inline_bytes = request.limits.inline_bytes;
  raw.reads = request.limits.reads;
  return Bytes(raw);
}

std::string Encode(const ConnectAccept& accept) {
  RawAccept raw;
  raw.version = accept.version;
  raw.nic = accept.nic;
  raw.depth = accept.limits.depth;
  raw.epoch = accept.epoch;
  raw.generations_address = accept.generations_address;
  raw.generations_bytes = accept.generations_bytes;
  raw.generations_key = accept.generations_key;
  raw.inline_bytes = accept.limits.inline_bytes;
  raw.reads = accept.limits.reads;
  return Bytes(raw);
}

std::string Encode(const ConnectReject& reject) {
  RawReject raw;
  raw.reason = static_cast<uint8_t>(reject.reason);
  raw.oldest_version = reject.oldest_version;
  raw.newest_version = reject.newest_version;
  return Bytes(raw);
}

Result<ConnectRequest> DecodeRequest(std::string_view bytes) {
  auto raw = Parse<RawRequest>(bytes, "a connection request");
  if (!raw) return tl::unexpected<Error>(std::move(raw.error()));
  if (raw->oldest_version > raw->newest_version || raw->depth == 0 || raw->reads == 0) {
    return Fail(ErrorCode::kProtocol, "a connection request contradicts itself");
  }
  ConnectRequest request;
  request.oldest_version = raw->oldest_version;
  request.newest_version = raw->newest_version;
  request.epoch = raw->epoch;
  request.session = raw->session;
  request.token = raw->token;
  request.limits = {raw->depth, raw->inline_bytes, raw->reads};
  return request;
}

Result<ConnectAccept> DecodeAccept(std::string_view bytes) {
  auto raw = Parse<RawAccept>(bytes, "an acceptance");
  if (!raw) return tl::unexpected<Error>(std::move(raw.error()));
  if (raw->version < kOldestVersion || raw->version > kNewestVersion || raw->depth == 0 ||
      raw->reads == 0) {
    return Fail(ErrorCode::kProtocol, "an acceptance of version " + std::to_string(raw->version) +
                                          ", depth " + std::to_string(raw->depth));
  }
  ConnectAccept accept;
  accept.version = raw->version;
  accept.nic = raw->nic;
  accept.epoch = raw->epoch;
  accept.limits = {raw->depth, raw->inline_bytes, raw->reads};
  accept.generations_address = raw->generations_address;
  accept.generations_bytes = raw->generations_bytes;
  accept.generations_key = raw->generations_key;
  return accept;
}

Result<ConnectReject> DecodeReject(std::string_view bytes) {
  auto raw = Parse<RawReject>(bytes, "a refusal");
  if (!raw) return tl::unexpected<Error>(std::move(raw.error()));
  return ConnectReject{static_cast<RejectReason>(raw->reason), raw->oldest_version,
                       raw->newest_version};
}

Result<Message> DecodeMessage(std::string_view bytes) {
  Message message;
  if (bytes.size() != sizeof(message)) {
    return Fail(ErrorCode::kProtocol, "a message of " + std::to_string(bytes.size()) + " bytes");
  }
  std::memcpy(&message, bytes.data(), sizeof(message));
  if (message.type < Message::kWant || message.type > Message::kBufferDropped) {
    return Fail(ErrorCode::kProtocol, "a message of type " + std::to_string(message.type));
  }
  if (message.length > message.total || message.offset > message.total - message.length) {
    return Fail(ErrorCode::kProtocol, "a message about bytes beyond the end");
  }
  return message;
}

}  // namespace moonpool::rdma
