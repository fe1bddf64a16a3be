#include "server/config.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "protocol/request_parser.h"

namespace moonpool::server {

namespace {

std::vector<std::string_view> SplitWords(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t i = 0; i < text.size();) {
    const size_t end = std::min(text.find(' ', i), text.size());
    if (end > i) words.push_back(text.substr(i, end - i));
    i = end + 1;
  }
  return words;
}

std::string FormatReal(double value) {
  char text[32];
  return {text, static_cast<size_t>(std::snprintf(text, sizeof(text), "%.6g", value))};
}

// One line of a configuration file, with the quoting of inline commands.
Result<std::vector<std::string>> SplitLine(const std::string& line) {
  protocol::RequestParser parser;
  protocol::ParserLimits limits;
  limits.max_inline_bytes = 1 << 20;
  // A first word that begins with '*' would be taken for an array.
  const std::string frame = " " + line + "\n";
  if (parser.Parse(frame, limits) != protocol::RequestParser::Event::kCommand) {
    return Fail(ErrorCode::kInvalidArgument, "unbalanced quotes");
  }
  std::vector<std::string> words;
  for (const auto& argument : parser.arguments()) {
    words.push_back(parser.InlineText().substr(argument.offset, argument.size));
  }
  return words;
}

std::string JoinWords(const std::vector<std::string>& words, size_t first) {
  std::string text;
  for (size_t i = first; i < words.size(); ++i) {
    if (i > first) text += ' ';
    text += words[i];
  }
  return text;
}

std::string Quote(const std::string& text) {
  const bool plain = !text.empty() && text.find_first_of("\"'\\\n\r\t#") == std::string::npos &&
                     text.front() != ' ' && text.back() != ' ';
  if (plain) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') {
      quoted += "\\n";
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

Error Annotate(Error error, const Setting& setting) {
  error.message = std::string(setting.name) + ": " + error.message;
  return error;
}

std::string Wrap(std::string_view text, size_t width, std::string_view indent) {
  std::string out;
  size_t column = 0;
  for (const std::string_view word : SplitWords(text)) {
    if (column > 0 && column + 1 + word.size() > width) {
      out += '\n';
      column = 0;
    }
    if (column == 0) {
      out += indent;
    } else {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
  }
  return out + '\n';
}

std::string FormatBound(const Setting& setting, double value) {
  if (setting.type == SettingType::kReal) return FormatReal(value);
  auto number = static_cast<uint64_t>(std::max(value, 0.0));
  if (setting.type != SettingType::kMemory || number == 0) {
    return std::to_string(static_cast<int64_t>(value));
  }
  size_t unit = 0;
  static constexpr const char* kUnits[] = {"", "kb", "mb", "gb", "tb"};
  for (; number % 1024 == 0 && unit + 1 < std::size(kUnits); ++unit) number /= 1024;
  return std::to_string(number) + kUnits[unit];
}

// "Default: 64kb (bytes); 4kb to 16mb; at start only"
std::string Facts(const Setting& setting) {
  std::string facts = "Default: ";
  facts += setting.default_text.empty() ? "empty" : setting.default_text;
  if (!setting.unit.empty()) facts += " (" + std::string(setting.unit) + ")";
  if (setting.type == SettingType::kChoice) facts += "; one of: " + std::string(setting.choices);
  if (setting.type == SettingType::kBoolean) facts += "; yes or no";
  if (setting.most > setting.least) {
    facts += "; " + FormatBound(setting, setting.least) + " to " +
             FormatBound(setting, setting.most);
  }
  facts += setting.change == Change::kLive ? "; CONFIG SET" : "; at start only";
  return facts;
}

}  // namespace

const std::array<Setting, kSettingCount>& Config::Settings() {
  using enum SettingType;
  using enum Change;
  static const auto settings = [] {
    std::array<Setting, kSettingCount> rows;
    size_t i = 0;
    std::string_view section;
#define SECTION(title) section = title;
#define SETTING(id, name, type, text, least, most, change, unit, choices, summary) \
  rows[i++] = Setting{Key::id, section, name, type, text, least, most, change, unit, choices, summary};
#include "server/settings.inc"
#undef SETTING
#undef SECTION
    return rows;
  }();
  return settings;
}

const Setting* Config::Find(std::string_view name) {
  for (const Setting& setting : Settings()) {
    if (protocol::EqualsIgnoreCase(setting.name, name)) return &setting;
  }
  return nullptr;
}

Config::Config() {
  for (const Setting& setting : Settings()) {
    auto parsed = Parse(setting, setting.default_text);
    MOONPOOL_CHECK(parsed);
    Store(setting, std::move(*parsed));
  }
}

Result<Config::Parsed> Config::Parse(const Setting& setting, std::string_view text) {
  Parsed parsed;
  const auto invalid = [&](const std::string& what) {
    return Fail(ErrorCode::kInvalidArgument, "argument " + what);
  };
  const auto in_bounds = [&](double value) {
    return setting.most <= setting.least || (value >= setting.least && value <= setting.most);
  };
  const std::string bounds = "must be between " +
                             std::to_string(static_cast<int64_t>(setting.least)) + " and " +
                             std::to_string(static_cast<int64_t>(setting.most)) + " inclusive";
  switch (setting.type) {
    case SettingType::kInteger: {
      const auto number = protocol::ParseInt64(text);
      if (!number) return invalid("couldn't be parsed into an integer");
      if (!in_bounds(static_cast<double>(*number))) return invalid(bounds);
      parsed.number = *number;
      break;
    }
    case SettingType::kMemory: {
      const auto bytes = protocol::ParseMemorySize(text);
      if (!bytes || *bytes > static_cast<uint64_t>(INT64_MAX)) {
        return invalid("must be a memory value, such as 512mb or 2gb");
      }
      if (!in_bounds(static_cast<double>(*bytes))) return invalid(bounds);
      parsed.number = static_cast<int64_t>(*bytes);
      break;
    }
    case SettingType::kBoolean:
      if (!protocol::EqualsIgnoreCase(text, "yes") && !protocol::EqualsIgnoreCase(text, "no")) {
        return invalid("must be 'yes' or 'no'");
      }
      parsed.number = protocol::EqualsIgnoreCase(text, "yes") ? 1 : 0;
      break;
    case SettingType::kReal: {
      const auto value = protocol::ParseLongDouble(text);
      if (!value) return invalid("couldn't be parsed into a number");
      parsed.real = static_cast<double>(*value);
      if (!in_bounds(parsed.real)) {
        return invalid("must be between " + FormatReal(setting.least) + " and " +
                       FormatReal(setting.most));
      }
      break;
    }
    case SettingType::kChoice: {
      const auto choices = SplitWords(setting.choices);
      const auto choice =
          std::find_if(choices.begin(), choices.end(), [&](std::string_view candidate) {
            return protocol::EqualsIgnoreCase(candidate, text);
          });
      if (choice == choices.end()) {
        return invalid("must be one of the following: " + std::string(setting.choices));
      }
      parsed.number = choice - choices.begin();
      parsed.text = *choice;
      break;
    }
    case SettingType::kText:
      parsed.text = text;
      break;
  }
  // Keys that only answer clients who ask, because what they switch does not exist here.
  if ((setting.key == Key::kAppendOnly && parsed.number != 0) ||
      (setting.key == Key::kSave && !parsed.text.empty())) {
    return invalid("is not supported: " + std::string(setting.summary));
  }
  return parsed;
}

void Config::Store(const Setting& setting, Parsed parsed) {
  Value& value = values_[static_cast<size_t>(setting.key)];
  value.number.store(parsed.number, std::memory_order_relaxed);
  value.real.store(parsed.real, std::memory_order_relaxed);
  MutexLock lock(mu_);
  value.text = std::move(parsed.text);
}

Config::Parsed Config::Load(const Setting& setting) const {
  return {number(setting.key), real(setting.key), text(setting.key)};
}

std::string Config::text(Key key) const {
  MutexLock lock(mu_);
  return Slot(key).text;
}

std::string Config::Show(const Setting& setting) const {
  switch (setting.type) {
    case SettingType::kInteger:
    case SettingType::kMemory:
      return std::to_string(number(setting.key));
    case SettingType::kBoolean:
      return boolean(setting.key) ? "yes" : "no";
    case SettingType::kReal:
      return FormatReal(real(setting.key));
    case SettingType::kChoice:
    case SettingType::kText:
      return text(setting.key);
  }
  __builtin_unreachable();
}

Status Config::SetAtStart(std::string_view name, std::string_view text) {
  const Setting* setting = Find(name);
  if (setting == nullptr) {
    return Fail(ErrorCode::kInvalidArgument,
                "unknown key '" + std::string(name) + "'; --help lists them all");
  }
  auto parsed = Parse(*setting, text);
  if (!parsed) return tl::unexpected<Error>(Annotate(std::move(parsed.error()), *setting));
  Store(*setting, std::move(*parsed));
  return {};
}

Status Config::LoadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return FailErrno("reading the configuration file " + path);
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const auto fail = [&](const std::string& what) {
      return Fail(ErrorCode::kInvalidArgument,
                  path + ":" + std::to_string(number) + ": " + what);
    };
    const size_t start = line.find_first_not_of(" \t\r");
    if (start == std::string::npos || line[start] == '#') continue;
    auto words = SplitLine(line);
    if (!words) return fail(words.error().message);
    if (words->empty()) continue;
    if (words->size() < 2) return fail("'" + (*words)[0] + "' has no value");
    if (Status set = SetAtStart((*words)[0], JoinWords(*words, 1)); !set) {
      return fail(set.error().message);
    }
  }
  char* absolute = realpath(path.c_str(), nullptr);
  path_ = absolute == nullptr ? path : absolute;
  std::free(absolute);
  return {};
}

