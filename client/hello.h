// KV.HELLO: what a client asks for, and what a server tells.
//
// Threads: as RespStream.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/rdma_transport.h"
#include "client/resp_stream.h"

namespace moonpool::client {

struct ServerLimits {
  uint64_t bulk_threshold = 64 * 1024;
  size_t max_batch_keys = 65536;
};

struct HelloAnswer {
  uint64_t epoch = 0;
  uint64_t session = 0;
  ServerLimits limits;
  // Shared memory: the attach socket and a token for it; empty when it is not offered.
  std::string attach;
  std::string token;
  std::optional<RdmaOffer> rdma;
  // Devices of the server's whose memory may be imported, by UUID; the attach socket is shm's.
  std::vector<std::string> devices;
};

// `devices`: those that the client can import memory of; empty: it wants none.
void WordsOfHello(RespStream& stream, bool want_shm, bool want_rdma,
                  std::span<const std::string> devices);
// The map whose header was read.  False when the stream failed.
bool ReadHello(RespStream& stream, const ReplyHeader& header, HelloAnswer* answer);

}  // namespace moonpool::client
