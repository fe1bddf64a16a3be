#include "client/hello.h"

#include <unistd.h>

#include <fstream>

#include "protocol/decimal.h"

namespace moonpool::client {

namespace {

// As the server builds its own: one boot of one kernel, one network namespace.
std::string HostId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  std::getline(file, boot);
  char net[64] = "net:[0]";
  const ssize_t n = readlink("/proc/self/ns/net", net, sizeof(net) - 1);
  if (n > 0) net[n] = '\0';
  return boot + "/" + net;
}

// Calls on_field(name, header of its value) for each field of a map, which must read the value.
template <typename OnField>
bool ReadMap(RespStream& stream, const ReplyHeader& header, OnField&& on_field) {
  if (header.elements() < 0 || header.elements() % 2 != 0) return stream.Unexpected("KV.HELLO");
  const int64_t fields = header.elements() / 2;
  std::string name;
  for (int64_t i = 0; i < fields; ++i) {
    ReplyHeader value;
    if (!stream.ReadText(&name) || !stream.Next(&value)) return false;
    if (!on_field(name, value)) return false;
  }
  return true;
}

bool ReadNumber(RespStream& stream, const ReplyHeader& header, uint64_t* number) {
  if (header.type != ':' || header.value < 0) return stream.Skip(header);
  *number = static_cast<uint64_t>(header.value);
  return true;
}

bool ReadWord(RespStream& stream, const ReplyHeader& header, std::string* word) {
  word->clear();
  return stream.AppendText(header, word);
}

bool ReadNic(RespStream& stream, const ReplyHeader& header, RdmaOffer::Nic* nic) {
  return ReadMap(stream, header, [&](const std::string& name, const ReplyHeader& value) {
    if (name == "name") return ReadWord(stream, value, &nic->name);
    if (name == "protocol") return ReadWord(stream, value, &nic->protocol);
    if (name == "speed_mbps") return ReadNumber(stream, value, &nic->speed_mbps);
    if (name != "addresses" || value.elements() < 0) return stream.Skip(value);
    const int64_t count = value.elements();
    for (int64_t i = 0; i < count; ++i) {
      std::string address;
      if (!stream.ReadText(&address)) return false;
      nic->addresses.push_back(std::move(address));
    }
    return true;
  });
}

bool ReadTransport(RespStream& stream, const ReplyHeader& header, HelloAnswer* answer) {
  std::string transport, attach, token;
  uint64_t port = 0;
  std::vector<RdmaOffer::Nic> nics;
  std::vector<std::string> devices;
  const bool read = ReadMap(stream, header, [&](const std::string& name, const ReplyHeader& value) {
    if (name == "name") return ReadWord(stream, value, &transport);
    if (name == "attach") return ReadWord(stream, value, &attach);
    if (name == "token") return ReadWord(stream, value, &token);
    if (name == "port") return ReadNumber(stream, value, &port);
    const int64_t count = value.elements();
    if (name == "devices" && count >= 0) {
      for (int64_t i = 0; i < count; ++i) {
        if (!stream.ReadText(&devices.emplace_back())) return false;
      }
      return true;
    }
    if (name != "nics" || count < 0) return stream.Skip(value);
    for (int64_t i = 0; i < count; ++i) {
      ReplyHeader nic;
      if (!stream.Next(&nic) || !ReadNic(stream, nic, &nics.emplace_back())) return false;
    }
    return true;
  });
  if (!read) return false;
  if (transport == "shm") {
    answer->attach = std::move(attach);
    answer->token = std::move(token);
  } else if (transport == "cuda") {
    answer->devices = std::move(devices);
  } else if (transport == "rdma" && port > 0 && port <= UINT16_MAX) {
    answer->rdma = RdmaOffer{0, 0, static_cast<uint16_t>(port), std::move(token), std::move(nics)};
  }
  return true;
}

}  // namespace

void WordsOfHello(RespStream& stream, bool want_shm, bool want_rdma,
                  std::span<const std::string> devices) {
  const bool want_cuda = !devices.empty();
  const int transports = 1 + (want_shm ? 1 : 0) + (want_cuda ? 1 : 0) + (want_rdma ? 1 : 0);
  stream.Begin(4 + static_cast<size_t>(transports) + (want_shm ? 2 : 0) +
               (want_cuda ? 2 + devices.size() : 0));
  stream.Word("KV.HELLO");
  stream.Word("1");
  stream.Word("TRANSPORTS");
  stream.Word(static_cast<int64_t>(transports));
  if (want_shm) stream.Word("shm");
  if (want_cuda) stream.Word("cuda");
  if (want_rdma) stream.Word("rdma");
  stream.Word("tcp");
  if (want_shm) {
    stream.Word("HOST");
    stream.Word(HostId());
  }
  if (want_cuda) {
    stream.Word("DEVICES");
    stream.Word(static_cast<int64_t>(devices.size()));
    for (const std::string& device : devices) stream.Word(device);
  }
}

bool ReadHello(RespStream& stream, const ReplyHeader& header, HelloAnswer* answer) {
  const bool read = ReadMap(stream, header, [&](const std::string& name, const ReplyHeader& value) {
    if (name == "epoch") return ReadNumber(stream, value, &answer->epoch);
    if (name == "session") return ReadNumber(stream, value, &answer->session);
    if (name == "limits" && value.elements() >= 0) {
      return ReadMap(stream, value, [&](const std::string& limit, const ReplyHeader& number) {
        uint64_t most_keys = 0;
        if (limit == "bulk-threshold") {
          return ReadNumber(stream, number, &answer->limits.bulk_threshold);
        }
        if (limit != "max-batch-keys") return stream.Skip(number);
        if (!ReadNumber(stream, number, &most_keys)) return false;
        if (most_keys > 0) answer->limits.max_batch_keys = most_keys;
        return true;
      });
    }
    if (name != "transports" || value.elements() < 0) return stream.Skip(value);
    const int64_t count = value.elements();
    for (int64_t i = 0; i < count; ++i) {
      ReplyHeader entry;
      if (!stream.Next(&entry) || !ReadTransport(stream, entry, answer)) return false;
    }
    return true;
  });
  if (read && answer->rdma) {
    answer->rdma->epoch = answer->epoch;
    answer->rdma->session = answer->session;
  }
  return read;
}

}  // namespace moonpool::client
