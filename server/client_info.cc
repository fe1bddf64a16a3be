#include "server/client_info.h"

#include <algorithm>

#include <spdlog/fmt/fmt.h>

#include "server/command.h"

namespace moonpool::server {

std::string ClientInfo::Line(int64_t now_ms) const {
  const Command* command = last_command.load(std::memory_order_relaxed);
  std::string command_name = "NULL";
  if (command != nullptr) {
    command_name = command->container.empty()
                       ? std::string(command->name)
                       : std::string(command->container) + "|" + std::string(command->name);
  }
  std::string flags;
  if (unix_socket.load(std::memory_order_relaxed)) flags += 'U';
  if (closing.load(std::memory_order_relaxed)) flags += 'A';
  if (flags.empty()) flags = "N";
  MutexLock lock(mu);
  return fmt::format(
      "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={} db=0 sub=0 psub=0 ssub=0 "
      "multi=-1 qbuf={} qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem={} "
      "tot-mem={} events=r cmd={} user=default redir=-1 resp={} lib-name={} lib-ver={} "
      "tot-net-in={} tot-net-out={} tot-cmds={} kv-session={}",
      id, address, local_address, fd, name, (now_ms - created_ms) / 1000,
      (now_ms - last_ms.load(std::memory_order_relaxed)) / 1000, flags, query_buffer_bytes.get(),
      output_bytes.get(), query_buffer_bytes.get() + output_bytes.get(), command_name,
      resp.load(std::memory_order_relaxed), library, library_version, net_input_bytes.get(),
      net_output_bytes.get(), commands.get(), session.load(std::memory_order_relaxed));
}

void ClientRegistry::Add(std::shared_ptr<ClientInfo> info) {
  MutexLock lock(mu_);
  clients_.emplace(info->id, std::move(info));
}

void ClientRegistry::Remove(uint64_t id) {
  MutexLock lock(mu_);
  clients_.erase(id);
}

std::shared_ptr<ClientInfo> ClientRegistry::Find(uint64_t id) const {
  MutexLock lock(mu_);
  const auto found = clients_.find(id);
  return found == clients_.end() ? nullptr : found->second;
}

std::vector<std::shared_ptr<ClientInfo>> ClientRegistry::All() const {
  std::vector<std::shared_ptr<ClientInfo>> all;
  {
    MutexLock lock(mu_);
    for (const auto& [id, info] : clients_) all.push_back(info);
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a->id < b->id; });
  return all;
}

size_t ClientRegistry::size() const {
  MutexLock lock(mu_);
  return clients_.size();
}

}  // namespace moonpool::server
