#include "client/moonpool/client.h"

#include "client/async_queue.h"
#include "client/client_impl.h"
#include "client/fork_guard.h"
#include "client/gatherer.h"

namespace moonpool::client {

namespace {

Status ToStatus(const KeyResult& result) { return {result.code, result.message}; }

std::vector<Target> OnePiece(std::span<const Buffer> buffers) {
  std::vector<Target> targets;
  targets.reserve(buffers.size());
  for (const Buffer& buffer : buffers) targets.push_back({std::span(&buffer, 1)});
  return targets;
}

std::vector<Source> OnePiece(std::span<const ConstBuffer> buffers) {
  std::vector<Source> sources;
  sources.reserve(buffers.size());
  for (const ConstBuffer& buffer : buffers) {
    sources.push_back({std::span(&buffer, 1), buffer.size});
  }
  return sources;
}

// In a child, an implementation made before the fork is never destroyed: its locks may be held by
// threads that exist in the parent alone.
void LeaveToParent(std::shared_ptr<ClientImpl> impl) {
  static auto* const left = new std::vector<std::shared_ptr<ClientImpl>>();
  left->push_back(std::move(impl));
}

}  // namespace

Status Client::Connect(const std::string& url, const Options& options,
                       std::unique_ptr<Client>* client) {
  Endpoint endpoint;
  Options merged = options;
  if (Status parsed = ParseUrl(url, &endpoint, &merged); !parsed.ok()) return parsed;
  auto impl = std::make_shared<ClientImpl>(std::move(endpoint), std::move(merged));
  if (Status started = impl->Start(); !started.ok()) return started;
  client->reset(new Client(std::move(impl)));
  return {};
}

Client::Client(std::shared_ptr<ClientImpl> impl) : impl_(std::move(impl)) {}

Client::~Client() {
  if (impl_->forks() != ForkCount()) LeaveToParent(std::move(impl_));
}

ClientImpl& Client::impl() const {
  if (impl_->forks() != ForkCount()) {
    auto fresh = std::make_shared<ClientImpl>(impl_->endpoint(), impl_->options());
    LeaveToParent(std::exchange(impl_, std::move(fresh)));
    // What it cannot reach now it tells with every call.
    [[maybe_unused]] const Status started = impl_->Start();
  }
  return *impl_;
}

Status Client::Ping() { return impl().Ping(); }

Status Client::Get(std::string_view key, std::string* value) {
  if (Gatherer* gatherer = impl().gatherer()) return ToStatus(gatherer->Get(key, value));
  const Target target{{}, value};
  return ToStatus(impl().GetInto(std::span(&key, 1), std::span(&target, 1)).front());
}

Status Client::Set(std::string_view key, std::string_view value, const PutOptions& options) {
  const bool plain = !options.if_absent && !options.if_present && options.ttl_ms == 0 &&
                     options.prefer.empty();
  if (Gatherer* gatherer = impl().gatherer(); gatherer != nullptr && plain) {
    return ToStatus(gatherer->Put(key, value));
  }
  return ToStatus(BatchPut(std::span(&key, 1), std::span(&value, 1), options).front());
}

Status Client::Del(std::string_view key) {
  return ToStatus(impl().Remove(std::span(&key, 1)).front());
}

Status Client::Exists(std::string_view key) {
  if (Gatherer* gatherer = impl().gatherer()) return ToStatus(gatherer->Exists(key));
  return ToStatus(impl().Exist(std::span(&key, 1)).front());
}

Status Client::GetView(std::string_view key, View* view) { return impl().GetView(key, view); }

std::vector<KeyResult> Client::BatchGet(std::span<const std::string_view> keys,
                                        std::vector<std::string>* values) {
  values->assign(keys.size(), {});
  std::vector<Target> targets;
  targets.reserve(keys.size());
  for (std::string& value : *values) targets.push_back({{}, &value});
  return impl().GetInto(keys, targets);
}

std::vector<KeyResult> Client::BatchPut(std::span<const std::string_view> keys,
                                        std::span<const std::string_view> values,
                                        const PutOptions& options) {
  std::vector<ConstBuffer> buffers;
  buffers.reserve(values.size());
  for (const std::string_view value : values) buffers.push_back({value.data(), value.size()});
  return impl().PutFrom(keys, OnePiece(buffers), options);
}

std::vector<KeyResult> Client::BatchRemove(std::span<const std::string_view> keys) {
  return impl().Remove(keys);
}

std::vector<KeyResult> Client::BatchIsExist(std::span<const std::string_view> keys) {
  return impl().Exist(keys);
}

Status Client::MatchPrefix(std::span<const std::string_view> keys, size_t* present) {
  return impl().MatchPrefix(keys, present);
}

std::vector<KeyResult> Client::BatchGetInto(std::span<const std::string_view> keys,
                                            std::span<const Buffer> buffers) {
  return impl().GetInto(keys, OnePiece(buffers));
}

std::vector<KeyResult> Client::BatchPutFrom(std::span<const std::string_view> keys,
                                            std::span<const ConstBuffer> buffers,
                                            const PutOptions& options) {
  return impl().PutFrom(keys, OnePiece(buffers), options);
}

std::vector<KeyResult> Client::BatchGetIntoMulti(std::span<const std::string_view> keys,
                                                 std::span<const std::vector<Buffer>> buffers) {
  std::vector<Target> targets;
  targets.reserve(buffers.size());
  for (const std::vector<Buffer>& pieces : buffers) targets.push_back({pieces});
  return impl().GetInto(keys, targets);
}

std::vector<KeyResult> Client::BatchPutFromMulti(
    std::span<const std::string_view> keys, std::span<const std::vector<ConstBuffer>> buffers,
    const PutOptions& options) {
  std::vector<Source> sources;
  sources.reserve(buffers.size());
  for (const std::vector<ConstBuffer>& pieces : buffers) {
    Source source{pieces};
    for (const ConstBuffer& piece : pieces) source.bytes += piece.size;
    sources.push_back(source);
  }
  return impl().PutFrom(keys, sources, options);
}

uint64_t Client::Submit(Operation operation) {
  return impl().async().Submit(std::move(operation), nullptr);
}

uint64_t Client::Submit(Operation operation, std::function<void(Completion)> done) {
  return impl().async().Submit(std::move(operation), std::move(done));
}

std::future<std::vector<KeyResult>> Client::SubmitFuture(Operation operation) {
  auto promise = std::make_shared<std::promise<std::vector<KeyResult>>>();
  auto future = promise->get_future();
  impl().async().Submit(std::move(operation), [promise](Completion completion) {
    promise->set_value(std::move(completion.results));
  });
  return future;
}

int Client::event_fd() const { return impl().async().event_fd(); }

std::vector<Completion> Client::Poll(size_t most) { return impl().async().Poll(most); }

Status Client::RegisterBuffer(void* data, size_t size) {
  return impl().RegisterBuffer(data, size);
}

Status Client::UnregisterBuffer(void* data) { return impl().UnregisterBuffer(data); }

Stats Client::stats() const { return impl().stats(); }

Transport Client::transport() const { return impl().transport(); }

Status Client::Command(std::span<const std::string_view> words, std::string* reply) {
  return impl().Command(words, reply);
}

}  // namespace moonpool::client
