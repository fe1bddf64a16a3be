// Connection: how bytes come in, become commands, and long arguments find their place.
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "server/connection.h"
#include "server/log.h"
#include "server/loop.h"
#include "server/server.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

// What is read at once while a body comes in; everything else takes turns with it.
constexpr size_t kBodyBudget = 512 * 1024;
// Behind a body usually comes the header of the next: read just that, so that the next body's
// bytes go straight to where they stay.
constexpr size_t kHeaderBytes = 512;
constexpr size_t kInputStep = 16 * 1024;

}  // namespace


void Connection::Read() {
  loop_.UpdateClock();
  info_->last_ms.store(loop_.now_ms(), std::memory_order_relaxed);
  loop_.NoteActive(id_);
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
  if (bytes == room) TriggerByLevel();  // there may be more
  loop_.stats().net_input_bytes.Add(bytes);
  info_->net_input_bytes.Add(bytes);
  sent_ = false;
  if (!input_.empty()) {
    input_.Advance(bytes);
    Process({});
  } else {
    Process({to, bytes});
  }
  Flush();
  if (!sent_ && !closed_) TriggerByLevel();
}

void Connection::Process(std::string_view fresh) {
  // What is unfinished moves into input_; from then on everything new is appended there.
  bool own = fresh.empty();
  for (;;) {
    std::string_view view = own ? input_.view() : fresh;
    const size_t used = body_wanted_ ? 0 : Consume(view);  // else it waited for the body's memory
    if (closed_) return;
    if (!body_wanted_) {
      if (own) {
        input_.Erase(0, used);
      } else {
        input_.Append(view.substr(used));
      }
      break;
    }
    if (!ReserveBody(view.substr(used, parser_.frame_bytes()))) {
      own ? input_.Erase(0, used) : input_.Append(view.substr(used));
      break;
    }
    body_wanted_ = false;
    view.remove_prefix(used);
    const std::string_view head = view.substr(0, parser_.frame_bytes());
    const std::string_view rest = view.substr(head.size());
    const size_t taken = BeginBody(rest);
    if (own) {
      input_.Erase(used + head.size(), taken);
      input_.Erase(0, used);
    } else {
      input_.Append(head);
      input_.Append(rest.substr(taken));
      own = true;
    }
    if (!BodyComplete()) {
      TriggerByLevel();
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

bool Connection::ReserveBody(std::string_view frame) {
  const auto& parsed = parser_.arguments();
  const size_t index = parsed.size();
  Body& body = bodies_.emplace_back();
  body.size = parser_.body_bytes();
  bool stored = false;
  storage::Preference preference;
  if (index > 0 && parsed[0].body == protocol::RequestParser::Argument::kInline) {
    const Command* command =
        CommandTable::Get().Find(frame.substr(parsed[0].offset, parsed[0].size));
    if (command != nullptr && command->values.first > 0) {
      const auto first = static_cast<size_t>(command->values.first);
      const auto step = static_cast<size_t>(command->values.step);
      stored = index == first || (step > 0 && index > first && (index - first) % step == 0);
      const auto& key = parsed[stored ? command->values.KeyOf(index) : 0];
      if (key.body == protocol::RequestParser::Argument::kInline) {
        preference = loop_.server().placement().Choose(frame.substr(key.offset, key.size), 0);
      }
    }
  }
  if (stored) {
    auto handle = tenant_->Reserve(body.size, loop_.now_ms(), preference);
    if (handle) {
      body.extent = std::move(*handle);
    } else if (handle.error().code == ErrorCode::kBusy &&
               (body_until_ms_ == 0 || loop_.now_ms() < body_until_ms_)) {
      WaitForBodyMemory(body.size);
      bodies_.pop_back();
      return false;
    } else {
      body.failure = handle.error().message;
    }
    body_until_ms_ = 0;
  } else {
    body.heap.reset(new (std::nothrow) char[body.size]);
    if (body.heap == nullptr) body.failure = "no memory for an argument";
  }
  return true;
}

size_t Connection::BeginBody(std::string_view rest) {
  Body& body = bodies_.back();
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

}  // namespace moonpool::server
