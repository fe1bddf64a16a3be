// Commands about the connection itself.
#include <algorithm>
#include <set>

#include "protocol/decimal.h"
#include "protocol/glob.h"
#include "server/connection.h"
#include "server/loop.h"
#include "server/server.h"
#include "server/session.h"
#include "server/version.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;

void Ping(Context& c) {
  if (c.size() > 2) return c.Error("ERR wrong number of arguments for 'ping' command");
  c.size() == 2 ? c.reply.Bulk(c[1]) : c.reply.Simple("PONG");
}

void Echo(Context& c) { c.reply.Bulk(c[1]); }

void Quit(Context& c) {
  c.reply.Ok();
  c.connection.CloseAfterReply();
}

void Select(Context& c) {
  const auto db = c.Integer(1);
  if (!db) return;
  if (*db < INT32_MIN || *db > INT32_MAX) {
    return c.Error("ERR value is out of range, value must between -2147483648 and 2147483647");
  }
  if (*db != 0) {
    return c.Error("ERR DB index is out of range: Moonpool has one database, number 0");
  }
  c.reply.Ok();
}

bool Authenticate(Context& c, std::string_view user, std::string_view password) {
  if (user != "default" || !c.server.CheckPassword(password)) {
    c.Error("WRONGPASS invalid username-password pair or user is disabled.");
    return false;
  }
  c.connection.set_authenticated(true);
  return true;
}

void Auth(Context& c) {
  if (c.size() > 3) return c.SyntaxError();
  if (c.size() == 2 && !c.server.password_required()) {
    return c.Error(
        "ERR AUTH <password> called without any password configured for the default user. Are you "
        "sure your configuration is correct?");
  }
  const bool named = c.size() == 3;
  if (Authenticate(c, named ? c[1] : "default", c[named ? 2 : 1])) c.reply.Ok();
}

// Redis's rule for names and library fields: printable, no spaces.
bool Printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char ch) { return ch >= '!' && ch <= '~'; });
}

bool SetName(Context& c, std::string_view name) {
  if (!Printable(name)) {
    c.Error("ERR Client names cannot contain spaces, newlines or special characters.");
    return false;
  }
  MutexLock lock(c.connection.info().mu);
  c.connection.info().name = name;
  return true;
}

void Hello(Context& c) {
  size_t i = 1;
  int version = c.connection.resp();
  if (c.size() > 1) {
    const auto wanted = protocol::ParseInt64(c[1]);
    if (!wanted) return c.Error("ERR Protocol version is not an integer or out of range");
    if (*wanted < 2 || *wanted > 3) return c.Error("NOPROTO unsupported protocol version");
    version = static_cast<int>(*wanted);
    i = 2;
  }
  std::optional<std::string_view> name;
  for (; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "AUTH") && i + 2 < c.size()) {
      if (!Authenticate(c, c[i + 1], c[i + 2])) return;
      i += 2;
    } else if (EqualsIgnoreCase(c[i], "SETNAME") && i + 1 < c.size()) {
      name = c[++i];
    } else {
      return c.Error("ERR Syntax error in HELLO option '" + std::string(c[i]) + "'");
    }
  }
  if (!c.connection.authenticated()) {
    return c.Error(
        "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH "
        "<user> <pass> option can be used to authenticate the client and select the RESP protocol "
        "version at the same time");
  }
  if (name && !SetName(c, *name)) return;
  c.connection.set_resp(version);
  Reply& r = c.reply;
  r.Map(7);
  r.Bulk("server");
  r.Bulk("moonpool");
  r.Bulk("version");
  r.Bulk(kRedisVersion);
  r.Bulk("proto");
  r.Integer(version);
  r.Bulk("id");
  r.Integer(static_cast<int64_t>(c.connection.id()));
  r.Bulk("mode");
  r.Bulk("standalone");
  r.Bulk("role");
  r.Bulk("master");
  r.Bulk("modules");
  r.Array(0);
}

void Reset(Context& c) {
  // CLIENT REPLY OFF ends here; a SKIP was for this command still.
  const bool skipped = c.connection.reply_mode() == ReplyMode::kSkipping;
  c.connection.ResetState();
  if (!skipped) c.reply.Simple("RESET");
}

void ClientId(Context& c) { c.reply.Integer(static_cast<int64_t>(c.connection.id())); }

void ClientInfoCommand(Context& c) {
  c.reply.Verbatim(c.connection.info().Line(c.now_ms) + "\n");
}

