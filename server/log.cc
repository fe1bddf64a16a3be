#include "server/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>

namespace moonpool::server {

namespace {

std::atomic<LogLevel> least_level{LogLevel::kNotice};

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::trace;
    case LogLevel::kVerbose:
      return spdlog::level::debug;
    case LogLevel::kNotice:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kNothing:
      return spdlog::level::off;
  }
  __builtin_unreachable();
}

}  // namespace

Status OpenLog(const std::string& path, LogLevel least) {
  std::shared_ptr<spdlog::logger> logger;
  try {
    if (path.empty()) {
      logger = spdlog::stdout_logger_mt("moonpool");
    } else {
      logger = spdlog::basic_logger_mt("moonpool", path);
    }
  } catch (const spdlog::spdlog_ex& error) {
    return Fail(ErrorCode::kSystem, std::string("opening the log: ") + error.what());
  }
  logger->set_pattern("%P %d %b %Y %H:%M:%S.%e %v");
  logger->set_level(spdlog::level::trace);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  SetLogLevel(least);
  return {};
}

void SetLogLevel(LogLevel least) { least_level.store(least, std::memory_order_relaxed); }

bool LogEnabled(LogLevel level) {
  return level != LogLevel::kNothing && level >= least_level.load(std::memory_order_relaxed);
}

void WriteLog(LogLevel level, const std::string& text) {
  static constexpr const char* kMarks[] = {".", "-", "*", "#", ""};  // as redis-server's
  spdlog::log(SpdlogLevel(level), "{} {}", kMarks[static_cast<int>(level)], text);
}

}  // namespace moonpool::server
