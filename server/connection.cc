#include "server/connection.h"

#include <utility>

#include "protocol/glob.h"
#include "server/background.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/parking.h"
#include "server/server.h"
#include "server/session.h"
#include "server/ticks.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

// Larger reply buffers are not kept.
constexpr size_t kScratchKeep = 256 * 1024;

}  // namespace

Connection::Connection(Loop& loop, uint64_t id, UniqueFd fd, const ConnectionOrigin& origin)
    : loop_(loop),
      id_(id),
      fd_(std::move(fd)),
      tenant_(&loop.server().default_tenant()),
      info_(std::make_shared<ClientInfo>(id, &loop, origin.address, origin.local_address,
                                         fd_.get(), loop.now_ms())),
      authenticated_(!loop.server().password_required()) {
  info_->unix_socket = origin.unix_socket;
  info_->authenticated = authenticated_;
  loop.server().clients().Add(info_);
  UpdateLimits();
  event_assign(&read_event_, loop.base(), fd_.get(), EV_READ | EV_CLOSED | EV_PERSIST | EV_ET,
               OnReadable, this);
  event_assign(&write_event_, loop.base(), fd_.get(), EV_WRITE | EV_PERSIST, OnWritable, this);
  event_add(&read_event_, nullptr);
}

Connection::~Connection() {
  event_del(&read_event_);
  event_del(&write_event_);
  loop_.server().clients().Remove(id_);
}

void Connection::set_authenticated(bool value) {
  authenticated_ = value;
  info_->authenticated = value;
  UpdateLimits();
}

void Connection::set_resp(int version) {
  resp_ = version;
  info_->resp = version;
  loop_.scratch().set_resp(version);
}

void Connection::set_session(std::unique_ptr<Session> session) {
  session_ = std::move(session);
  info_->session = session_ ? session_->id() : 0;
}

void Connection::ResetState() {
  set_session(nullptr);
  set_resp(2);
  set_authenticated(!loop_.server().password_required());
  reply_mode_ = ReplyMode::kOn;
  MutexLock lock(info_->mu);
  info_->name.clear();
}

void Connection::UpdateLimits() {
  const Config& config = loop_.server().config();
  limits_.max_bulk_bytes = config.number(Key::kProtoMaxBulkLen);
  limits_.max_arguments = INT32_MAX;
  limits_.body_threshold = static_cast<size_t>(config.number(Key::kBulkThreshold));
  limits_.authenticated = authenticated_;
}

void Connection::Close() {
  if (closed_) return;
  closed_ = true;
  event_del(&read_event_);
  event_del(&write_event_);
  // Not now: the caller may be deep inside one of our functions.
  loop_.Post([&loop = loop_, id = id_] {
    if (Connection* connection = loop.Find(id)) loop.Destroy(connection);
  });
}

void Connection::OnReadable(evutil_socket_t, short what, void* connection) {
  auto* self = static_cast<Connection*>(connection);
  // Behind the input that is read now there is an end, which no further edge would tell.
  if ((what & EV_CLOSED) != 0) self->TriggerByLevel();
  self->Read();
}

void Connection::OnWritable(evutil_socket_t, short, void* connection) {
  auto* self = static_cast<Connection*>(connection);
  self->AfterSend(self->output_.Send(self->fd_.get(), self->SendBudget()));
}

// --- commands ----------------------------------------------------------------------------------

std::optional<size_t> Connection::RunBatch() {
  std::vector<ParsedCommand>& batch = loop_.batch();
  if (batch.empty()) return std::nullopt;
  if (batch.size() > 1 && loop_.server().prefetch()) {
    for (const ParsedCommand& command : batch) {
      if (command.key_hash != 0) tenant_->keyspace().PrefetchEntry(command.key_hash);
    }
  }
  std::optional<size_t> stopped;
  loop_.stats().commands.Add(batch.size());
  info_->commands.Add(batch.size());
  uint64_t ticks = Ticks();
  for (const ParsedCommand& command : batch) {
    if (closed_ || close_after_reply_) break;
    ticks = Run(command, ticks);
    if (suspended_) {
      PrefetchRest(std::span(batch).subspan(static_cast<size_t>(&command - batch.data()) + 1));
      stopped = command.frame_end;
      bodies_.clear();
      parser_.NextFrame();
      break;
    }
  }
  batch.clear();
  loop_.batch_arguments().clear();
  return stopped;
}

std::function<void()> Connection::Suspend(const Command& command,
                                          std::function<void(Context&)> finish) {
  suspended_ = true;
  event_del(&read_event_);
  const bool silent = reply_mode_ != ReplyMode::kOn;
  return [&loop = loop_, id = id_, &command, silent, finish = std::move(finish)]() mutable {
    loop.Post([&loop, id, &command, silent, finish = std::move(finish)] {
      if (Connection* connection = loop.Find(id)) connection->Resume(command, silent, finish);
    });
  };
}

