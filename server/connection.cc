#include "server/connection.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "protocol/glob.h"
#include "server/background.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"
#include "server/ticks.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

// What is read at once while a body comes in; everything else takes turns with it.
constexpr size_t kBodyBudget = 512 * 1024;
// Behind a body usually comes the header of the next: read just that, so that the next body's
// bytes go straight to where they stay.
constexpr size_t kHeaderBytes = 512;
constexpr size_t kInputStep = 16 * 1024;
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
  event_assign(&read_event_, loop.base(), fd_.get(), EV_READ | EV_PERSIST, OnReadable, this);
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

void Connection::OnReadable(evutil_socket_t, short, void* connection) {
  static_cast<Connection*>(connection)->Read();
}

void Connection::OnWritable(evutil_socket_t, short, void* connection) {
  auto* self = static_cast<Connection*>(connection);
  self->AfterSend(self->output_.Send(self->fd_.get()));
}

// --- input -------------------------------------------------------------------------------------

void Connection::Read() {
  loop_.UpdateClock();
  info_->last_ms.store(loop_.now_ms(), std::memory_order_relaxed);
  loop_.scratch().set_resp(resp_);
  if (receiving_body_) {
    if (!ReadBody()) return;
    receiving_body_ = false;
    parser_.BodyTaken();
    Process({});
    Flush();
    return;
  }
  char* to = loop_.read_buffer();
  size_t room = last_had_body_ ? kHeaderBytes : Loop::kReadBytes;
  if (!input_.empty()) {
    to = input_.Reserve(kInputStep);
    room = input_.capacity() - input_.size();
  }
  ssize_t n;
  do {
    n = recv(fd_.get(), to, room, 0);
  } while (n < 0 && errno == EINTR);
  if (n <= 0) {
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
    Close();
    return;
  }
  const auto bytes = static_cast<size_t>(n);
  loop_.stats().net_input_bytes.Add(bytes);
  info_->net_input_bytes.Add(bytes);
  if (!input_.empty()) {
    input_.Advance(bytes);
    Process({});
  } else {
    Process({to, bytes});
  }
  Flush();
}

void Connection::Process(std::string_view fresh) {
  // What is unfinished moves into input_; from then on everything new is appended there.
  bool own = fresh.empty();
  for (;;) {
    std::string_view view = own ? input_.view() : fresh;
    const size_t used = Consume(view);
    if (closed_) return;
    if (!body_wanted_) {
      if (own) {
        input_.Erase(0, used);
      } else {
        input_.Append(view.substr(used));
      }
      break;
    }
    body_wanted_ = false;
    view.remove_prefix(used);
    const std::string_view head = view.substr(0, parser_.frame_bytes());
    const std::string_view rest = view.substr(head.size());
    const size_t taken = BeginBody(head, rest);
    if (own) {
      input_.Erase(used + head.size(), taken);
      input_.Erase(0, used);
    } else {
      input_.Append(head);
      input_.Append(rest.substr(taken));
      own = true;
    }
    if (!BodyComplete()) {
      receiving_body_ = true;
      break;
    }
    parser_.BodyTaken();
  }
  info_->query_buffer_bytes.Set(input_.size());
  if (input_.size() > static_cast<size_t>(loop_.server().config().number(Key::kQueryBufferLimit))) {
    Log(LogLevel::kWarning, "closing client {}: more than client-query-buffer-limit unread",
        info_->address);
    Close();
  }
}

// Adds the command whose arguments begin at `first` to the batch, and starts to fetch its key.
void Connection::Enqueue(size_t first, size_t frame_end) {
  const std::vector<Argument>& arguments = loop_.batch_arguments();
  ParsedCommand command{nullptr, static_cast<uint32_t>(first),
                        static_cast<uint32_t>(arguments.size() - first), 0, frame_end};
  command.command = CommandTable::Get().Find(arguments[first]);
  if (command.command != nullptr && command.command->keys.kind == KeySpec::kRange &&
      static_cast<size_t>(command.command->keys.first) < command.arguments) {
    command.key_hash = storage::HashKey(
        arguments[first + static_cast<size_t>(command.command->keys.first)]);
    tenant_->keyspace().PrefetchBucket(command.key_hash);
  }
  loop_.batch().push_back(command);
}

size_t Connection::Consume(std::string_view input) {
  using Event = protocol::RequestParser::Event;
  const std::vector<ParsedCommand>& batch = loop_.batch();
  std::vector<Argument>& arguments = loop_.batch_arguments();
  size_t position = 0;
  while (!closed_ && !close_after_reply_) {
    const std::string_view frame = input.substr(position);
    const size_t first = arguments.size();
    if (parser_.idle() && !frame.empty()) {
      size_t count = 0;
      const size_t used = protocol::RequestParser::ParseWhole(
          frame, limits_, &count,
          [&](std::string_view text) { arguments.push_back({text.data(), text.size(), nullptr}); });
      if (used > 0) {
        position += used;
        Enqueue(first, position);
        last_had_body_ = false;
        if (batch.size() < Loop::kBatch) continue;
        if (const auto stopped = RunBatch()) return *stopped;
        continue;
      }
      arguments.resize(first);
    }
    const Event event = parser_.Parse(frame, limits_);
    if (event == Event::kCommand) {
      const char* base = parser_.is_inline() ? parser_.InlineText().data() : frame.data();
      for (const auto& argument : parser_.arguments()) {
        if (argument.body == protocol::RequestParser::Argument::kInline) {
          arguments.push_back({base + argument.offset, argument.size, nullptr});
        } else {
          Body& body = bodies_[argument.body];
          arguments.push_back({body.data(), body.size, &body});
        }
      }
      position += parser_.frame_bytes();
      if (arguments.size() > first) {
        Enqueue(first, position);
        // Its arguments do not stay, or it decides how what follows is to be read.  (A command
        // with bodies is alone in its batch, see kBody, so it is never parsed again.)
        if (const auto stopped = RunBatch()) return *stopped;
        last_had_body_ = !bodies_.empty();
        bodies_.clear();
      }
      parser_.NextFrame();
      continue;
    }
    if (const auto stopped = RunBatch()) return *stopped;
    if (closed_ || close_after_reply_) break;
    if (event == Event::kBody) body_wanted_ = true;
    if (event == Event::kError) {
      loop_.stats().protocol_errors.Add();
      Log(LogLevel::kVerbose, "{} from client {}", parser_.error(), info_->address);
      loop_.scratch().Error("ERR " + parser_.error());
      close_after_reply_ = true;
    }
    break;
  }
  // What follows a QUIT or a protocol error is not looked at.
  return close_after_reply_ ? input.size() : position;
}