void ClientList(Context& c) {
  std::optional<std::set<uint64_t>> ids;
  bool none = false;
  for (size_t i = 2; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "TYPE") && c.size() == 4) {
      const std::string_view type = c[++i];
      if (EqualsIgnoreCase(type, "master") || EqualsIgnoreCase(type, "replica") ||
          EqualsIgnoreCase(type, "slave") || EqualsIgnoreCase(type, "pubsub")) {
        none = true;
      } else if (!EqualsIgnoreCase(type, "normal")) {
        return c.Error("ERR Unknown client type '" + std::string(type) + "'");
      }
    } else if (EqualsIgnoreCase(c[i], "ID") && i + 1 < c.size()) {
      ids.emplace();
      while (++i < c.size()) {
        const auto id = protocol::ParseInt64(c[i]);
        if (!id) return c.Error("ERR Invalid client ID");
        ids->insert(static_cast<uint64_t>(*id));
      }
    } else {
      return c.SyntaxError();
    }
  }
  std::string text;
  for (const auto& info : c.server.clients().All()) {
    if (none || (ids && !ids->contains(info->id))) continue;
    text += info->Line(c.now_ms) + "\n";
  }
  c.reply.Verbatim(text);
}

void ClientGetName(Context& c) {
  ClientInfo& info = c.connection.info();
  MutexLock lock(info.mu);
  info.name.empty() ? c.reply.Null() : c.reply.Bulk(info.name);
}

void ClientSetName(Context& c) {
  if (SetName(c, c[2])) c.reply.Ok();
}

void ClientSetInfo(Context& c) {
  const bool name = EqualsIgnoreCase(c[2], "lib-name");
  if (!name && !EqualsIgnoreCase(c[2], "lib-ver")) {
    return c.Error("ERR Unrecognized option '" + std::string(c[2]) + "'");
  }
  if (!Printable(c[3])) {
    return c.Error("ERR " + std::string(name ? "lib-name" : "lib-ver") +
                   " cannot contain spaces, newlines or special characters.");
  }
  MutexLock lock(c.connection.info().mu);
  (name ? c.connection.info().library : c.connection.info().library_version) = c[3];
  c.reply.Ok();
}

void ClientReply(Context& c) {
  if (EqualsIgnoreCase(c[2], "ON")) {
    c.connection.set_reply_mode(ReplyMode::kOn);
    c.reply.Ok();
  } else if (EqualsIgnoreCase(c[2], "OFF")) {
    c.connection.set_reply_mode(ReplyMode::kOff);
  } else if (EqualsIgnoreCase(c[2], "SKIP")) {
    if (c.connection.reply_mode() != ReplyMode::kOff) {
      c.connection.set_reply_mode(ReplyMode::kSkipNext);
    }
  } else {
    c.SyntaxError();
  }
}

void Kill(const ClientInfo& info) {
  info.loop->Post([loop = info.loop, id = info.id] {
    if (Connection* connection = loop->Find(id)) connection->Close();
  });
}

void ClientKill(Context& c) {
  const bool old_form = c.size() == 3;
  std::optional<uint64_t> id;
  std::optional<std::string> address, local_address;
  bool skip_me = !old_form;
  bool none = false;
  if (old_form) {
    address = std::string(c[2]);
  } else {
    for (size_t i = 2; i < c.size(); i += 2) {
      if (i + 1 >= c.size()) return c.SyntaxError();
      const std::string_view word = c[i];
      const std::string_view value = c[i + 1];
      if (EqualsIgnoreCase(word, "ID")) {
        const auto number = protocol::ParseInt64(value);
        if (!number || *number < 1) return c.Error("ERR client-id should be greater than 0");
        id = static_cast<uint64_t>(*number);
      } else if (EqualsIgnoreCase(word, "ADDR")) {
        address = std::string(value);
      } else if (EqualsIgnoreCase(word, "LADDR")) {
        local_address = std::string(value);
      } else if (EqualsIgnoreCase(word, "TYPE")) {
        none |= EqualsIgnoreCase(value, "master") || EqualsIgnoreCase(value, "replica") ||
                EqualsIgnoreCase(value, "slave") || EqualsIgnoreCase(value, "pubsub");
        if (!none && !EqualsIgnoreCase(value, "normal")) {
          return c.Error("ERR Unknown client type '" + std::string(value) + "'");
        }
      } else if (EqualsIgnoreCase(word, "USER")) {
        if (value != "default") {
          return c.Error("ERR No such user '" + std::string(value) + "'");
        }
      } else if (EqualsIgnoreCase(word, "SKIPME")) {
        if (!EqualsIgnoreCase(value, "yes") && !EqualsIgnoreCase(value, "no")) {
          return c.SyntaxError();
        }
        skip_me = EqualsIgnoreCase(value, "yes");
      } else {
        return c.SyntaxError();
      }
    }
  }
  int64_t killed = 0;
  bool me = false;
  for (const auto& info : c.server.clients().All()) {
    if (none || (id && *id != info->id) || (address && *address != info->address) ||
        (local_address && *local_address != info->local_address)) {
      continue;
    }
    if (info->id == c.connection.id()) {
      if (skip_me) continue;
      me = true;
    } else if (!info->closing.exchange(true)) {
      Kill(*info);
    }
    ++killed;
  }
  if (!old_form) {
    c.reply.Integer(killed);
  } else if (killed == 0) {
    c.Error("ERR No such client");
  } else {
    c.reply.Ok();
  }
  // Itself last, so that the reply still goes out.
  if (me) c.connection.CloseAfterReply();
}

