#include "server/loop.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "server/connection.h"
#include "server/server.h"
#include "server/session.h"
#include "storage/thread_priority.h"

namespace moonpool::server {

namespace {

int64_t UnixMilliseconds() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

event_base* NewBase() {
  event_config* config = event_config_new();
  event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
  event_base* base = event_base_new_with_config(config);
  event_config_free(config);
  MOONPOOL_CHECK(base != nullptr);
  return base;
}

}  // namespace

Loop::Loop(Server& server, int index)
    : server_(server),
      index_(index),
      base_(NewBase()),
      wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      read_buffer_(new char[kReadBytes]) {
  MOONPOOL_CHECK(wake_fd_);
  UpdateClock();
  batch_.reserve(kBatch);
  event_assign(&wake_event_, base_, wake_fd_.get(), EV_READ | EV_PERSIST, Wake, this);
  event_add(&wake_event_, nullptr);
  event_assign(&timer_event_, base_, -1, EV_PERSIST, Tick, this);
  event_assign(&lease_event_, base_, -1, 0, LeaseTick, this);
}

Loop::~Loop() {
  MOONPOOL_CHECK(!thread_.joinable());
  connections_.clear();
  event_del(&wake_event_);
  event_del(&timer_event_);
  event_del(&lease_event_);
  event_base_free(base_);
}

void Loop::Start() {
  thread_ = std::thread([this] { Run(); });
  pthread_setname_np(thread_.native_handle(), ("loop-" + std::to_string(index_)).c_str());
}

void Loop::Run() {
  storage::AnswerQuickly();
  const int64_t hz = server_.config().number(Key::kHz);
  const timeval interval{hz == 1 ? 1 : 0, static_cast<suseconds_t>(hz == 1 ? 0 : 1000000 / hz)};
  event_add(&timer_event_, &interval);
  event_base_dispatch(base_);
}

void Loop::Stop(int64_t drain_ms) {
  Post([this, drain_ms] {
    UpdateClock();
    stopping_ = true;
    stop_at_ms_ = now_ms_ + drain_ms;
    OnTimer();
  });
}

void Loop::Join() {
  if (thread_.joinable()) thread_.join();
}

void Loop::Post(std::function<void()> task) {
  {
    MutexLock lock(mu_);
    tasks_.push_back(std::move(task));
    if (tasks_.size() > 1) return;  // a wake-up is on its way
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(wake_fd_.get(), &one, sizeof(one));
}

void Loop::UpdateClock() { now_ms_ = UnixMilliseconds(); }

void Loop::Wake(evutil_socket_t fd, short, void* loop) {
  uint64_t count;
  [[maybe_unused]] const ssize_t n = read(fd, &count, sizeof(count));
  static_cast<Loop*>(loop)->RunTasks();
}

void Loop::RunTasks() {
  std::vector<std::function<void()>> tasks;
  {
    MutexLock lock(mu_);
    tasks.swap(tasks_);
  }
  UpdateClock();
  for (const auto& task : tasks) task();
}

void Loop::Tick(evutil_socket_t, short, void* loop) { static_cast<Loop*>(loop)->OnTimer(); }

void Loop::LeaseTick(evutil_socket_t, short, void* context) {
  auto* loop = static_cast<Loop*>(context);
  loop->UpdateClock();
  loop->lease_end_ms_ = INT64_MAX;
  int64_t next_ms = INT64_MAX;
  for (Session* session : loop->sessions_) {
    next_ms = std::min(next_ms, session->ExpireLeases(loop->now_ms_));
  }
  loop->LeaseEnds(next_ms);
}

void Loop::WaitForLeases(int64_t end_ms) {
  lease_end_ms_ = end_ms;
  const int64_t ms = std::max<int64_t>(end_ms - now_ms_, kLeaseTickMs);
  const timeval timeout{ms / 1000, ms % 1000 * 1000};
  event_add(&lease_event_, &timeout);
}

void Loop::AddSession(Session* session) { sessions_.insert(session); }

void Loop::RemoveSession(Session* session) { sessions_.erase(session); }

void Loop::OnTimer() {
  UpdateClock();
  std::vector<Connection*> drained;
  for (const auto& [id, connection] : connections_) {
    connection->OnTick();
    if (stopping_ && (connection->Drained() || now_ms_ >= stop_at_ms_)) {
      drained.push_back(connection.get());
    }
  }
  for (Connection* connection : drained) Destroy(connection);
  if (stopping_ && connections_.empty()) event_base_loopbreak(base_);
}

void Loop::Adopt(UniqueFd fd, ConnectionOrigin origin) {
  if (stopping_) return;
  const uint64_t id = server_.clients().NextId();
  stats_.connections.Add();
  connections_.emplace(id, std::make_unique<Connection>(*this, id, std::move(fd), origin));
}

void Loop::Destroy(Connection* connection) { connections_.erase(connection->id()); }

Connection* Loop::Find(uint64_t id) {
  const auto found = connections_.find(id);
  return found == connections_.end() ? nullptr : found->second.get();
}

}  // namespace moonpool::server
