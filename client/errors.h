// The one table from lower errors (RESP replies, errno, the wire) to client codes.
#pragma once

#include <string_view>

#include "client/moonpool/client.h"
#include "protocol/status.h"

namespace moonpool::client {

// `text` is an error reply without its '-': "OOM command not allowed ...".
Status FromErrorReply(std::string_view text);
Status FromError(const Error& error);
// Of a GPU that was to copy.
Status FromDeviceError(const Error& error);

}  // namespace moonpool::client
