// The configuration: one table of rows (settings.inc), values that any thread may read.
//
// Order of precedence: --key flags, then the configuration file, then the defaults.
// Threads: any.  Numbers are relaxed atomics; texts are copied under a lock.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "protocol/mutex.h"
#include "protocol/status.h"

namespace moonpool::server {

enum class Key : uint8_t {
#define SECTION(title)
#define SETTING(id, ...) id,
#include "server/settings.inc"
#undef SETTING
#undef SECTION
  kCount
};
inline constexpr size_t kSettingCount = static_cast<size_t>(Key::kCount);

enum class SettingType : uint8_t { kInteger, kMemory, kBoolean, kReal, kChoice, kText };
enum class Change : uint8_t { kStart, kLive };

struct Setting {
  Key key;
  std::string_view section;
  std::string_view name;
  SettingType type;
  std::string_view default_text;
  double least;
  double most;
  Change change;
  std::string_view unit;
  std::string_view choices;  // separated by spaces
  std::string_view summary;
};

class Config {
 public:
  // Every key at its default.
  Config();

  static const std::array<Setting, kSettingCount>& Settings();
  // Null when there is no such key; case does not matter.
  static const Setting* Find(std::string_view name);

  // kInteger and kMemory: the number.  kBoolean: 0 or 1.  kChoice: the index of the choice.
  int64_t number(Key key) const { return Slot(key).number.load(std::memory_order_relaxed); }
  bool boolean(Key key) const { return number(key) != 0; }
  double real(Key key) const { return Slot(key).real.load(std::memory_order_relaxed); }
  std::string text(Key key) const;
  // As CONFIG GET shows it.
  std::string Show(const Setting& setting) const;

  // Reads a file of "key value" lines ('#' comments, quotes as in redis.conf) and remembers its
  // path for Rewrite().  Errors name the line.
  Status LoadFile(const std::string& path);
  // One key as a flag or a file line gives it.
  Status SetAtStart(std::string_view name, std::string_view text);

  // CONFIG SET: all or nothing.  Runs the hooks of what changed.
  Status SetLive(const std::vector<std::pair<std::string_view, std::string_view>>& changes);
  // CONFIG REWRITE: the file with the current values; comments and order stay.
  Status Rewrite() const;
  const std::string& path() const { return path_; }

  // A hook may refuse the new value with an error; nothing has changed then.  Set before the
  // server starts; called on the thread of CONFIG SET.
  void OnChange(Key key, std::function<Status()> hook);

  // The sample file: every key with its summary, commented out at its default.
  static std::string Sample();
  // The table for --help.
  static std::string Help();

 private:
  struct Value {
    std::atomic<int64_t> number{0};
    std::atomic<double> real{0};
    std::string text;
  };
  struct Parsed {
    int64_t number = 0;
    double real = 0;
    std::string text;
  };

  const Value& Slot(Key key) const { return values_[static_cast<size_t>(key)]; }
  static Result<Parsed> Parse(const Setting& setting, std::string_view text);
  void Store(const Setting& setting, Parsed parsed);
  Parsed Load(const Setting& setting) const;

  std::array<Value, kSettingCount> values_;
  mutable Mutex mu_;  // the texts
  std::array<std::function<Status()>, kSettingCount> hooks_;
  std::string path_;
};

}  // namespace moonpool::server
