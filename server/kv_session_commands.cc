// KV.HELLO and KV.TOKEN: how a KV session begins, and what opens its transports.
#include <bit>
#include <optional>
#include <string>

#include "protocol/glob.h"
#include "server/attach_server.h"
#include "server/connection.h"
#include "server/kv_arguments.h"
#include "server/loop.h"
#include "server/rdma.h"
#include "server/server.h"
#include "server/session.h"
#include "storage/tenant.h"

namespace moonpool::server {

namespace {

using protocol::EqualsIgnoreCase;

// Those of the tenant's GPUs that `count` arguments from `index` on name.
storage::DeviceSet NumbersOf(const Context& c, size_t index, size_t count) {
  storage::DeviceSet set = 0;
  if (c.tenant.gpu() == nullptr) return set;
  const std::vector<storage::DeviceMemory*>& devices = c.tenant.gpu()->devices();
  for (size_t i = index; i < index + count; ++i) {
    for (size_t device = 0; device < devices.size(); ++device) {
      if (EqualsIgnoreCase(c[i], devices[device]->name())) set |= storage::DeviceSet{1} << device;
    }
  }
  return set;
}

// The entries of what goes over the attach socket, which one token opens for both.
void AppendAttached(Context& c, bool shm, storage::DeviceSet devices) {
  const protocol::AttachToken token = c.connection.session()->NewAttachToken();
  Reply& r = c.reply;
  const auto begin = [&](std::string_view name, size_t fields) {
    r.Map(fields);
    r.Bulk("name");
    r.Bulk(name);
    r.Bulk("attach");
    r.Bulk(c.server.attach_server()->address());
    r.Bulk("token");
    r.Bulk({token.data(), token.size()});
  };
  if (shm) begin("shm", 3);
  if (devices == 0) return;
  begin("cuda", 4);
  r.Bulk("devices");
  r.Array(static_cast<size_t>(std::popcount(devices)));
  for (size_t i = 0; i < c.tenant.gpu()->devices().size(); ++i) {
    if ((devices >> i & 1) != 0) r.Bulk(c.tenant.gpu()->devices()[i]->name());
  }
}

// RDMA's entry among the transports.
void AppendRdma(Context& c) {
  Rdma& rdma = *c.server.rdma();
  Reply& r = c.reply;
  r.Map(4);
  r.Bulk("name");
  r.Bulk("rdma");
  r.Bulk("port");
  r.Integer(rdma.port());
  r.Bulk("token");
  r.Bulk(rdma.NewToken(c.connection.session()->id()));
  r.Bulk("nics");
  const std::vector<Rdma::Nic> nics = rdma.nics();
  r.Array(nics.size());
  for (const Rdma::Nic& nic : nics) {
    r.Map(4);
    r.Bulk("name");
    r.Bulk(nic.name);
    r.Bulk("protocol");
    r.Bulk(nic.protocol);
    r.Bulk("speed_mbps");
    r.Integer(static_cast<int64_t>(nic.speed_mbps));
    r.Bulk("addresses");
    r.Array(nic.addresses.size());
    for (const std::string& address : nic.addresses) r.Bulk(address);
  }
}

}  // namespace

void KvHello(Context& c) {
  const auto version = c.Integer(1);
  if (!version) return;
  if (*version != 1) {
    return c.Error("ERR KV.HELLO: this server speaks version 1, not " + std::string(c[1]));
  }
  bool want_shm = true;
  bool want_rdma = true;
  bool want_cuda = false;
  bool redirect = false;
  std::optional<storage::DeviceSet> named_devices;
  std::optional<std::string_view> host;
  for (size_t i = 2; i < c.size(); ++i) {
    if (EqualsIgnoreCase(c[i], "TRANSPORTS") && i + 1 < c.size()) {
      const auto count = c.Integer(++i);
      if (!count) return;
      if (*count < 0 || static_cast<uint64_t>(*count) > c.size() - i - 1) return c.SyntaxError();
      want_shm = want_rdma = false;
      for (int64_t t = 0; t < *count; ++t) {
        ++i;
        want_shm |= EqualsIgnoreCase(c[i], "shm");
        want_rdma |= EqualsIgnoreCase(c[i], "rdma");
        want_cuda |= EqualsIgnoreCase(c[i], "cuda");
      }
    } else if (EqualsIgnoreCase(c[i], "DEVICES") && i + 1 < c.size()) {
      const auto count = c.Integer(++i);
      if (!count) return;
      if (*count < 0 || static_cast<uint64_t>(*count) > c.size() - i - 1) return c.SyntaxError();
      named_devices = NumbersOf(c, i + 1, static_cast<size_t>(*count));
      i += static_cast<size_t>(*count);
    } else if (EqualsIgnoreCase(c[i], "HOST") && i + 1 < c.size()) {
      host = c[++i];
    } else if (EqualsIgnoreCase(c[i], "REDIRECT") && i + 1 < c.size() &&
               (EqualsIgnoreCase(c[i + 1], "yes") || EqualsIgnoreCase(c[i + 1], "no"))) {
      redirect = EqualsIgnoreCase(c[++i], "yes");
    } else {
      return c.SyntaxError();
    }
  }
  const bool attaches =
      c.server.attach_server() != nullptr && (!host || *host == c.server.host_id());
  const bool shm = want_shm && attaches;
  storage::DeviceSet devices = 0;
  if (want_cuda && attaches && c.tenant.gpu() != nullptr) {
    devices = (storage::DeviceSet{1} << c.tenant.gpu()->devices().size()) - 1;
    if (named_devices) devices &= *named_devices;
  }
  const bool rdma = want_rdma && c.server.rdma() != nullptr;
  c.connection.set_session(nullptr);  // the old one goes before its successor comes
  c.connection.set_session(std::make_unique<Session>(c.server, c.connection, redirect, rdma, devices));
  const Config& config = c.server.config();
  Reply& r = c.reply;
  r.Map(9);
  r.Bulk("version");
  r.Integer(1);
  r.Bulk("node");
  r.Bulk(c.server.run_id());
  r.Bulk("epoch");
  r.Integer(static_cast<int64_t>(c.server.epoch()));
  r.Bulk("host");
  r.Bulk(c.server.host_id());
  r.Bulk("session");
  r.Integer(static_cast<int64_t>(c.connection.session()->id()));
  r.Bulk("tenant");
  r.Bulk(c.tenant.name());
  r.Bulk("limits");
  r.Map(5);
  const std::pair<std::string_view, Key> limits[] = {
      {"bulk-threshold", Key::kBulkThreshold},    {"max-batch-keys", Key::kMaxBatchKeys},
      {"max-value-bytes", Key::kProtoMaxBulkLen}, {"lease-default-ms", Key::kLeaseDefault},
      {"lease-max-ms", Key::kLeaseMax},
  };
  for (const auto& [name, key] : limits) {
    r.Bulk(name);
    r.Integer(config.number(key));
  }
  r.Bulk("transports");
  r.Array(1 + (shm ? 1 : 0) + (rdma ? 1 : 0) + (devices != 0 ? 1 : 0));
  if (shm || devices != 0) AppendAttached(c, shm, devices);
  if (rdma) AppendRdma(c);
  r.Map(1);
  r.Bulk("name");
  r.Bulk("tcp");
  r.Bulk("regions");
  const auto regions = c.tenant.pool().Regions();
  r.Array(regions.size());
  for (const storage::RegionInfo& region : regions) {
    r.Array(region.device.empty() ? 3 : 4);
    r.Integer(region.id);
    r.Bulk(protocol::TierName(region.tier));
    r.Integer(static_cast<int64_t>(region.bytes));
    if (!region.device.empty()) r.Bulk(region.device);
  }
}

Session* RdmaSession(Context& c) {
  Session* const session = c.connection.session();
  if (session == nullptr) {
    c.Error("ERR KV.HELLO comes first");
  } else if (c.server.rdma() == nullptr) {
    c.Error("ERR there is no RDMA here: " + c.server.rdma_off());
  } else if (!session->rdma()) {
    c.Error("ERR this session has no RDMA: name it among the TRANSPORTS of KV.HELLO");
  } else {
    return session;
  }
  return nullptr;
}

void KvToken(Context& c) {
  if (c.size() > 2) return c.SyntaxError();
  const auto count = c.size() == 2 ? c.Integer(1) : 1;
  if (!count) return;
  Session* const session = RdmaSession(c);
  if (session == nullptr) return;
  const size_t most = c.server.rdma()->queue_pairs_per_session();
  if (*count < 1 || static_cast<uint64_t>(*count) > most) {
    return c.Error("ERR count is out of range (1 to rdma-queue-pairs-per-session, " +
                   std::to_string(most) + ")");
  }
  c.reply.Array(static_cast<size_t>(*count));
  for (int64_t i = 0; i < *count; ++i) c.reply.Bulk(c.server.rdma()->NewToken(session->id()));
}

}  // namespace moonpool::server
