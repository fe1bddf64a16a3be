#include "rdma/service.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <utility>

namespace moonpool::rdma {

namespace {

// How often lanes are looked at while bytes move or regions go.
constexpr int kBusyTickMs = 10;
constexpr int kIdleTickMs = 1000;
// The port that one address has free may be taken at another.
constexpr int kPortTries = 16;

}  // namespace

Result<std::unique_ptr<Service>> Service::Start(NicSet& nics, ServiceOptions options) {
  std::unique_ptr<Service> service(new Service(nics, std::move(options)));
  if (Status status = service->Listen(); !status) {
    return tl::unexpected<Error>(std::move(status.error()));
  }
  service->thread_ = std::thread([raw = service.get()] { raw->Run(); });
  return service;
}

Service::~Service() {
  Stop();
}

Status Service::Listen() {
  wake_fd_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd_) return FailErrno("eventfd");
  auto events = nics_.verbs().NewConnectionEvents();
  if (!events) return tl::unexpected<Error>(std::move(events.error()));
  events_ = std::move(*events);
  for (const auto& device : nics_.devices()) {
    auto channel = device->NewCompletionChannel();
    if (!channel) return tl::unexpected<Error>(std::move(channel.error()));
    channels_.push_back(std::move(*channel));
  }
  const std::vector<std::string> addresses = ListenAddresses();
  for (int tries = 1;; ++tries) {
    Status status = ListenOn(addresses);
    if (status || options_.port != 0 || tries == kPortTries) return status;
  }
}

// iWARP listens with a socket on the NIC's own interface where it is asked for all addresses: nobody
// of this host is heard there, as that comes over the loopback interface.  And each of its addresses
// has ports of its own.
std::vector<std::string> Service::ListenAddresses() const {
  const bool iwarp = std::any_of(nics_.nics().begin(), nics_.nics().end(), [](const Nic& nic) {
    return nic.protocol == Protocol::kIwarp;
  });
  if (!options_.address.empty() || !iwarp) return {options_.address};
  std::vector<std::string> addresses;
  for (const Nic& nic : nics_.nics()) {
    addresses.insert(addresses.end(), nic.addresses.begin(), nic.addresses.end());
  }
  return addresses;
}

Status Service::ListenOn(std::span<const std::string> addresses) {
  listeners_.clear();
  port_ = options_.port;
  for (const std::string& address : addresses) {
    auto listener = events_->NewConnection();
    if (!listener) return tl::unexpected<Error>(std::move(listener.error()));
    if (Status status = (*listener)->Listen(address, port_, options_.backlog); !status) {
      return status;
    }
    port_ = (*listener)->port();
    listeners_.push_back(std::move(*listener));
  }
  return {};
}

void Service::Stop() {
  if (!thread_.joinable()) return;
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  Post([] {});
  thread_.join();
}

bool Service::Post(std::function<void()> task) {
  {
    MutexLock lock(mu_);
    if (stopped_) return false;
    tasks_.push_back(std::move(task));
  }
  const uint64_t one = 1;
  (void)!write(wake_fd_.get(), &one, sizeof(one));
  return true;
}

void Service::RunTasks() {
  std::vector<std::function<void()>> tasks;
  {
    MutexLock lock(mu_);
    tasks.swap(tasks_);
  }
  for (const auto& task : tasks) task();
}

int64_t Service::NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

bool Service::busy() const {
  return !withdrawals_.empty() ||
         std::any_of(sessions_.begin(), sessions_.end(),
                     [](const auto& entry) { return !entry.second->moving.empty(); });
}

void Service::Run() {
  std::vector<pollfd> fds;
  fds.push_back({wake_fd_.get(), POLLIN, 0});
  fds.push_back({events_->fd(), POLLIN, 0});
  for (const auto& channel : channels_) fds.push_back({channel->fd(), POLLIN, 0});
  for (const auto& device : nics_.devices()) fds.push_back({device->event_fd(), POLLIN, 0});
  for (;;) {
    poll(fds.data(), fds.size(), busy() ? kBusyTickMs : kIdleTickMs);
    uint64_t ignored;
    (void)!read(wake_fd_.get(), &ignored, sizeof(ignored));
    RunTasks();
    {
      MutexLock lock(mu_);
      if (stop_) break;
    }
    HandleConnectionEvents();
    nics_.Watch();
    for (const auto& channel : channels_) {
      while (const CompletionQueue* const queue = channel->Next()) {
        const auto found = by_queue_.find(queue);
        if (found == by_queue_.end()) continue;
        awake_.insert(found->second->id);
        for (ServerLane& lane : found->second->lanes) {
          if (&lane.lane->completions() == queue) lane.lane->Armed(false);
        }
      }
    }
    const int64_t now_ms = NowMs();
    for (const auto& [id, session] : sessions_) {
      if (!session->moving.empty()) awake_.insert(id);
    }
    for (const uint64_t id : std::exchange(awake_, {})) Drain(id, now_ms);
    FinishWithdrawals(now_ms);
  }
  for (auto& [id, session] : sessions_) Fence(session.get());
  sessions_.clear();
  listeners_.clear();
  {
    MutexLock lock(mu_);
    stopped_ = true;
  }
  // Those who wait find no session.
  RunTasks();
  FinishWithdrawals(INT64_MAX);
}

