// One side of a session in a process of its own, for tests that kill it.
//
//   moonpool-rdma-peer serve EPOCH SESSION      prints its port, eight tokens and where a value is
//   moonpool-rdma-peer read PORT EPOCH SESSION TOKEN TOKEN REGION OFFSET LENGTH SLOT GENERATION
//                                               prints "reading" and reads for ever; the server is
//                                               at $RDMA_PEER_ADDR, else at this host
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/rdma/live_pool.h"

namespace moonpool::rdma::test {
namespace {

int Serve(uint64_t epoch, uint64_t session) {
  const auto nics = OpenNics();
  ServiceOptions options;
  options.epoch = epoch;
  const auto service = Must(Service::Start(*nics, std::move(options)), "service");
  LivePool pool(*service, 64 << 20, 128 << 20);
  const storage::ValueRef value = pool.Put(8 << 20, 5);
  service->BeginSession(session, pool.memory());
  std::printf("%u\n", service->port());
  for (int i = 0; i < 8; ++i) std::printf("%s\n", TokenText(service->IssueToken(session)).c_str());
  const storage::Extent& extent = value->extent();
  std::printf("%u\n%llu\n%llu\n%u\n%llu\n", extent.region->id(),
              static_cast<unsigned long long>(extent.offset),
              static_cast<unsigned long long>(extent.length), extent.slot,
              static_cast<unsigned long long>(extent.generation));
  std::fflush(stdout);
  for (;;) pause();
}

int Read(char** words) {
  const auto nics = OpenNics();
  EndpointTarget target;
  target.port = static_cast<uint16_t>(std::stoul(words[0]));
  target.epoch = std::stoull(words[1]);
  target.session = std::stoull(words[2]);
  target.nics = Told(*nics);
  if (const char* const address = std::getenv("RDMA_PEER_ADDR"); address != nullptr) {
    target.nics.resize(1);
    target.nics[0].addresses = {address};
  }
  int next = 3;
  LiveClient client(*nics, target, [&]() -> Result<Token> {
    if (next == 5) return Fail(ErrorCode::kUnavailable, "no token is left");
    return *ParseToken(words[next++]);
  });
  if (const Status status = client.endpoint().Open(); !status) {
    std::printf("%s\n", status.error().message.c_str());
    return 1;
  }
  LiveClient::Want want;
  want.region = static_cast<uint32_t>(std::stoul(words[5]));
  want.offset = std::stoull(words[6]);
  want.length = std::stoull(words[7]);
  want.slot = static_cast<uint32_t>(std::stoul(words[8]));
  want.generation = std::stoull(words[9]);
  ClientBuffer buffer(want.length);
  want.to = buffer.data();
  for (bool first = true;; first = false) {
    if (client.Read({want})[0] != Outcome::kDone) {
      std::printf("%s\n", client.error().c_str());
      return 1;
    }
    if (first && FirstWrong(buffer.data(), want.length, 5)) {
      std::printf("wrong bytes\n");
      return 1;
    }
    if (first) {
      std::printf("reading\n");
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace moonpool::rdma::test

int main(int count, char** words) {
  using namespace moonpool::rdma::test;
  const std::string mode = count > 1 ? words[1] : "";
  if (mode == "serve" && count == 4) return Serve(std::stoull(words[2]), std::stoull(words[3]));
  if (mode == "read" && count == 12) return Read(words + 2);
  std::fprintf(stderr, "see the comment at the top of peer.cc\n");
  return 2;
}
