#include "gpu/uuid.h"

#include <gtest/gtest.h>

#include <string>

#include "gpu/cuda_errors.h"

namespace moonpool::gpu {
namespace {

TEST(Uuid, TextAndBack) {
  const std::string text = "GPU-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
  const auto uuid = Uuid::Parse(text);
  ASSERT_TRUE(uuid);
  EXPECT_EQ(uuid->bytes[0], 0x0a);
  EXPECT_EQ(uuid->bytes[15], 0xf9);
  EXPECT_EQ(uuid->ToString(), text);
  EXPECT_EQ(Uuid::Parse("MIG-0A1B2C3D-4e5f-6071-8293-a4b5c6d7e8f9"), uuid);
  EXPECT_EQ(Uuid::Parse("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"), uuid);
}

TEST(Uuid, OtherTextIsNone) {
  for (const char* text :
       {"", "GPU-", "0", "GPU-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f",
        "GPU-0a1b2c3d4e5f60718293a4b5c6d7e8f9", "GPU-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f90",
        "GPU-0a1b2c3g-4e5f-6071-8293-a4b5c6d7e8f9"}) {
    EXPECT_FALSE(Uuid::Parse(text)) << text;
  }
}

TEST(CudaErrors, HaveACodeAndACure) {
  EXPECT_EQ(CodeOfCuda(2), ErrorCode::kOutOfMemory);
  EXPECT_EQ(CodeOfCuda(700), ErrorCode::kUnavailable);
  EXPECT_EQ(CodeOfCuda(12345), ErrorCode::kSystem);
  const Error error = FailCuda(2, "cuMemCreate").value();
  EXPECT_EQ(error.code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(error.message,
            "cuMemCreate: cudaErrorMemoryAllocation (2); free memory of the device, or lower "
            "gpu-memory");
}

TEST(CudaErrors, ADriverServesProgramsOfItsMajorVersionAndOlderOnes) {
  EXPECT_TRUE(DriverServes(12040, 12040));
  EXPECT_TRUE(DriverServes(12040, 12090));
  EXPECT_TRUE(DriverServes(13000, 12040));
  const Status old = DriverServes(12080, 13000);
  ASSERT_FALSE(old);
  EXPECT_EQ(old.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(old.error().message.find("for CUDA 12.8, and this program was built with CUDA 13.0"),
            std::string::npos)
      << old.error().message;
}

}  // namespace
}  // namespace moonpool::gpu