void Connection::Suspend(const Command& command, Background& background,
                         std::function<void()> work, std::function<void(Context&)> finish) {
  background.Run([work = std::move(work), resume = Suspend(command, std::move(finish))] {
    work();
    resume();
  });
}

void Connection::Resume(const Command& command, bool silent,
                        const std::function<void(Context&)>& finish) {
  if (closed_) return;
  suspended_ = false;
  Reply& reply = loop_.scratch();
  reply.set_resp(resp_);
  Context context{loop_.server(), loop_, *this, *tenant_, command, {}, 0, loop_.now_ms(), reply};
  const Reply::Mark mark = reply.mark();
  finish(context);
  if (silent) reply.Rollback(mark);
  event_add(&read_event_, nullptr);
  if (!input_.empty()) Process({});
  Flush();
}

void Connection::RejectUnknown(std::span<Argument> arguments) {
  const std::string_view name = arguments[0];
  if (protocol::EqualsIgnoreCase(name, "post") || protocol::EqualsIgnoreCase(name, "host:")) {
    // A browser talks: the commands a web page hid behind these lines must not run.
    Log(LogLevel::kWarning, "closing client {}: it speaks HTTP", info_->address);
    return Close();
  }
  // Redis shows at most 128 bytes of the name and about as many of the arguments.
  std::string text = "ERR unknown command '";
  text += name.substr(0, 128);
  text += "', with args beginning with: ";
  const size_t base = text.size();
  for (size_t i = 1; i < arguments.size() && text.size() - base < 128; ++i) {
    const size_t room = 128 - (text.size() - base);
    text += "'";
    text += arguments[i].view().substr(0, room);
    text += "' ";
  }
  loop_.scratch().Error(text);
}

// The command to run, or null when it was refused (and the refusal is in the reply).
const Command* Connection::Admit(const ParsedCommand& parsed, std::span<Argument> arguments) {
  Reply& reply = loop_.scratch();
  if (parsed.command == nullptr) {
    RejectUnknown(arguments);
    return nullptr;
  }
  const Command* command = CommandTable::Resolve(parsed.command, arguments);
  const auto argc = static_cast<int>(arguments.size());
  const bool wrong_arity =
      command->arity > 0 ? argc != command->arity : argc < -command->arity;
  if (wrong_arity) {
    std::string name(command->container);
    if (!name.empty()) name += '|';
    name += command->name;
    reply.Error("ERR wrong number of arguments for '" + name + "' command");
  } else if (!authenticated_ && (command->flags & kNoAuth) == 0) {
    reply.Error("NOAUTH Authentication required.");
  } else if ((command->flags & kDenyOom) != 0 && !tenant_->MakeRoom(loop_.now_ms())) {
    reply.Error("OOM command not allowed when used memory > 'maxmemory'.");
  } else {
    return command;
  }
  loop_.stats().by_command[command->id].rejected.Add();
  return nullptr;
}

uint64_t Connection::Run(const ParsedCommand& parsed, uint64_t start) {
  const std::span<Argument> arguments(loop_.batch_arguments().data() + parsed.first_argument,
                                      parsed.arguments);
  const Reply::Mark mark = loop_.scratch().mark();
  const Command* command = Admit(parsed, arguments);
  return Execute(command, arguments, parsed.key_hash, start, mark, nullptr);
}

uint64_t Connection::Execute(const Command* command, std::span<Argument> arguments,
                             uint64_t key_hash, uint64_t start, Reply::Mark mark,
                             std::unique_ptr<Parked> parked) {
  LoopStats& stats = loop_.stats();
  Reply& reply = loop_.scratch();
  uint64_t end = start;
  if (command != nullptr) {
    Context context{loop_.server(), loop_,    *this,          *tenant_, *command,
                    arguments,      key_hash, loop_.now_ms(), reply};
    command->handler(context);
    end = Ticks();
    if (loop_.missing().any()) {
      reply.Rollback(mark);
      if (!loop_.missing().refused) {
        const bool again = parked != nullptr;
        Wait(again ? std::move(parked) : Park(command, arguments, key_hash), again);
        return end;
      }
      loop_.missing().Clear();
      reply.Error("OOM the value cannot be brought to memory from the SSD or its GPU now; see INFO tiers");
    }
    CommandStats& counts = stats.by_command[command->id];
    counts.calls.Add();
    counts.ticks.Add(end - start);
    info_->last_command.store(command, std::memory_order_relaxed);
  }
  if (reply.size() > mark.size && reply.data()[mark.size] == '-') {
    const std::string_view text = reply.view().substr(mark.size + 1);
    stats.CountError(text.substr(0, text.find_first_of(" \r")));
    if (command != nullptr) stats.by_command[command->id].failed.Add();
  }
  if (reply_mode_ != ReplyMode::kOn) {
    // CLIENT REPLY OFF and SKIP say nothing themselves; SKIP silences the next command too.
    reply.Rollback(mark);
    if (reply_mode_ == ReplyMode::kSkipping) {
      reply_mode_ = ReplyMode::kOn;
    } else if (reply_mode_ == ReplyMode::kSkipNext) {
      reply_mode_ = ReplyMode::kSkipping;
    }
  }
  // A pipeline of large replies must not pile up here before the first byte is sent.
  if (reply.size() > kScratchKeep) Flush();
  return end;
}

