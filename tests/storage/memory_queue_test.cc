#include "storage/memory_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

namespace moonpool::storage {
namespace {

class MemoryQueueTest : public testing::Test {
 protected:
  void Wait(char name, uint64_t bytes, int64_t until_ms, bool again = false) {
    queue_.Wait(bytes, until_ms, again, [this, name] { called_ += name; });
  }
  MemoryQueue queue_;
  std::string called_;
};

TEST_F(MemoryQueueTest, FirstComeFirstServed) {
  for (const char name : {'a', 'b', 'c'}) Wait(name, 100, 1000);
  EXPECT_EQ(queue_.size(), 3u);
  queue_.Freed(60);  // less than it wants
  EXPECT_EQ(called_, "");
  queue_.Freed(40);
  EXPECT_EQ(called_, "a");
  queue_.Freed(100);
  EXPECT_EQ(called_, "ab");
  Wait('d', 50, 1000);
  queue_.Freed(1000);
  EXPECT_EQ(called_, "abcd");
  EXPECT_TRUE(queue_.empty());
  queue_.Freed(1000);
  queue_.Tick(5000);
  EXPECT_EQ(called_, "abcd");
}

TEST_F(MemoryQueueTest, AsManyAsThereIsMemoryFor) {
  for (const char name : {'a', 'b', 'c', 'd'}) Wait(name, 100, 1000);
  queue_.Freed(200);
  EXPECT_EQ(called_, "ab");
  queue_.Freed(150);
  EXPECT_EQ(called_, "abc");
  queue_.Freed(50);
  EXPECT_EQ(called_, "abcd");
}

TEST_F(MemoryQueueTest, WhoWantsMuchLooksWhenAGoodPartCame) {
  Wait('a', 1 << 20, 1000);
  for (int i = 0; i < 63; ++i) queue_.Freed(4096);
  EXPECT_EQ(called_, "");
  queue_.Freed(4096);
  EXPECT_EQ(called_, "a");
  Wait('b', 1 << 20, 1000);  // nobody waited: what came before is not for it
  queue_.Freed(4096);
  EXPECT_EQ(called_, "a");
}

TEST_F(MemoryQueueTest, WhoTriedInVainKeepsTheHead) {
  Wait('a', 100, 1000);
  Wait('b', 100, 1000);
  queue_.Freed(100);
  Wait('A', 100, 1000, true);
  queue_.Freed(100);
  EXPECT_EQ(called_, "aA");
  queue_.Freed(100);
  EXPECT_EQ(called_, "aAb");
}

TEST_F(MemoryQueueTest, TimePasses) {
  Wait('a', 100, 1000);
  Wait('b', 100, 10);
  Wait('c', 100, 500);
  queue_.Tick(10);  // the first in any case: memory may have come free unseen
  EXPECT_EQ(called_, "ab");
  Wait('d', 100, 400);
  queue_.Tick(399);
  EXPECT_EQ(called_, "abc");
  queue_.Tick(399);
  EXPECT_EQ(called_, "abcd");
}

TEST_F(MemoryQueueTest, CallsMayWaitAgain) {
  std::vector<int> calls;
  queue_.Wait(100, 1000, false, [&] {
    calls.push_back(1);
    queue_.Wait(100, 1000, true, [&] { calls.push_back(2); });
  });
  queue_.Freed(1000);
  EXPECT_EQ(calls, std::vector<int>{1});
  queue_.Freed(1000);
  EXPECT_EQ(calls, (std::vector<int>{1, 2}));
}

TEST(MemoryQueueThreadsTest, EverybodyIsCalledOnce) {
  MemoryQueue queue;
  std::atomic<int> called{0};
  std::atomic<bool> done{false};
  constexpr int kEach = 2000;
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kEach; ++i) queue.Wait(10, i, i % 7 == 0, [&] { called.fetch_add(1); });
    });
  }
  std::thread frees([&] {
    while (!done) queue.Freed(50);
  });
  std::thread ticks([&] {
    while (!done) queue.Tick(kEach / 2);
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  frees.join();
  ticks.join();
  while (!queue.empty()) queue.Freed(1000);
  EXPECT_EQ(called, 2 * kEach);
}

}  // namespace
}  // namespace moonpool::storage
