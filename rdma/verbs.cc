#include "rdma/verbs.h"

namespace moonpool::rdma {

std::string_view ProtocolName(Protocol protocol) {
  switch (protocol) {
    case Protocol::kInfiniBand:
      return "InfiniBand";
    case Protocol::kRoceV1:
      return "RoCE v1";
    case Protocol::kRoceV2:
      return "RoCE v2";
    case Protocol::kIwarp:
      return "iWARP";
  }
  __builtin_unreachable();
}

}  // namespace moonpool::rdma
