#include "client/node_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace moonpool::client {

namespace {

// Mappings are aligned so that the kernel can use huge pages for them.
constexpr size_t kAlignment = 2 << 20;
// What could not be pinned is tried again after these.
constexpr std::chrono::milliseconds kFirstPinPause{500};
constexpr std::chrono::milliseconds kLongestPinPause{60000};

}  // namespace

std::shared_ptr<Mapping> Mapping::Create(int fd, size_t bytes, bool writable) {
  void* hole = mmap(nullptr, bytes + kAlignment, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (hole == MAP_FAILED) return nullptr;
  const auto start = reinterpret_cast<uintptr_t>(hole);
  const uintptr_t aligned = (start + kAlignment - 1) & ~uintptr_t{kAlignment - 1};
  void* data = mmap(reinterpret_cast<void*>(aligned), bytes,
                    writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
  if (data == MAP_FAILED) {
    munmap(hole, bytes + kAlignment);
    return nullptr;
  }
  if (aligned > start) munmap(hole, aligned - start);
  // What is left of the hole behind the mapping, rounded up to pages.
  const uintptr_t end = (aligned + bytes + 4095) & ~uintptr_t{4095};
  const uintptr_t hole_end = start + bytes + kAlignment;
  if (hole_end > end) munmap(reinterpret_cast<void*>(end), hole_end - end);
  // A child must not keep a writer's mapping alive, nor read what its parent's lease protects.
  madvise(data, bytes, MADV_DONTFORK);
  return std::shared_ptr<Mapping>(new Mapping(static_cast<char*>(data), bytes, writable));
}

std::shared_ptr<Mapping> Mapping::OfDevice(gpu::Device* device,
                                           std::unique_ptr<gpu::DeviceRegion> region) {
  std::shared_ptr<Mapping> mapping(new Mapping(region->data(), region->bytes(), true));
  mapping->device_ = device;
  mapping->region_ = std::move(region);
  return mapping;
}

Mapping::~Mapping() {
  MutexLock lock(pin_mu_);
  if (ForkCount() != forks_) {
    // It is the parent's, and CUDA does not work here.
    (void)region_.release();
    (void)pinned_.release();
    return;
  }
  pinned_ = nullptr;
  if (device_ == nullptr) munmap(data_, bytes_);
}

bool Mapping::PinFor(gpu::Device& device) {
  MutexLock lock(pin_mu_);
  if (pinned_ != nullptr || device_ != nullptr) return true;
  const auto now = std::chrono::steady_clock::now();
  if (now < pin_after_) return false;
  auto pinned = device.Pin(data_, bytes_,
                           writable_ ? gpu::Access::kReadWrite : gpu::Access::kReadOnly);
  if (!pinned) {
    pin_pause_ = std::clamp(pin_pause_ * 2, kFirstPinPause, kLongestPinPause);
    pin_after_ = now + pin_pause_;
    return false;
  }
  pinned_ = std::move(*pinned);
  return true;
}

std::shared_ptr<Mapping> NodeMemory::Find(uint32_t region) const {
  MutexLock lock(mu_);
  const auto found = regions_.find(region);
  return found == regions_.end() ? nullptr : found->second;
}

void NodeMemory::Add(uint32_t region, std::shared_ptr<Mapping> mapping) {
  MutexLock lock(mu_);
  regions_[region] = std::move(mapping);
}

void NodeMemory::Remove(uint32_t region) {
  // Unmapped after the lock is released.
  std::shared_ptr<Mapping> removed;
  std::shared_ptr<Kept> kept;
  MutexLock lock(mu_);
  const auto found = regions_.find(region);
  if (found == regions_.end()) return;
  removed = std::move(found->second);
  regions_.erase(found);
  std::erase_if(leaving_, [](const auto& leaving) { return leaving.second.expired(); });
  if (removed->device() != nullptr) leaving_[region] = removed;
  kept = kept_.lock();
  if (kept != nullptr) kept->push_back(removed);
}

std::shared_ptr<const void> NodeMemory::KeepWhatGoes() {
  MutexLock lock(mu_);
  std::shared_ptr<Kept> kept = kept_.lock();
  if (kept == nullptr) kept_ = kept = std::make_shared<Kept>();
  return kept;
}

bool NodeMemory::InUse(uint32_t region) const {
  MutexLock lock(mu_);
  const auto found = leaving_.find(region);
  return found != leaving_.end() && !found->second.expired();
}

void NodeMemory::CannotImport(uint32_t region, std::string why) {
  MutexLock lock(mu_);
  not_importable_.insert(region);
  import_error_ = std::move(why);
}

bool NodeMemory::importable(uint32_t region) const {
  MutexLock lock(mu_);
  return !not_importable_.contains(region);
}

std::string NodeMemory::import_error() const {
  MutexLock lock(mu_);
  return import_error_;
}

}  // namespace moonpool::client
