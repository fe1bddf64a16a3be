// A growing run of bytes that are written before they are read: nothing is cleared in advance.
// Threads: one.  Owns its memory; data() is stable until the next Reserve or Append.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string_view>

namespace moonpool::protocol {

class ByteBuffer {
 public:
  const char* data() const { return data_.get(); }
  size_t size() const { return size_; }
  size_t capacity() const { return capacity_; }
  bool empty() const { return size_ == 0; }
  std::string_view view() const { return {data_.get(), size_}; }

  // Room for `bytes` more bytes at the returned place; Advance() says how many were used.
  char* Reserve(size_t bytes) {
    if (capacity_ - size_ < bytes) Reallocate(std::max(capacity_ * 2, size_ + bytes));
    return data_.get() + size_;
  }
  void Advance(size_t bytes) { size_ += bytes; }
  void Append(std::string_view bytes) {
    char* to = Reserve(bytes.size());
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    size_ += bytes.size();
  }

  void Clear() { size_ = 0; }
  void Truncate(size_t size) { size_ = size; }
  // Cuts `count` bytes out at `position`; what is behind moves up.
  void Erase(size_t position, size_t count) {
    if (count == 0) return;
    std::memmove(data_.get() + position, data_.get() + position + count,
                 size_ - position - count);
    size_ -= count;
  }
  // Gives memory back when the buffer once grew past `bytes` and does not need it now.
  void ShrinkTo(size_t bytes) {
    if (capacity_ > bytes && size_ <= bytes) Reallocate(bytes);
  }

 private:
  void Reallocate(size_t capacity) {
    std::unique_ptr<char[]> data;
    if (capacity > 0) {
      data.reset(new char[capacity]);
      if (size_ > 0) std::memcpy(data.get(), data_.get(), size_);
    }
    data_ = std::move(data);
    capacity_ = capacity;
  }

  std::unique_ptr<char[]> data_;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace moonpool::protocol
