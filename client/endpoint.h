// Where a server is, and the options that stand in its URL.
#pragma once

#include <string>

#include "client/moonpool/client.h"

namespace moonpool::client {

struct Endpoint {
  std::string host;
  int port = 6379;
  std::string unix_path;  // not empty: a Unix socket, host and port mean nothing
};

// Options in the URL go before those in `options`.  The message of an error says what is wrong
// with the URL.
Status ParseUrl(const std::string& url, Endpoint* endpoint, Options* options);

}  // namespace moonpool::client