void Service::Drain(uint64_t id, int64_t now_ms) {
  Session* const session = Find(id);
  if (session == nullptr) return;
  if (!session->moving.empty()) session->engine.CheckStuck(now_ms);
  while (Serve(session)) {
  }
  for (ServerLane& lane : session->lanes) lane.lane->Arm();
  // What came before that makes no event.
  while (Serve(session)) {
  }
}

// True when anything happened.
bool Service::Serve(Session* session) {
  TransferEngine::Messages messages;
  bool any = session->engine.Progress(&messages);
  for (const auto& [lane, message] : messages) Handle(session, lane, message);
  // A buffer that was not announced.
  for (const TransferEngine::Missing& missing : session->engine.TakeMissing()) {
    session->engine.NotThere(missing.lane, missing.remote);
    any = true;
  }
  for (size_t i = session->lanes.size(); i-- > 0;) {
    if (session->lanes[i].lane->state() == Lane::State::kFenced) LaneEnded(session, i);
  }
  FinishMoves(session);
  return any;
}

// --- sessions ------------------------------------------------------------------------------

void Service::BeginSession(uint64_t session, std::shared_ptr<TenantMemory> memory) {
  Post([this, session, memory = std::move(memory)]() mutable {
    if (Find(session) != nullptr) return;
    sessions_[session] = std::make_unique<Session>(session, std::move(memory), options_.engine);
  });
}

Token Service::IssueToken(uint64_t session) {
  return tokens_.Issue(session, NowMs(), options_.token_lifetime_ms);
}

void Service::EndSession(uint64_t session, std::function<void()> done) {
  tokens_.Revoke(session);
  const bool posted = Post([this, session, done] {
    if (Session* const found = Find(session); found != nullptr) {
      Fence(found);
      sessions_.erase(session);
    }
    if (done) done();
  });
  if (!posted && done) done();
}

// --- what clients ask ----------------------------------------------------------------------

void Service::Reply(Lane* lane, uint32_t type, const Message& to) {
  Message answer = to;
  answer.type = type;
  // Who asks faster than it takes the answers is no client of ours.
  if (!lane->Send(answer)) lane->Fail("the client does not take answers");
}

void Service::AnswerWant(Session* session, Lane* lane, const Message& message) {
  const auto reach = session->memory->Find(message.id, message.offset, lane->device());
  if (!reach) return Reply(lane, Message::kUnknown, message);
  Message answer;
  answer.id = message.id;
  answer.offset = reach->offset;
  answer.length = reach->length;
  answer.address = reach->address;
  answer.key = reach->key;
  answer.total = reach->total;
  if (std::find(session->known.begin(), session->known.end(), message.id) == session->known.end()) {
    session->known.push_back(message.id);
  }
  counters_.regions_told.fetch_add(1, std::memory_order_relaxed);
  Reply(lane, Message::kRegion, answer);
}

void Service::Handle(Session* session, Lane* lane, const Message& message) {
  switch (message.type) {
    case Message::kWant:
      return AnswerWant(session, lane, message);
    case Message::kDropped:
      return Dropped(lane, message.id);
    case Message::kBuffer:
      lane->remote()->Add(message.id, {message.offset, message.length, message.address, message.key,
                                       message.access});
      return Reply(lane, Message::kBufferKnown, message);
    case Message::kBufferGone:
      lane->remote()->Drop(message.id);
      // What is under way to it ends as it would have: the answer is behind it on this queue pair.
      if (!lane->Send({Message::kBufferDropped, message.id}, true)) {
        lane->Fail("the client does not take answers");
      }
      return;
    default:
      lane->Fail("the client sent a message that only servers send");
  }
}

// --- regions that go -----------------------------------------------------------------------

void Service::Withdraw(const std::shared_ptr<TenantMemory>& memory, uint32_t region) {
  memory->Hide(region);
  auto finished = std::make_shared<std::promise<void>>();
  std::future<void> future = finished->get_future();
  const bool posted = Post([this, memory, region, finished] {
    withdrawals_.push_back({memory, region, {}, NowMs() + options_.withdraw_ms, [finished] {
                              finished->set_value();
                            }});
    AskToDrop(&withdrawals_.back());
  });
  if (posted) future.wait();
  memory->Remove(region);
}

void Service::AskToDrop(Withdrawal* withdrawal) {
  for (const auto& [id, session] : sessions_) {
    if (session->memory != withdrawal->memory ||
        std::erase(session->known, withdrawal->region) == 0) {
      continue;
    }
    for (ServerLane& lane : session->lanes) {
      if (lane.lane->open() && lane.lane->Send({Message::kGone, withdrawal->region})) {
        withdrawal->unanswered.push_back(lane.lane.get());
      }
    }
  }
}

void Service::Dropped(const Lane* lane, uint32_t region) {
  for (Withdrawal& withdrawal : withdrawals_) {
    if (withdrawal.region == region) std::erase(withdrawal.unanswered, lane);
  }
}

void Service::FinishWithdrawals(int64_t now_ms) {
  for (size_t i = withdrawals_.size(); i-- > 0;) {
    if (!withdrawals_[i].unanswered.empty() && now_ms < withdrawals_[i].deadline_ms) continue;
    withdrawals_[i].done();
    withdrawals_.erase(withdrawals_.begin() + static_cast<ptrdiff_t>(i));
  }
}

}  // namespace moonpool::rdma