Status Config::SetLive(
    const std::vector<std::pair<std::string_view, std::string_view>>& changes) {
  std::vector<std::pair<const Setting*, Parsed>> parsed;
  for (const auto& [name, text] : changes) {
    const Setting* setting = Find(name);
    if (setting == nullptr) {
      return Fail(ErrorCode::kInvalidArgument, "Unknown option or number of arguments for "
                                               "CONFIG SET - '" + std::string(name) + "'");
    }
    const auto refuse = [&name = name](const std::string& why) {
      return Fail(ErrorCode::kInvalidArgument,
                  "CONFIG SET failed (possibly related to argument '" + std::string(name) +
                      "') - " + why);
    };
    for (const auto& [earlier, value] : parsed) {
      if (earlier == setting) return refuse("duplicate parameter");
    }
    if (setting->change == Change::kStart) return refuse("can't set immutable config");
    auto value = Parse(*setting, text);
    if (!value) return refuse(value.error().message);
    parsed.emplace_back(setting, std::move(*value));
  }
  std::vector<std::pair<const Setting*, Parsed>> before;
  for (auto& [setting, value] : parsed) {
    before.emplace_back(setting, Load(*setting));
    Store(*setting, std::move(value));
    const auto& hook = hooks_[static_cast<size_t>(setting->key)];
    if (!hook) continue;
    if (Status applied = hook(); !applied) {
      while (!before.empty()) {
        const Setting* undone = before.back().first;
        Store(*undone, std::move(before.back().second));
        before.pop_back();
        // What was accepted before is accepted again.
        const auto& undo = hooks_[static_cast<size_t>(undone->key)];
        if (undone != setting && undo) [[maybe_unused]] const Status again = undo();
      }
      return Fail(ErrorCode::kInvalidArgument,
                  "CONFIG SET failed (possibly related to argument '" +
                      std::string(setting->name) + "') - " + applied.error().message);
    }
  }
  return {};
}