// --- output ------------------------------------------------------------------------------------

void Connection::Flush() {
  Reply& reply = loop_.scratch();
  if (closed_) {
    storage::SsdLog::TakeThreadSequence();
    reply.Reset();
    return;
  }
  const bool hold = HoldOutput();
  if (reply.empty()) {
    if (close_after_reply_ && output_.empty()) Close();
    return;
  }
  if (hold) {
    output_.Take(reply, 0);
    reply.ShrinkTo(kScratchKeep);
    info_->output_bytes.Set(output_.bytes());
    return;
  }
  OutputQueue::Sent sent;
  if (output_.empty()) sent = OutputQueue::SendReply(fd_.get(), reply, SendBudget());
  if (sent.bytes == reply.size() && reply.splices().empty()) {
    reply.Clear();  // the usual case: all of it went out at once
  } else {
    output_.Take(reply, sent.bytes);
  }
  reply.ShrinkTo(kScratchKeep);
  AfterSend(sent);
}

size_t Connection::SendBudget() const {
  return loop_.OthersActive(id_) ? OutputQueue::kSharedBudget : OutputQueue::kSendBudget;
}

void Connection::AfterSend(const OutputQueue::Sent& sent) {
  loop_.stats().net_output_bytes.Add(sent.bytes);
  loop_.stats().bulk_output_bytes.Add(sent.value_bytes);
  info_->net_output_bytes.Add(sent.bytes);
  if (sent.failed) return Close();
  sent_ |= sent.bytes > 0;
  info_->output_bytes.Set(output_.bytes());
  if (output_.empty()) {
    WatchWritable(false);
    over_soft_limit_since_ms_ = 0;
    if (close_after_reply_) Close();
    return;
  }
  WatchWritable(true);
  const auto hard =
      static_cast<uint64_t>(loop_.server().config().number(Key::kOutputHardLimit));
  if (hard != 0 && output_.bytes() > hard) {
    Log(LogLevel::kWarning, "closing client {}: over client-output-hard-limit", info_->address);
    loop_.stats().output_limit_closed.Add();
    Close();
  }
}

// A connection begins edge-triggered: the kernel then need not look again, at the next wait, at
// every socket that had input at the last (with a thousand clients each look is a cache miss).  That
// wants every read to take all there is, and what ended behind it to be met otherwise: an end of the
// stream is told with the input, a reset by sending the reply.  A read for which that does not hold
// makes the connection level-triggered, for good.
void Connection::TriggerByLevel() {
  if (level_triggered_) return;
  level_triggered_ = true;
  const bool watched = event_pending(&read_event_, EV_READ, nullptr) != 0;
  event_del(&read_event_);
  event_assign(&read_event_, loop_.base(), fd_.get(), EV_READ | EV_PERSIST, OnReadable, this);
  if (watched) event_add(&read_event_, nullptr);
}

void Connection::WatchWritable(bool on) {
  if (on == watching_writable_) return;
  watching_writable_ = on;
  TriggerByLevel();  // both events of a socket have the same trigger
  on ? event_add(&write_event_, nullptr) : event_del(&write_event_);
}

void Connection::OnTick() {
  const Config& config = loop_.server().config();
  const int64_t now_ms = loop_.now_ms();
  if (info_->closing.load(std::memory_order_relaxed)) return Close();
  UpdateLimits();
  if (input_.empty()) input_.ShrinkTo(0);
  if (session_ != nullptr) session_->OnTick(now_ms);
  const int64_t idle_s = config.number(Key::kTimeout);
  if (idle_s > 0 && output_.empty() && !suspended_ &&
      now_ms - info_->last_ms.load(std::memory_order_relaxed) > idle_s * 1000) {
    Log(LogLevel::kVerbose, "closing idle client {}", info_->address);
    loop_.stats().timeout_closed.Add();
    return Close();
  }
  const auto soft = static_cast<uint64_t>(config.number(Key::kOutputSoftLimit));
  if (soft == 0 || output_.bytes() <= soft) {
    over_soft_limit_since_ms_ = 0;
  } else if (over_soft_limit_since_ms_ == 0) {
    over_soft_limit_since_ms_ = now_ms;
  } else if (now_ms - over_soft_limit_since_ms_ >
             config.number(Key::kOutputSoftSeconds) * 1000) {
    Log(LogLevel::kWarning, "closing client {}: over client-output-soft-limit for too long",
        info_->address);
    loop_.stats().output_limit_closed.Add();
    Close();
  }
}

}  // namespace moonpool::server
