#include "tools/bench/gpu_setup.h"

#include <cuda_runtime_api.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "protocol/fd_message.h"
#include "tools/bench/failure.h"
#include "tools/bench/pattern.h"

namespace moonpool::bench {

namespace {

// Between the bench and the process it forks.
struct OwnerMessage {
  gpu::Uuid device;
  uint64_t bytes = 0;
  gpu::RegionHandle handle;
  uint32_t ok = 0;
  char text[300] = {};
};

bool Send(int socket, const OwnerMessage& message, int fd) {
  return protocol::SendWithFd(socket, &message, sizeof(message), fd);
}

bool Receive(int socket, OwnerMessage* message, UniqueFd* fd) {
  protocol::FdMessage received = protocol::ReceiveWithFd(socket, message, sizeof(*message));
  *fd = std::move(received.fd);
  return received.bytes == static_cast<ssize_t>(sizeof(*message));
}

// The forked process: gives regions away until the socket ends.
void OwnRegions(int socket) {
  std::unique_ptr<gpu::CudaDevices> devices;
  std::vector<std::unique_ptr<gpu::DeviceRegion>> regions;
  OwnerMessage message;
  UniqueFd none;
  while (Receive(socket, &message, &none)) {
    gpu::ExportedRegion exported;
    const auto give = [&]() -> Status {
      if (devices == nullptr) {
        auto opened = gpu::CudaDevices::Open();
        if (!opened) return tl::unexpected(opened.error());
        devices = std::move(*opened);
      }
      gpu::Device* const device = devices->Find(message.device);
      if (device == nullptr)
        return Fail(ErrorCode::kNotFound, "no such device in the other process");
      auto region = device->Allocate(message.bytes, device->BestHandle());
      if (!region) return tl::unexpected(region.error());
      auto made = (*region)->Export();
      if (!made) return tl::unexpected(made.error());
      regions.push_back(std::move(*region));
      exported = std::move(*made);
      return {};
    };
    const Status status = give();
    message.ok = status ? 1 : 0;
    message.handle = exported.handle;
    if (!status) {
      std::snprintf(message.text, sizeof(message.text), "%s", status.error().message.c_str());
    }
    if (!Send(socket, message, exported.fd.get())) return;
  }
}

void ExpectCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Failure(std::string(what) + ": " + cudaGetErrorName(error) + ", " +
                cudaGetErrorString(error));
}

cudaStream_t Native(void* stream) {
  return static_cast<cudaStream_t>(stream);
}
cudaEvent_t NativeEvent(void* event) {
  return static_cast<cudaEvent_t>(event);
}

}  // namespace

void Expect(const Status& status, std::string_view what) {
  if (!status) throw Failure(std::string(what) + ": " + status.error().message);
}

GpuOwner::GpuOwner() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw Failure(std::string("socketpair: ") + std::strerror(errno));
  }
  socket_.Reset(ends[0]);
  const UniqueFd theirs(ends[1]);
  const timeval patience{60, 0};
  setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  pid_ = fork();
  if (pid_ < 0) throw Failure(std::string("fork: ") + std::strerror(errno));
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    socket_.Reset();
    OwnRegions(theirs.get());
    _exit(0);
  }
}

GpuOwner::~GpuOwner() {
  socket_.Reset();
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

GpuOwner::Given GpuOwner::Allocate(const gpu::Uuid& device, uint64_t bytes) {
  OwnerMessage message;
  message.device = device;
  message.bytes = bytes;
  Given given;
  if (!Send(socket_.get(), message, -1) || !Receive(socket_.get(), &message, &given.fd)) {
    throw Failure("the process that owns the region does not answer");
  }
  if (message.ok == 0)
    throw Failure(std::string("the process that owns the region: ") + message.text);
  given.handle = message.handle;
  return given;
}

RawCuda::RawCuda(int ordinal) {
  ExpectCuda(cudaSetDevice(ordinal), "cudaSetDevice");
  cudaStream_t stream = nullptr;
  ExpectCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
             "cudaStreamCreateWithFlags");
  stream_ = stream;
  cudaEvent_t event = nullptr;
  ExpectCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  event_ = event;
}

RawCuda::~RawCuda() {
  (void)cudaStreamSynchronize(Native(stream_));
  for (void* memory : device_) (void)cudaFree(memory);
  for (void* memory : pinned_) (void)cudaFreeHost(memory);
  (void)cudaEventDestroy(NativeEvent(event_));
  (void)cudaStreamDestroy(Native(stream_));
}

