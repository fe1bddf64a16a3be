#include "protocol/seqlock.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "protocol/spin_mutex.h"

namespace moonpool::protocol {
namespace {

class RacyCopyTest : public testing::TestWithParam<void (*)(void*, const void*, size_t)> {};
INSTANTIATE_TEST_SUITE_P(Ways, RacyCopyTest, testing::Values(RacyCopy, RacyCopyStreaming));

TEST_P(RacyCopyTest, CopiesExactlyWhatItWasAsked) {
  constexpr size_t kBefore[] = {1, 7, 16, 63, 64, 65};
  for (size_t size = 0; size < 300; ++size) {
    for (size_t shift = 0; shift < 9; ++shift) {
      const std::unique_ptr<char[]> from(new char[size + shift]);
      for (size_t i = 0; i < size + shift; ++i) from[i] = static_cast<char>(i * 7 + 1);
      for (const size_t before : kBefore) {
        const std::unique_ptr<char[]> to(new char[before + size + 1]);
        std::memset(to.get(), 'x', before + size + 1);
        GetParam()(to.get() + before, from.get() + shift, size);
        ASSERT_EQ(std::memcmp(to.get() + before, from.get() + shift, size), 0)
            << size << " + " << shift << " behind " << before;
        ASSERT_EQ(to[before - 1], 'x');
        ASSERT_EQ(to[before + size], 'x');
      }
    }
  }
}

TEST(GenerationTest, ABumpIsSeen) {
  GenerationCounter counter{41};
  const uint64_t before = LoadGeneration(counter);
  EXPECT_TRUE(GenerationUnchanged(counter, before));
  BumpGeneration(counter);
  EXPECT_EQ(LoadGeneration(counter), before + 1);
  EXPECT_FALSE(GenerationUnchanged(counter, before));
}

// --- the protocol as a whole ---------------------------------------------------------------------

// What a writer and a reader do.  The rule is below; the others are the mutations that the checker
// must catch, else it would prove nothing.
struct Rule {
  static void Recycle(GenerationCounter& counter, auto&& overwrite) {
    BumpGeneration(counter);
    overwrite();
  }
  static bool Accept(const GenerationCounter& counter, uint64_t generation) {
    return GenerationUnchanged(counter, generation);
  }
};
struct OverwriteBeforeBump : Rule {
  static void Recycle(GenerationCounter& counter, auto&& overwrite) {
    overwrite();
    BumpGeneration(counter);
  }
};
struct NoFinalCheck : Rule {
  static bool Accept(const GenerationCounter&, uint64_t) { return true; }
};

// Recycles `kBuffers` buffers: each life of one is filled with words that name it, then announced.
template <typename Order>
class Recycler {
 public:
  static constexpr size_t kBuffers = 2;
  static constexpr size_t kWords = 4096;

  Recycler() {
    for (Buffer& buffer : buffers_) Fill(buffer, 0);
  }

  // Returns how many copies were accepted; `torn` counts those that were not one whole life.
  uint64_t Run(uint64_t lives, int readers, uint64_t stop_at_torn, std::atomic<uint64_t>* torn) {
    std::atomic<uint64_t> accepted{0};
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int r = 0; r < readers; ++r) {
      threads.emplace_back([&, r] { Read(static_cast<size_t>(r), stop, accepted, torn); });
    }
    // Go on until the readers have had their share too, however the threads are scheduled.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(180);
    for (uint64_t life = 1; (life <= lives || accepted < 1000) && torn->load() < stop_at_torn;
         ++life) {
      Buffer& buffer = buffers_[life % kBuffers];
      Order::Recycle(buffer.counter, [&] { Fill(buffer, life); });
      // The descriptor: it reaches the reader through another channel, like a reply.
      buffer.announced.store(buffer.counter.load(std::memory_order_relaxed),
                             std::memory_order_release);
      if (life % 64 == 0) {
        std::this_thread::yield();
        if (std::chrono::steady_clock::now() > deadline) break;
      }
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    return accepted;
  }