void Config::OnChange(Key key, std::function<Status()> hook) {
  hooks_[static_cast<size_t>(key)] = std::move(hook);
}

Status Config::Rewrite() const {
  if (path_.empty()) {
    return Fail(ErrorCode::kInvalidArgument, "The server is running without a config file");
  }
  std::array<bool, kSettingCount> written{};
  std::string out;
  std::ifstream file(path_);
  std::string line;
  const auto row = [&](const Setting& setting) {
    return std::string(setting.name) + " " + Quote(Show(setting)) + "\n";
  };
  while (std::getline(file, line)) {
    const size_t start = line.find_first_not_of(" \t\r");
    const auto words = SplitLine(line);
    const Setting* setting = nullptr;
    if (start != std::string::npos && line[start] != '#' && words && !words->empty()) {
      setting = Find((*words)[0]);
    }
    if (setting == nullptr) {
      out += line + "\n";
    } else if (!std::exchange(written[static_cast<size_t>(setting->key)], true)) {
      out += row(*setting);
    }
  }
  file.close();
  bool first = true;
  for (const Setting& setting : Settings()) {
    const auto standard = Parse(setting, setting.default_text);
    const Parsed now = Load(setting);
    const bool changed = standard->number != now.number || standard->real != now.real ||
                         standard->text != now.text;
    if (!changed || written[static_cast<size_t>(setting.key)]) continue;
    if (std::exchange(first, false)) out += "# Written by CONFIG REWRITE\n";
    out += row(setting);
  }
  // A new file in the place of the old one: a crash leaves either, never half of one.
  const std::string next = path_ + ".rewrite." + std::to_string(getpid());
  std::ofstream rewritten(next, std::ios::trunc);
  rewritten << out;
  rewritten.close();
  if (!rewritten || std::rename(next.c_str(), path_.c_str()) != 0) {
    auto error = FailErrno("rewriting " + path_);
    std::remove(next.c_str());
    return error;
  }
  return {};
}

std::string Config::Sample() {
  std::string out =
      "# Moonpool's configuration.  Every key, at its default; `moonpool-server this-file` reads\n"
      "# it, and every key is also a flag: --key value.  Sizes take kb, mb, gb (1024) and k, m, g\n"
      "# (1000).  This file is written by `moonpool-server --sample-config`.\n";
  std::string_view section;
  for (const Setting& setting : Settings()) {
    if (setting.section != section) {
      section = setting.section;
      out += "\n# ---- " + std::string(section) + " ";
      out.append(90 - section.size(), '-');
      out += "\n";
    }
    out += "\n" + Wrap(setting.summary, 96, "# ") + Wrap(Facts(setting) + ".", 96, "# ");
    out += "# " + std::string(setting.name) + " " + Quote(std::string(setting.default_text)) + "\n";
  }
  return out;
}

std::string Config::Help() {
  std::string out;
  std::string_view section;
  for (const Setting& setting : Settings()) {
    if (setting.section != section) {
      section = setting.section;
      out += "\n" + std::string(section) + "\n";
    }
    out += "  --" + std::string(setting.name) + "\n";
    out += Wrap(std::string(setting.summary) + ". " + Facts(setting) + ".", 90, "      ");
  }
  return out;
}

}  // namespace moonpool::server
