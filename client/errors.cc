#include "client/errors.h"

namespace moonpool::client {

namespace {

struct CodeRow {
  Code code;
  std::string_view name;
  std::string_view cure;
};
constexpr CodeRow kCodes[] = {
    {Code::kOk, "Ok", "nothing to do"},
    {Code::kMiss, "Miss", "compute the value, and put it if others will want it"},
    {Code::kConditionNotMet, "ConditionNotMet", "somebody else was first, or the key is gone"},
    {Code::kBufferTooSmall, "BufferTooSmall", "give buffers of at least the reported length"},
    {Code::kInvalidArgument, "InvalidArgument", "correct the call as the message says"},
    {Code::kOutOfMemory, "OutOfMemory",
     "raise maxmemory, unpin keys, or choose a policy that may evict"},
    {Code::kPermissionDenied, "PermissionDenied", "check the password in the URL or the options"},
    {Code::kUnavailable, "Unavailable", "check that the server runs and can be reached; retry"},
    {Code::kTimeout, "Timeout", "retry, or raise timeout_ms"},
    {Code::kCorrupt, "Corrupt", "treat it as a miss and write the value again"},
    {Code::kProtocol, "Protocol", "use a library and a server of the same release"},
    {Code::kServerError, "ServerError", "the message is the server's own"},
    {Code::kChanged, "Changed", "read it again, or treat it as a miss"},
    {Code::kDeviceError, "DeviceError",
     "do as the message says; a device that was lost needs a new process"},
};

struct ReplyRow {
  std::string_view prefix;
  Code code;
};
constexpr ReplyRow kReplies[] = {
    {"OOM ", Code::kOutOfMemory},
    {"NOAUTH ", Code::kPermissionDenied},
    {"WRONGPASS ", Code::kPermissionDenied},
    {"NOPERM ", Code::kPermissionDenied},
    {"DENIED ", Code::kPermissionDenied},
    {"ERR max number of clients", Code::kUnavailable},
    {"TRYAGAIN ", Code::kUnavailable},
    {"LOADING ", Code::kUnavailable},
    {"ERR syntax error", Code::kInvalidArgument},
    {"ERR wrong number of arguments", Code::kInvalidArgument},
    {"ERR invalid expire time", Code::kInvalidArgument},
    {"ERR length is out of range", Code::kInvalidArgument},
    {"ERR PREFER", Code::kInvalidArgument},
    {"ERR Protocol error", Code::kProtocol},
};

const CodeRow& RowOf(Code code) { return kCodes[static_cast<size_t>(code)]; }

}  // namespace

std::string_view CodeName(Code code) { return RowOf(code).name; }
std::string_view CodeCure(Code code) { return RowOf(code).cure; }

Status FromErrorReply(std::string_view text) {
  for (const ReplyRow& row : kReplies) {
    if (text.starts_with(row.prefix)) return {row.code, std::string(text)};
  }
  return {Code::kServerError, std::string(text)};
}

Status FromDeviceError(const Error& error) {
  if (error.code == ErrorCode::kTimeout) return {Code::kTimeout, error.message};
  return {error.code == ErrorCode::kInvalidArgument ? Code::kInvalidArgument : Code::kDeviceError,
          error.message};
}

Status FromError(const Error& error) {
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
      return {Code::kInvalidArgument, error.message};
    case ErrorCode::kOutOfMemory:
    case ErrorCode::kBusy:
      return {Code::kOutOfMemory, error.message};
    case ErrorCode::kPermissionDenied:
      return {Code::kPermissionDenied, error.message};
    case ErrorCode::kNotFound:
    case ErrorCode::kUnavailable:
    case ErrorCode::kSystem:
    case ErrorCode::kNoSpace:
      return {Code::kUnavailable, error.message};
    case ErrorCode::kTimeout:
      return {Code::kTimeout, error.message};
    case ErrorCode::kCorrupt:
      return {Code::kCorrupt, error.message};
    case ErrorCode::kProtocol:
      return {Code::kProtocol, error.message};
  }
  __builtin_unreachable();
}

}  // namespace moonpool::client
