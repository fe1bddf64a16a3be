// The server's log, over spdlog.  Threads: any.
#pragma once

#include <string>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "protocol/status.h"

namespace moonpool::server {

enum class LogLevel { kDebug, kVerbose, kNotice, kWarning, kNothing };

// To a file, or to standard output when `path` is empty.
Status OpenLog(const std::string& path, LogLevel least);
void SetLogLevel(LogLevel least);
bool LogEnabled(LogLevel level);
void WriteLog(LogLevel level, const std::string& text);

template <typename... Values>
void Log(LogLevel level, fmt::format_string<Values...> format, Values&&... values) {
  if (LogEnabled(level)) WriteLog(level, fmt::format(format, std::forward<Values>(values)...));
}

}  // namespace moonpool::server