size_t Connection::BeginBody(std::string_view frame, std::string_view rest) {
  const auto& parsed = parser_.arguments();
  const size_t index = parsed.size();
  Body& body = bodies_.emplace_back();
  body.size = parser_.body_bytes();
  bool stored = false;
  if (index > 0 && parsed[0].body == protocol::RequestParser::Argument::kInline) {
    const Command* command =
        CommandTable::Get().Find(frame.substr(parsed[0].offset, parsed[0].size));
    if (command != nullptr && command->values.first > 0) {
      const auto first = static_cast<size_t>(command->values.first);
      const auto step = static_cast<size_t>(command->values.step);
      stored = index == first || (step > 0 && index > first && (index - first) % step == 0);
    }
  }
  if (stored) {
    auto handle = tenant_->Reserve(body.size, loop_.now_ms());
    if (handle) {
      body.extent = std::move(*handle);
    } else {
      body.failure = handle.error().message;
    }
  } else {
    body.heap.reset(new (std::nothrow) char[body.size]);
    if (body.heap == nullptr) body.failure = "no memory for an argument";
  }
  body_received_ = std::min(rest.size(), body.size);
  if (body.data() != nullptr && body.failure.empty()) {
    std::copy_n(rest.data(), body_received_, body.data());
  }
  return body_received_;
}

bool Connection::ReadBody() {
  Body& body = bodies_.back();
  const size_t missing = body.size - body_received_;
  iovec pieces[2];
  int count = 0;
  if (body.failure.empty()) {
    pieces[count++] = {body.data() + body_received_, std::min(missing, kBodyBudget)};
  } else {
    // Dropped: the client finishes its command and then reads why.
    pieces[count++] = {loop_.read_buffer(), std::min(missing, Loop::kReadBytes)};
  }
  const bool last = pieces[0].iov_len == missing;
  if (last) pieces[count++] = {input_.Reserve(kHeaderBytes), kHeaderBytes};
  ssize_t n;
  do {
    n = readv(fd_.get(), pieces, count);
  } while (n < 0 && errno == EINTR);
  if (n <= 0) {
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
    Close();
    return false;
  }
  const auto bytes = static_cast<size_t>(n);
  const size_t of_body = std::min(bytes, missing);
  body_received_ += of_body;
  input_.Advance(bytes - of_body);
  loop_.stats().net_input_bytes.Add(bytes);
  if (body.extent) loop_.stats().bulk_input_bytes.Add(of_body);
  info_->net_input_bytes.Add(bytes);
  return BodyComplete();
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

void Connection::Suspend(const Command& command, Background& background,
                         std::function<void()> work, std::function<void(Context&)> finish) {
  suspended_ = true;
  event_del(&read_event_);
  const bool silent = reply_mode_ != ReplyMode::kOn;
  background.Run([&loop = loop_, id = id_, &command, silent, work = std::move(work),
                  finish = std::move(finish)]() mutable {
    work();
    loop.Post([&loop, id, &command, silent, finish = std::move(finish)] {
      if (Connection* connection = loop.Find(id)) connection->Resume(command, silent, finish);
    });
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
  LoopStats& stats = loop_.stats();
  Reply& reply = loop_.scratch();
  const std::span<Argument> arguments(loop_.batch_arguments().data() + parsed.first_argument,
                                      parsed.arguments);
  const Reply::Mark mark = reply.mark();
  const Command* command = Admit(parsed, arguments);
  uint64_t end = start;
  if (command != nullptr) {
    Context context{loop_.server(), loop_,           *this,          *tenant_, *command,
                    arguments,      parsed.key_hash, loop_.now_ms(), reply};
    command->handler(context);
    CommandStats& counts = stats.by_command[command->id];
    end = Ticks();
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
    reply.Reset();
    return;
  }
  if (reply.empty()) {
    if (close_after_reply_ && output_.empty()) Close();
    return;
  }
  OutputQueue::Sent sent;
  if (output_.empty()) sent = OutputQueue::SendReply(fd_.get(), reply);
  if (sent.bytes == reply.size() && reply.splices().empty()) {
    reply.Clear();  // the usual case: all of it went out at once
  } else {
    output_.Take(reply, sent.bytes);
  }
  reply.ShrinkTo(kScratchKeep);
  AfterSend(sent);
}

void Connection::AfterSend(const OutputQueue::Sent& sent) {
  loop_.stats().net_output_bytes.Add(sent.bytes);
  loop_.stats().bulk_output_bytes.Add(sent.value_bytes);
  info_->net_output_bytes.Add(sent.bytes);
  if (sent.failed) return Close();
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

void Connection::WatchWritable(bool on) {
  if (on == watching_writable_) return;
  watching_writable_ = on;
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
  if (idle_s > 0 && output_.empty() &&
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
