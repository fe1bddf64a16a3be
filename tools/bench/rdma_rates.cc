#include <algorithm>
#include <random>

#include "tools/bench/clock.h"
#include "tools/bench/failure.h"
#include "tools/bench/pattern.h"
#include "tools/bench/rdma_rows.h"

namespace moonpool::bench {

std::vector<std::vector<uint32_t>> Batches(size_t values, size_t batch, size_t count) {
  std::mt19937 engine(42);
  std::vector<uint32_t> order(values);
  for (uint32_t i = 0; i < values; ++i) order[i] = i;
  std::vector<std::vector<uint32_t>> batches;
  for (size_t b = 0; b < count; ++b) {
    std::shuffle(order.begin(), order.end(), engine);
    batches.emplace_back(order.begin(), order.begin() + static_cast<ptrdiff_t>(batch));
  }
  return batches;
}

double GigabytesPerSecond(const std::function<void(size_t)>& read, uint64_t batch_bytes,
                          double seconds) {
  size_t count = 4;
  for (;;) {
    const Stopwatch watch;
    read(count);
    const double took = watch.seconds();
    if (took >= seconds / 2) {
      return static_cast<double>(count) * static_cast<double>(batch_bytes) / took / 1e9;
    }
    count = std::max(count * 2, static_cast<size_t>(static_cast<double>(count) * seconds /
                                                    std::max(took, 1e-6)));
  }
}

// --- raw READs ---------------------------------------------------------------------------------

RawRate::RawRate(RdmaPool& pool, uint64_t session, uint64_t batch_bytes,
                 const std::vector<std::vector<uint32_t>>& batches, double seconds)
    : raw_(pool, session, batch_bytes), batch_bytes_(batch_bytes), batches_(batches) {
  looking_ = By(RawReader::Waits::kLooks, seconds / 2);
  sleeping_ = By(RawReader::Waits::kSleeps, seconds / 2);
}

double RawRate::Measure(double seconds) {
  return By(looking_ > sleeping_ ? RawReader::Waits::kLooks : RawReader::Waits::kSleeps, seconds);
}

double RawRate::By(RawReader::Waits waits, double seconds) {
  return GigabytesPerSecond(
      [&](size_t count) {
        for (size_t i = 0; i < count; ++i) raw_.Read(batches_[i % batches_.size()], waits);
        raw_.Finish(waits);
      },
      batch_bytes_, seconds);
}

// --- libmoonpool -------------------------------------------------------------------------------

namespace {

std::string NameOf(uint32_t number) {
  return "rdma:" + std::to_string(number);
}

void Need(const client::Status& status) {
  if (!status.ok()) throw Failure(status.message);
}

}  // namespace

ServerReader::ServerReader(const TestServer& server, const std::string& options,
                           uint64_t buffer_bytes)
    : buffer_(MemoryBlock::Anonymous(buffer_bytes)) {
  Need(client::Client::Connect(server.url(options), {}, &client_));
  transport_ = client_->transport();
  Need(client_->RegisterBuffer(buffer_.data(), buffer_.size()));
}

void ServerReader::Fill(uint64_t bytes, size_t count) {
  bytes_ = bytes;
  const size_t at_once = buffer_.size() / bytes;
  for (size_t first = 0; first < count; first += at_once) {
    std::vector<uint32_t> numbers;
    for (size_t i = first; i < std::min(first + at_once, count); ++i) {
      FillPattern(buffer_.data() + numbers.size() * bytes, bytes, i, 1);
      numbers.push_back(static_cast<uint32_t>(i));
    }
    Write(numbers);
  }
}

void ServerReader::Move(const std::vector<uint32_t>& numbers, bool write) {
  std::vector<std::string> names;
  std::vector<std::string_view> keys;
  std::vector<client::Buffer> into;
  std::vector<client::ConstBuffer> from;
  names.reserve(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) {
    names.push_back(NameOf(numbers[i]));
    keys.push_back(names.back());
    into.push_back({buffer_.data() + i * bytes_, bytes_});
    from.push_back({into.back().data, bytes_});
  }
  const auto results =
      write ? client_->BatchPutFrom(keys, from) : client_->BatchGetInto(keys, into);
  for (const client::KeyResult& result : results) {
    if (!result.ok()) throw Failure("a value was not moved: " + result.message);
    if (strict_ && result.transport != transport_) {
      throw Failure("a value of " + std::to_string(result.bytes) +
                    " bytes went over another transport, " + std::to_string(stats().fallbacks) +
                    " fell back " + stats().rdma_error);
    }
  }
}

bool ServerReader::Check(const std::vector<uint32_t>& numbers) const {
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (!CheckPattern(buffer_.data() + i * bytes_, bytes_, numbers[i])) return false;
  }
  return true;
}

}  // namespace moonpool::bench
