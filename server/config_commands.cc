// CONFIG.
#include <vector>

#include "protocol/glob.h"
#include "server/command_families.h"
#include "server/log.h"
#include "server/server.h"

namespace moonpool::server {

namespace {

void ConfigGet(Context& c) {
  // A key that was asked for by its name is shown as it was spelt.
  std::vector<std::pair<std::string_view, const Setting*>> shown;
  for (const Setting& setting : Config::Settings()) {
    for (size_t i = 2; i < c.size(); ++i) {
      if (!protocol::GlobMatch(c[i], setting.name, true)) continue;
      const bool named = protocol::EqualsIgnoreCase(c[i], setting.name);
      shown.emplace_back(named ? c[i] : setting.name, &setting);
      break;
    }
  }
  c.reply.Map(shown.size());
  for (const auto& [name, setting] : shown) {
    c.reply.Bulk(name);
    c.reply.Bulk(c.server.config().Show(*setting));
  }
}

void ConfigSet(Context& c) {
  if (c.size() % 2 != 0) return c.SyntaxError();
  std::vector<std::pair<std::string_view, std::string_view>> changes;
  for (size_t i = 2; i < c.size(); i += 2) changes.emplace_back(c[i], c[i + 1]);
  if (Status set = c.server.config().SetLive(changes); !set) {
    return c.Error("ERR " + set.error().message);
  }
  c.reply.Ok();
}

void ConfigResetStat(Context& c) {
  c.server.ResetStats();
  c.reply.Ok();
}

void ConfigRewrite(Context& c) {
  if (c.server.config().path().empty()) {
    return c.Error("ERR The server is running without a config file");
  }
  if (Status rewritten = c.server.config().Rewrite(); !rewritten) {
    return c.Error("ERR Rewriting config file: " + rewritten.error().message);
  }
  Log(LogLevel::kNotice, "CONFIG REWRITE wrote {}", c.server.config().path());
  c.reply.Ok();
}

constexpr uint32_t kFlags = kAdmin | kNoScript | kLoading | kStale;

const Command kConfig[] = {
    {"get", ConfigGet, -3, kFlags, NoKeys(), "", "server", "2.0.0", "O(N)",
     "Returns the effective values of configuration parameters.", "parameter [parameter ...]"},
    {"help", CommandHelp, 2, kLoading | kStale, NoKeys(), "", "server", "5.0.0", "O(1)",
     "Returns helpful text about the different subcommands.", ""},
    {"resetstat", ConfigResetStat, 2, kFlags, NoKeys(), "", "server", "2.0.0", "O(1)",
     "Resets the server's statistics.", ""},
    {"rewrite", ConfigRewrite, 2, kFlags, NoKeys(), "", "server", "2.8.0", "O(N)",
     "Persists the effective configuration to file.", ""},
    {"set", ConfigSet, -4, kFlags, NoKeys(), "", "server", "2.0.0", "O(N)",
     "Sets configuration parameters in-flight.",
     "<parameter value> [<parameter value> ...]"},
};

}  // namespace

const Command kConfigCommand = {
    "config", UnknownSubcommand, -2, 0, NoKeys(), "", "server", "2.0.0",
    "Depends on subcommand.", "A container for server configuration commands.", "", {}, kConfig};

}  // namespace moonpool::server
