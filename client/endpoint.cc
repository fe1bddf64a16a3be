#include "client/endpoint.h"

#include <optional>
#include <utility>

#include "protocol/decimal.h"

namespace moonpool::client {

namespace {

Status Invalid(const std::string& url, const std::string& what) {
  return {Code::kInvalidArgument,
          "bad URL '" + url + "': " + what +
              " (moonpool://[:password@]host[:port][?option=value] or moonpool+unix:///path)"};
}

// %41 -> A.  Empty when an escape is broken.
std::optional<std::string> Unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const auto digit = [&](size_t at) -> int {
      if (at >= text.size()) return -1;
      const char c = text[at];
      if (c >= '0' && c <= '9') return c - '0';
      if (c >= 'a' && c <= 'f') return c - 'a' + 10;
      if (c >= 'A' && c <= 'F') return c - 'A' + 10;
      return -1;
    };
    const int high = digit(i + 1);
    const int low = digit(i + 2);
    if (high < 0 || low < 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return out;
}

struct IntegerOption {
  std::string_view name;
  int Options::* field;
  int least;
  int most;
};
constexpr IntegerOption kIntegerOptions[] = {
    {"connections", &Options::connections, 1, 1024},
    {"connect_timeout_ms", &Options::connect_timeout_ms, 1, 3600000},
    {"timeout_ms", &Options::timeout_ms, 1, 3600000},
    {"copy_threads", &Options::copy_threads, 0, 256},
    {"spin_us", &Options::spin_us, 0, 1000000},
    {"lease_ms", &Options::lease_ms, 0, 3600000},
    {"async_threads", &Options::async_threads, 1, 256},
    {"gather_us", &Options::gather_us, 0, 1000000},
    {"gather_keys", &Options::gather_keys, 1, 65536},
    {"rdma_registered_mib", &Options::rdma_registered_mib, 0, 1 << 30},
    {"rdma_staging_mib", &Options::rdma_staging_mib, 0, 1 << 20},
    {"rdma_sessions", &Options::rdma_sessions, 1, 1 << 20},
};

constexpr std::pair<std::string_view, std::string Options::*> kTextOptions[] = {
    {"rdma_devices", &Options::rdma_devices},
    {"rdma_exclude", &Options::rdma_exclude},
};

// An empty message: it was taken.
std::string ApplyOption(std::string_view name, std::string_view value, Options* options) {
  if (name == "transport") {
    if (value == "auto") {
      options->transport = Options::TransportChoice::kAuto;
    } else if (value == "shm") {
      options->transport = Options::TransportChoice::kShm;
    } else if (value == "rdma") {
      options->transport = Options::TransportChoice::kRdma;
    } else if (value == "tcp") {
      options->transport = Options::TransportChoice::kTcp;
    } else {
      return "transport is auto, shm, rdma or tcp";
    }
    return "";
  }
  if (name == "checksum") {
    if (value != "yes" && value != "no") return "checksum is yes or no";
    options->checksum = value == "yes";
    return "";
  }
  if (name == "gpu" || name == "gpu_rdma") {
    if (value != "auto" && value != "no") return std::string(name) + " is auto or no";
    (name == "gpu" ? options->gpu : options->gpu_rdma) =
        value == "auto" ? Options::GpuChoice::kAuto : Options::GpuChoice::kNo;
    return "";
  }
  for (const auto& [text_name, field] : kTextOptions) {
    if (text_name != name) continue;
    const auto text = Unescape(value);
    if (!text) return "a broken %-escape in " + std::string(name);
    options->*field = *text;
    return "";
  }
  for (const IntegerOption& option : kIntegerOptions) {
    if (option.name != name) continue;
    const auto number = protocol::ParseInt64(value);
    if (!number || *number < option.least || *number > option.most) {
      return std::string(name) + " is a number from " + std::to_string(option.least) + " to " +
             std::to_string(option.most);
    }
    options->*option.field = static_cast<int>(*number);
    return "";
  }
  return "unknown option '" + std::string(name) + "'";
}

}  // namespace

Status ParseUrl(const std::string& url, Endpoint* endpoint, Options* options) {
  std::string_view rest = url;
  const size_t scheme_end = rest.find("://");
  if (scheme_end == std::string_view::npos) return Invalid(url, "no scheme");
  const std::string_view scheme = rest.substr(0, scheme_end);
  rest.remove_prefix(scheme_end + 3);

  const size_t question = rest.find('?');
  std::string_view query =
      question == std::string_view::npos ? std::string_view() : rest.substr(question + 1);
  rest = rest.substr(0, question);
  while (!query.empty()) {
    const size_t end = std::min(query.find('&'), query.size());
    const std::string_view pair = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos) return Invalid(url, "an option without '='");
    const std::string why = ApplyOption(pair.substr(0, equals), pair.substr(equals + 1), options);
    if (!why.empty()) return Invalid(url, why);
  }

  if (scheme == "moonpool+unix" || scheme == "unix") {
    const auto path = Unescape(rest);
    if (!path || path->empty() || (*path)[0] != '/') return Invalid(url, "no absolute path");
    endpoint->unix_path = *path;
    return {};
  }
  if (scheme != "moonpool" && scheme != "redis") return Invalid(url, "unknown scheme");

  const size_t at = rest.rfind('@');
  if (at != std::string_view::npos) {
    const std::string_view user = rest.substr(0, at);
    const size_t colon = user.find(':');
    const auto password =
        Unescape(colon == std::string_view::npos ? user : user.substr(colon + 1));
    if (!password) return Invalid(url, "a broken %-escape in the password");
    options->password = *password;
    rest.remove_prefix(at + 1);
  }
  // A path could name a database; there is one.
  if (const size_t slash = rest.find('/'); slash != std::string_view::npos) {
    const std::string_view path = rest.substr(slash + 1);
    if (!path.empty() && path != "0") return Invalid(url, "the only database is 0");
    rest = rest.substr(0, slash);
  }
  std::string_view host = rest;
  std::string_view port;
  if (!rest.empty() && rest[0] == '[') {
    const size_t close = rest.find(']');
    if (close == std::string_view::npos) return Invalid(url, "'[' without ']'");
    host = rest.substr(1, close - 1);
    rest.remove_prefix(close + 1);
    if (!rest.empty() && rest[0] != ':') return Invalid(url, "text behind ']'");
    if (!rest.empty()) port = rest.substr(1);
  } else if (const size_t colon = rest.rfind(':'); colon != std::string_view::npos) {
    host = rest.substr(0, colon);
    port = rest.substr(colon + 1);
    if (host.find(':') != std::string_view::npos) {
      return Invalid(url, "an IPv6 address without brackets");
    }
  }
  if (host.empty()) return Invalid(url, "no host");
  endpoint->host = host;
  if (!port.empty()) {
    const auto number = protocol::ParseInt64(port);
    if (!number || *number < 1 || *number > 65535) return Invalid(url, "a bad port");
    endpoint->port = static_cast<int>(*number);
  }
  return {};
}

}  // namespace moonpool::client
