#include "protocol/descriptor.h"

namespace moonpool::protocol {

namespace {

char* AppendNumber(char* p, uint64_t value) {
  *p++ = ':';
  p = FormatUint64(p, value);
  *p++ = '\r';
  *p++ = '\n';
  return p;
}

char* AppendText(char* p, std::string_view text) {
  std::memcpy(p, text.data(), text.size());
  return p + text.size();
}

}  // namespace

std::string_view TierName(Tier tier) {
  switch (tier) {
    case Tier::kDram:
      return "dram";
    case Tier::kCxl:
      return "cxl";
    case Tier::kGpu:
      return "gpu";
  }
  __builtin_unreachable();
}

std::optional<Tier> ParseTier(std::string_view name) {
  if (name == "dram") return Tier::kDram;
  if (name == "cxl") return Tier::kCxl;
  if (name == "gpu") return Tier::kGpu;
  return std::nullopt;
}

void AppendDescriptor(ReplyBuffer& out, const Descriptor& d) {
  char* const start = out.Reserve(Descriptor::kFields * (kMaxInt64Text + 3) + 8);
  char* p = AppendText(start, "*9\r\n");
  p = AppendNumber(p, d.region);
  p = AppendNumber(p, d.offset);
  p = AppendNumber(p, d.length);
  p = AppendNumber(p, d.slot);
  p = AppendNumber(p, d.generation);
  p = d.crc ? AppendNumber(p, *d.crc) : AppendText(p, out.resp() >= 3 ? "_\r\n" : "$-1\r\n");
  *p++ = '+';
  p = AppendText(p, TierName(d.tier));
  p = AppendText(p, "\r\n");
  p = AppendNumber(p, d.lease);
  *p++ = ':';
  p = FormatInt64(p, d.lease_ms);
  p = AppendText(p, "\r\n");
  out.Advance(static_cast<size_t>(p - start));
}

}  // namespace moonpool::protocol