char* RawCuda::DeviceMemory(uint64_t bytes) {
  void* memory = nullptr;
  ExpectCuda(cudaMalloc(&memory, bytes), "cudaMalloc");
  device_.push_back(memory);
  return static_cast<char*>(memory);
}

char* RawCuda::PinnedMemory(uint64_t bytes) {
  void* memory = nullptr;
  ExpectCuda(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "cudaHostAlloc");
  pinned_.push_back(memory);
  return static_cast<char*>(memory);
}

void RawCuda::Poison(char* to, uint64_t bytes) {
  ExpectCuda(cudaMemsetAsync(to, 0xa5, bytes, Native(stream_)), "cudaMemsetAsync");
  Wait();
}

void RawCuda::Copy(void* to, const void* from, uint64_t bytes) {
  ExpectCuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, Native(stream_)),
             "cudaMemcpyAsync");
}

bool RawCuda::CopyBatch([[maybe_unused]] const std::vector<gpu::Piece>& pieces) {
#if CUDART_VERSION >= 12080
  std::vector<void*> to;
  std::vector<const void*> from;
  std::vector<size_t> sizes;
  for (const gpu::Piece& piece : pieces) {
    to.push_back(piece.to);
    from.push_back(piece.from);
    sizes.push_back(piece.bytes);
  }
  cudaMemcpyAttributes attributes{};
  attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  size_t first = 0;
#if CUDART_VERSION >= 13000
  const cudaError_t error = cudaMemcpyBatchAsync(to.data(), from.data(), sizes.data(), to.size(),
                                                 &attributes, &first, 1, Native(stream_));
#else
  size_t failed = 0;
  const cudaError_t error =
      cudaMemcpyBatchAsync(to.data(), const_cast<void**>(from.data()), sizes.data(), to.size(),
                           &attributes, &first, 1, &failed, Native(stream_));
#endif
  (void)cudaGetLastError();
  return error == cudaSuccess;
#else
  return false;
#endif
}

void RawCuda::Wait() {
  ExpectCuda(cudaEventRecord(NativeEvent(event_), Native(stream_)), "cudaEventRecord");
  ExpectCuda(cudaEventSynchronize(NativeEvent(event_)), "cudaEventSynchronize");
}

size_t OrdinalOf(const gpu::CudaDevices& devices, const std::string& uuid) {
  if (uuid.empty()) return 0;
  const auto parsed = gpu::Uuid::Parse(uuid);
  if (!parsed) throw Failure("'" + uuid + "' is no UUID of a device; see nvidia-smi -L");
  const auto& all = devices.all();
  for (size_t ordinal = 0; ordinal < all.size(); ++ordinal) {
    if (all[ordinal]->info().uuid == *parsed) return ordinal;
  }
  throw Failure("there is no device " + uuid);
}

GpuSetup::GpuSetup(const std::string& uuid, uint64_t of_bytes)
    : bytes(of_bytes),
      pool(MemoryBlock::SharedFile(of_bytes)),
      counters(MemoryBlock::SharedFile(1)) {
  devices = Expect(gpu::CudaDevices::Open(), "gpu measures nothing");
  const size_t ordinal = OrdinalOf(*devices, uuid);
  device = devices->all()[ordinal];
  raw = std::make_unique<RawCuda>(static_cast<int>(ordinal));
  stream = Expect(device->NewStream(), "a stream");
  const GpuOwner::Given given = owner.Allocate(device->info().uuid, bytes);
  region = Expect(device->Import(given.handle, given.fd.get()), "importing a region");
  target = raw->DeviceMemory(bytes);
  raw_source = raw->DeviceMemory(bytes);
  raw_gathered = raw->DeviceMemory(bytes);
  raw_pinned = raw->PinnedMemory(bytes);
  FillPattern(pool.data(), bytes, 1, 1);
  std::memcpy(raw_pinned, pool.data(), bytes);
  pinned_pool =
      Expect(device->Pin(pool.data(), pool.size(), gpu::Access::kReadWrite), "pinning the pool");
  pinned_counters = Expect(device->Pin(counters.data(), counters.size(), gpu::Access::kReadWrite),
                           "pinning the generations");
  raw->Copy(raw_source, raw_pinned, bytes);
  raw->Copy(region->data(), raw_pinned, bytes);
  raw->Copy(target, raw_pinned, bytes);
  raw->Wait();
}

std::string GpuSetup::Fetch(const char* from, uint64_t of_bytes) {
  std::string fetched(of_bytes, '\0');
  raw->Copy(fetched.data(), from, of_bytes);
  raw->Wait();
  return fetched;
}

}  // namespace moonpool::bench
