#include "client/endpoint.h"

#include <gtest/gtest.h>

namespace moonpool::client {
namespace {

TEST(Endpoint, HostsPortsAndOptions) {
  Endpoint endpoint;
  Options options;
  ASSERT_TRUE(ParseUrl("moonpool://host", &endpoint, &options).ok());
  EXPECT_EQ(endpoint.host, "host");
  EXPECT_EQ(endpoint.port, 6379);
  ASSERT_TRUE(ParseUrl("redis://:p%40ss@[::1]:7000/0?transport=tcp&connections=3&checksum=yes",
                       &endpoint, &options)
                  .ok());
  EXPECT_EQ(endpoint.host, "::1");
  EXPECT_EQ(endpoint.port, 7000);
  EXPECT_EQ(options.password, "p@ss");
  EXPECT_EQ(options.transport, Options::TransportChoice::kTcp);
  EXPECT_EQ(options.connections, 3);
  EXPECT_TRUE(options.checksum);
  ASSERT_TRUE(ParseUrl("moonpool+unix:///run/my%20pool.sock?timeout_ms=5", &endpoint, &options).ok());
  EXPECT_EQ(endpoint.unix_path, "/run/my pool.sock");
  EXPECT_EQ(options.timeout_ms, 5);
  ASSERT_TRUE(ParseUrl("moonpool://host?transport=rdma&rdma_devices=mlx5_0%3A1,mlx5_2&rdma_exclude=rxe*&"
                       "rdma_registered_mib=4096&rdma_staging_mib=0&rdma_sessions=2",
                       &endpoint, &options)
                  .ok());
  EXPECT_EQ(options.transport, Options::TransportChoice::kRdma);
  EXPECT_EQ(options.rdma_devices, "mlx5_0:1,mlx5_2");
  EXPECT_EQ(options.rdma_exclude, "rxe*");
  EXPECT_EQ(options.rdma_registered_mib, 4096);
  EXPECT_EQ(options.rdma_staging_mib, 0);
  EXPECT_EQ(options.rdma_sessions, 2);
  EXPECT_EQ(options.gpu, Options::GpuChoice::kAuto);
  ASSERT_TRUE(ParseUrl("moonpool://host?gpu=no", &endpoint, &options).ok());
  EXPECT_EQ(options.gpu, Options::GpuChoice::kNo);
  EXPECT_FALSE(ParseUrl("moonpool://host?gpu=yes", &endpoint, &options).ok());
  EXPECT_EQ(options.gpu_rdma, Options::GpuChoice::kAuto);
  ASSERT_TRUE(ParseUrl("moonpool://host?gpu_rdma=no", &endpoint, &options).ok());
  EXPECT_EQ(options.gpu_rdma, Options::GpuChoice::kNo);
  EXPECT_FALSE(ParseUrl("moonpool://host?gpu_rdma=yes", &endpoint, &options).ok());
}

TEST(Endpoint, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"host:6379", "no scheme"},
      {"http://host", "unknown scheme"},
      {"moonpool://", "no host"},
      {"moonpool://host:0", "bad port"},
      {"moonpool://host:65536", "bad port"},
      {"moonpool://host:12x", "bad port"},
      {"moonpool://::1:6379", "brackets"},
      {"moonpool://[::1", "']'"},
      {"moonpool://:%zz@host", "escape"},
      {"moonpool://host/1", "only database"},
      {"moonpool+unix://relative", "absolute path"},
      {"moonpool://host?speed=fast", "unknown option 'speed'"},
      {"moonpool://host?connections", "without '='"},
      {"moonpool://host?connections=0", "from 1 to 1024"},
      {"moonpool://host?transport=pigeon", "auto, shm, rdma or tcp"},
      {"moonpool://host?checksum=maybe", "yes or no"},
      {"moonpool://host?rdma_devices=%zz", "escape in rdma_devices"},
      {"moonpool://host?rdma_sessions=0", "from 1 to"},
  };
  for (const auto& [url, what] : cases) {
    Endpoint endpoint;
    Options options;
    const Status status = ParseUrl(url, &endpoint, &options);
    EXPECT_EQ(status.code, Code::kInvalidArgument) << url;
    EXPECT_NE(status.message.find(what), std::string::npos) << url << ": " << status.message;
  }
}

}  // namespace
}  // namespace moonpool::client