constexpr uint32_t kAlways = kNoScript | kLoading | kStale;

const Command kClient[] = {
    {"getname", ClientGetName, 2, kAlways, NoKeys(), "connection", "connection", "2.6.9", "O(1)",
     "Returns the name of the connection.", ""},
    {"help", CommandHelp, 2, kLoading | kStale, NoKeys(), "connection", "connection", "5.0.0",
     "O(1)", "Returns helpful text about the different subcommands.", ""},
    {"id", ClientId, 2, kAlways, NoKeys(), "connection", "connection", "5.0.0", "O(1)",
     "Returns the unique client ID of the connection.", ""},
    {"info", ClientInfoCommand, 2, kAlways, NoKeys(), "connection", "connection", "6.2.0", "O(1)",
     "Returns information about the connection.", ""},
    {"kill", ClientKill, -3, kAlways | kAdmin, NoKeys(), "connection dangerous", "connection",
     "2.4.0", "O(N)", "Terminates open connections.",
     "<ip:port | <[ID client-id] [TYPE <normal | master | replica | pubsub>] [USER username] "
     "[ADDR ip:port] [LADDR ip:port] [SKIPME <yes | no>]>>"},
    {"list", ClientList, -2, kAlways | kAdmin, NoKeys(), "connection dangerous", "connection",
     "2.4.0", "O(N)", "Lists open connections.",
     "[TYPE <normal | master | replica | pubsub>] [ID <client-id [client-id ...]>]"},
    {"reply", ClientReply, 3, kAlways, NoKeys(), "connection", "connection", "3.2.0", "O(1)",
     "Instructs the server whether to reply to commands.", "<ON | OFF | SKIP>"},
    {"setinfo", ClientSetInfo, 4, kAlways, NoKeys(), "connection", "connection", "7.2.0", "O(1)",
     "Sets information specific to the client or connection.",
     "<LIB-NAME libname | LIB-VER libver>"},
    {"setname", ClientSetName, 3, kAlways, NoKeys(), "connection", "connection", "2.6.9", "O(1)",
     "Sets the connection name.", "connection-name"},
};

const Command kCommands[] = {
    {"auth", Auth, -2, kAlways | kFast | kNoAuth | kAllowBusy, NoKeys(), "connection",
     "connection", "1.0.0", "O(1)", "Authenticates the connection.", "[username] password"},
    {"client", UnknownSubcommand, -2, 0, NoKeys(), "", "connection", "2.4.0",
     "Depends on subcommand.", "A container for client connection commands.", "", {}, kClient},
    {"echo", Echo, 2, kLoading | kStale | kFast, NoKeys(), "connection", "connection", "1.0.0",
     "O(1)", "Returns the given string.", "message"},
    {"hello", Hello, -1, kAlways | kFast | kNoAuth | kAllowBusy, NoKeys(), "connection",
     "connection", "6.0.0", "O(1)", "Handshakes with the server.",
     "[<protover [AUTH <username password>] [SETNAME clientname]>]"},
    {"ping", Ping, -1, kFast, NoKeys(), "connection", "connection", "1.0.0", "O(1)",
     "Returns the server's liveliness response.", "[message]"},
    {"quit", Quit, -1, kAlways | kFast | kNoAuth | kAllowBusy, NoKeys(), "connection",
     "connection", "1.0.0", "O(1)", "Closes the connection.", ""},
    {"reset", Reset, 1, kAlways | kFast | kNoAuth | kAllowBusy, NoKeys(), "connection",
     "connection", "6.2.0", "O(1)", "Resets the connection.", ""},
    {"select", Select, 2, kLoading | kStale | kFast, NoKeys(), "connection", "connection",
     "1.0.0", "O(1)", "Changes the selected database.", "index"},
};

}  // namespace

std::span<const Command> ConnectionCommands() { return kCommands; }

}  // namespace moonpool::server