 private:
  struct Buffer {
    GenerationCounter counter{0};
    std::atomic<uint64_t> announced{0};
    std::unique_ptr<uint64_t[]> words{new uint64_t[kWords]};
  };

  static void Fill(Buffer& buffer, uint64_t life) {
    for (size_t i = 0; i < kWords; ++i) {
      // Volatile: the words must really be written one after the other.
      const_cast<volatile uint64_t*>(buffer.words.get())[i] = life;
    }
  }

  void Read(size_t first, const std::atomic<bool>& stop, std::atomic<uint64_t>& accepted,
            std::atomic<uint64_t>* torn) {
    std::vector<uint64_t> copy(kWords);
    uint64_t last_life[kBuffers] = {};
    for (size_t turn = first; !stop; ++turn) {
      Buffer& buffer = buffers_[turn % kBuffers];
      const uint64_t generation = buffer.announced.load(std::memory_order_acquire);
      if (LoadGeneration(buffer.counter) != generation) continue;
      const auto way = turn / kBuffers % 2 == 0 ? RacyCopy : RacyCopyStreaming;
      way(copy.data(), buffer.words.get(), kWords * sizeof(uint64_t));
      if (!Order::Accept(buffer.counter, generation)) continue;
      accepted.fetch_add(1, std::memory_order_relaxed);
      // One life, and never an older one than was seen before.
      bool whole = copy[0] >= last_life[turn % kBuffers];
      for (const uint64_t word : copy) whole &= word == copy[0];
      last_life[turn % kBuffers] = copy[0];
      if (!whole) torn->fetch_add(1);
    }
  }

  Buffer buffers_[kBuffers];
};

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kLives = 30'000;
#else
constexpr uint64_t kLives = 100'000;
#endif

TEST(SeqlockTest, AcceptedCopiesAreNeverTorn) {
  Recycler<Rule> recycler;
  std::atomic<uint64_t> torn{0};
  const uint64_t accepted = recycler.Run(kLives, 2, 1, &torn);
  std::printf("%llu copies accepted\n", static_cast<unsigned long long>(accepted));
  EXPECT_EQ(torn, 0u);
  EXPECT_GE(accepted, 1000u);
}

TEST(SeqlockTest, OverwritingBeforeTheBumpIsCaught) {
  Recycler<OverwriteBeforeBump> recycler;
  std::atomic<uint64_t> torn{0};
  recycler.Run(UINT64_MAX, 2, 1, &torn);
  EXPECT_GT(torn, 0u) << "the checker has no teeth";
}

TEST(SeqlockTest, SkippingTheFinalCheckIsCaught) {
  Recycler<NoFinalCheck> recycler;
  std::atomic<uint64_t> torn{0};
  recycler.Run(UINT64_MAX, 2, 1, &torn);
  EXPECT_GT(torn, 0u) << "the checker has no teeth";
}

// --- the spin mutex ------------------------------------------------------------------------------

TEST(SpinMutexTest, ExcludesAndWakesEverybody) {
  // More threads than processors and a critical section that sleeps at times: all of them have to
  // go through the kernel and come back.
  SpinMutex mutex;
  uint64_t inside = 0, sum = 0;
  constexpr int kThreads = 8, kTurns = 3000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kTurns; ++i) {
        SpinLock lock(mutex);
        EXPECT_EQ(++inside, 1u);
        sum += 1;
        if (i % 256 == t) std::this_thread::sleep_for(std::chrono::microseconds(50));
        --inside;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(sum, uint64_t{kThreads} * kTurns);
}

TEST(CondVarTest, TimesOutAndWakes) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  {
    MutexLock lock(mutex);
    EXPECT_FALSE(changed.WaitFor(mutex, std::chrono::milliseconds(1)));
  }
  std::thread waker([&] {
    MutexLock lock(mutex);
    ready = true;
    changed.NotifyAll();
  });
  {
    MutexLock lock(mutex);
    while (!ready) changed.Wait(mutex);
  }
  waker.join();
  if (!mutex.TryLock()) FAIL() << "the lock is still held";
  mutex.Unlock();
}

}  // namespace
}  // namespace moonpool::protocol
