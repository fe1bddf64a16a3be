// Memory for measurements: page-aligned, faulted in before the clock starts.
//
// Threads: any for the bytes.  Owns its mapping.  Throws Failure when there is no memory.
#pragma once

#include <cstddef>
#include <string_view>

namespace moonpool::bench {

class MemoryBlock {
 public:
  // Private memory, as a program's own buffers are.
  static MemoryBlock Anonymous(size_t bytes);
  // A mapping of a populated memfd; with huge pages where the kernel makes them, as the pool of
  // a server on the same machine has.
  static MemoryBlock SharedFile(size_t bytes);

  MemoryBlock(MemoryBlock&& other) noexcept;
  MemoryBlock& operator=(MemoryBlock&&) = delete;
  ~MemoryBlock();

  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  MemoryBlock(char* data, size_t size) : data_(data), size_(size) {}

  char* data_;
  size_t size_;
};

// Ways to copy, for references to measure against.
enum class CopyMethod { kMemcpy, kFastString };
std::string_view NameOf(CopyMethod method);
// kFastString is `rep movsb` on x86-64 and memcpy elsewhere.
void CopyBy(CopyMethod method, void* to, const void* from, size_t bytes);

}  // namespace moonpool::bench
