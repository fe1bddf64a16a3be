#include "gpu/copy_routes.h"

#include <algorithm>
#include <string>

namespace moonpool::gpu {

namespace {

using Kind = Place::Kind;

// Two chunks: one is filled while the other is emptied; the third hides the hand-over.
constexpr size_t kChunks = 3;
// Chunks shorter than this cost more to start than to move.
constexpr uint64_t kLeastChunk = 256 << 10;

tl::unexpected<Error> Invalid(std::string message) {
  return Fail(ErrorCode::kInvalidArgument, std::move(message));
}

// So that a transfer has some chunks to overlap.
uint64_t ChunkBytes(uint64_t total, uint64_t most) {
  return std::clamp(total / 8, std::min(kLeastChunk, most), most);
}

// Pages `first` and following.  `planes` keeps the addresses of the result.
Pages From(const Pages& pages, uint32_t first, std::vector<char*>* planes) {
  Pages rest = pages;
  const auto skip = [&](size_t entry_bytes) {
    rest.table.entries = static_cast<const char*>(pages.table.entries) + first * entry_bytes;
  };
  switch (pages.table.kind) {
    case PageTable::Kind::kIndex32:
      skip(sizeof(int32_t));
      break;
    case PageTable::Kind::kIndex64:
    case PageTable::Kind::kPointers:
      skip(sizeof(int64_t));
      break;
    case PageTable::Kind::kNone:
      if (pages.planes.empty()) {
        rest.base += first * pages.page_stride;
        break;
      }
      planes->assign(pages.planes.begin(), pages.planes.end());
      for (char*& plane : *planes) plane += first * pages.page_stride;
      rest.planes = *planes;
      break;
  }
  return rest;
}

}  // namespace

bool CopyRoutes::Far(const Place& place) const {
  return place.kind == Kind::kDevice &&
         (place.device == nullptr || main_.device->LinkTo(*place.device) == Link::kNone);
}

Status CopyRoutes::Copy(std::span<const Piece> pieces, Checks* behind) {
  struct FarPiece {
    Piece piece;
    Place from;
    Place to;
  };
  std::vector<Piece> on_devices, with_host, by_engine;
  std::vector<FarPiece> far;
  for (const Piece& piece : pieces) {
    if (piece.bytes == 0) continue;
    if (piece.to == nullptr || piece.from == nullptr) return Invalid("an address to copy is null");
    const Result<Place> from = places_.Find(piece.from, piece.bytes);
    if (!from) return tl::unexpected(from.error());
    const Result<Place> to = places_.Find(piece.to, piece.bytes);
    if (!to) return tl::unexpected(to.error());
    if (Far(*from) || Far(*to)) {
      far.push_back({piece, *from, *to});
      continue;
    }
    const bool host = from->kind != Kind::kDevice || to->kind != Kind::kDevice;
    const bool reachable = from->kind != Kind::kPageable && to->kind != Kind::kPageable &&
                           (from->kind == Kind::kDevice || to->kind == Kind::kDevice);
    const bool one_device = from->device == to->device && from->device == main_.device;
    const uint64_t limit = host         ? limits_.engine_host
                           : one_device ? limits_.engine_same_device
                                        : limits_.engine_link;
    if (!reachable || piece.bytes >= limit) {
      by_engine.push_back(piece);
    } else {
      (host ? with_host : on_devices)
          .push_back({ForDevice(*to, piece.to), ForDevice(*from, piece.from), piece.bytes});
    }
  }
  Checks none;
  // Only what everything is in can check everything.
  const bool others = !by_engine.empty() || !far.empty();
  Status status = SendMany(on_devices, false, others || !with_host.empty() ? &none : behind);
  if (status) status = SendMany(with_host, true, others || !on_devices.empty() ? &none : behind);
  if (!status) return status;
  for (const Piece& piece : by_engine) {
    status = main_.device->CopyOne(main_.stream, piece);
    if (!status) return status;
  }
  for (const FarPiece& piece : far) {
    status = SendFar(piece.piece, piece.from, piece.to);
    if (!status) return status;
  }
  return status;
}

Status CopyRoutes::SendMany(const std::vector<Piece>& pieces, bool host, Checks* behind) {
  if (pieces.empty()) return {};
  // One piece gains nothing from a kernel.
  if (pieces.size() == 1 && behind->checks.empty()) {
    return main_.device->CopyOne(main_.stream, pieces.front());
  }
  Status status = main_.device->CopyMany(main_.stream, pieces, host, *behind);
  *behind = {};
  return status;
}

Result<Worker> CopyRoutes::NewWorker(Device* device) {
  Result<std::unique_ptr<Stream>> stream = device->NewStream();
  if (!stream) return tl::unexpected(std::move(stream.error()));
  const Worker worker{device, (*stream)->ref()};
  in_flight_.streams.emplace_back(device, std::move(*stream));
  if (Status status = Chain(main_, worker); !status) return tl::unexpected(status.error());
  return worker;
}

Result<Worker> CopyRoutes::WorkerFor(const Place& place) {
  if (!Far(place)) return main_;
  if (place.device == nullptr) {
    return Fail(ErrorCode::kUnavailable,
                "the memory is on a device that this process does not see; add it to "
                "CUDA_VISIBLE_DEVICES");
  }
  return NewWorker(place.device);
}

Result<std::vector<char*>> CopyRoutes::Chunks(uint64_t bytes, bool in_host_memory) {
  std::vector<char*> chunks;
  for (size_t i = 0; i < kChunks; ++i) {
    if (in_host_memory) {
      Result<std::unique_ptr<HostBlock>> block = main_.device->NewHostBlock(bytes);
      if (!block) return tl::unexpected(std::move(block.error()));
      const Result<Place> place = places_.Find((*block)->data(), bytes);
      if (!place) return tl::unexpected(place.error());
      chunks.push_back(ForDevice(*place, (*block)->data()));
      in_flight_.host_blocks.push_back(std::move(*block));
    } else {
      Result<std::unique_ptr<DeviceBlock>> block = main_.device->NewDeviceBlock(bytes);
      if (!block) return tl::unexpected(std::move(block.error()));
      chunks.push_back((*block)->data());
      in_flight_.device_blocks.push_back(std::move(*block));
    }
  }
  return chunks;
}

Status CopyRoutes::SendFar(const Piece& piece, const Place& from, const Place& to) {
  const Result<Worker> filler = WorkerFor(from);
  if (!filler) return tl::unexpected(filler.error());
  const Result<Worker> emptier = WorkerFor(to);
  if (!emptier) return tl::unexpected(emptier.error());
  const uint64_t chunk_bytes = ChunkBytes(piece.bytes, limits_.staging_chunk);
  Result<std::vector<char*>> chunks = Chunks(chunk_bytes, true);
  if (!chunks) return tl::unexpected(std::move(chunks.error()));
  Staging staging(*filler, *emptier, std::move(*chunks));
  for (uint64_t done = 0; done < piece.bytes; done += chunk_bytes) {
    const uint64_t part = std::min(chunk_bytes, piece.bytes - done);
    Status status = staging.Step(
        [&](char* chunk) {
          return filler->device->CopyOne(
              filler->stream, {chunk, static_cast<const char*>(piece.from) + done, part});
        },
        [&](char* chunk) {
          return emptier->device->CopyOne(emptier->stream,
                                          {static_cast<char*>(piece.to) + done, chunk, part});
        });
    if (!status) return status;
  }
  if (emptier->stream.handle == main_.stream.handle) return {};
  return Chain(*emptier, main_);
}

// A side of a page copy with addresses as the device sees them.
struct CopyRoutes::Side {
  Pages pages;
  Place place;
  bool table_on_host = false;
  std::vector<char*> addresses;  // shifted ones
};

Result<CopyRoutes::Side> CopyRoutes::PagesSide(const Pages& pages, const PageCopy& copy,
                                               const char* name) {
  Side side;
  side.pages = pages;
  if (pages.table.kind != PageTable::Kind::kNone && pages.table.entries != nullptr) {
    const Result<Place> table = places_.Find(pages.table.entries, 1);
    if (!table) return tl::unexpected(table.error());
    side.table_on_host = table->kind != Kind::kDevice;
  }
  const bool pointers = pages.table.kind == PageTable::Kind::kPointers;
  std::span<char* const> addresses = pages.planes;
  if (pointers && side.table_on_host) {
    addresses = {static_cast<char* const*>(pages.table.entries), copy.page_count};
  } else if (pages.planes.empty()) {
    addresses = {&pages.base, pages.base != nullptr ? 1u : 0u};
  }
  if (addresses.empty()) {
    // Pointers that only the device can read, and no hint: they point into its own memory.
    side.place = {Kind::kDevice, main_.device, 0, 0, 0};
    return side;
  }
  for (size_t i = 0; i < addresses.size(); ++i) {
    if (addresses[i] == nullptr) continue;  // Validate() says it better
    const Result<Place> place = places_.Find(addresses[i], copy.piece_bytes);
    if (!place) return tl::unexpected(place.error());
    if (i == 0) side.place = *place;
    if (place->kind == Kind::kPageable) {
      return Invalid(std::string(name) + " pages are in host memory that is not pinned: Pin() it");
    }
    if (place->kind != side.place.kind || place->device != side.place.device ||
        place->device_offset != side.place.device_offset) {
      return Invalid(std::string(name) +
                     " pages are in different kinds of memory: copy them apart");
    }
  }
  if (side.place.device_offset == 0) return side;
  if (addresses.data() == &pages.base) {
    side.pages.base += side.place.device_offset;
    return side;
  }
  side.addresses.assign(addresses.begin(), addresses.end());
  for (char*& address : side.addresses) address += side.place.device_offset;
  if (pointers) {
    side.pages.table = PageTable::Of(std::span<char* const>(side.addresses));
  } else {
    side.pages.planes = side.addresses;
  }
  return side;
}

Status CopyRoutes::CopyPages(const PageCopy& copy) {
  // The description first, as far as it can be told without knowing where the tables are.
  if (Status status = Validate(copy, false, false); !status) return status;
  const Result<Side> from = PagesSide(copy.from, copy, "source");
  if (!from) return tl::unexpected(from.error());
  const Result<Side> to = PagesSide(copy.to, copy, "destination");
  if (!to) return tl::unexpected(to.error());
  if (Status status = Validate(copy, from->table_on_host, to->table_on_host); !status)
    return status;
  PageCopy shifted = copy;
  shifted.from = from->pages;
  shifted.to = to->pages;

  if (Far(from->place) || Far(to->place)) {
    const Result<Worker> filler = WorkerFor(from->place);
    if (!filler) return tl::unexpected(filler.error());
    const Result<Worker> emptier = WorkerFor(to->place);
    if (!emptier) return tl::unexpected(emptier.error());
    return SendPages(shifted, *filler, *emptier, true);
  }
  const bool from_host = from->place.kind == Kind::kPinned;
  const bool to_host = to->place.kind == Kind::kPinned;
  if (shifted.bytes() >= limits_.staged_pages) {
    // Only runs of host memory are worth the copy engine.
    if (from_host && !to_host && IsContiguous(shifted.from, shifted)) {
      const Result<Worker> engine = NewWorker(main_.device);
      if (!engine) return tl::unexpected(engine.error());
      return SendPages(shifted, *engine, main_, false);
    }
    if (to_host && !from_host && IsContiguous(shifted.to, shifted)) {
      const Result<Worker> engine = NewWorker(main_.device);
      if (!engine) return tl::unexpected(engine.error());
      return SendPages(shifted, main_, *engine, false);
    }
  }
  return main_.device->CopyPages(main_.stream, shifted, from_host || to_host);
}

Status CopyRoutes::SendPages(const PageCopy& copy, const Worker& filler, const Worker& emptier,
                             bool through_host) {
  const uint64_t page_bytes = copy.plane_count * copy.piece_bytes;
  const uint64_t most = ChunkBytes(copy.bytes(), limits_.staging_chunk);
  const auto step =
      static_cast<uint32_t>(std::clamp<uint64_t>(most / page_bytes, 1, copy.page_count));
  Result<std::vector<char*>> chunks = Chunks(step * page_bytes, through_host);
  if (!chunks) return tl::unexpected(std::move(chunks.error()));
  Staging staging(filler, emptier, std::move(*chunks));
  std::vector<char*> from_planes, to_planes;
  // A leg whose other side is one run goes through the copy engine.
  const auto leg = [&](const Worker& worker, const PageCopy& part) -> Status {
    if (IsContiguous(part.from, part) && IsContiguous(part.to, part)) {
      return worker.device->CopyOne(worker.stream, {part.to.base, part.from.base, part.bytes()});
    }
    return worker.device->CopyPages(worker.stream, part, through_host);
  };
  for (uint32_t page = 0; page < copy.page_count; page += step) {
    PageCopy part = copy;
    part.page_count = std::min(step, copy.page_count - page);
    Pages run;
    run.plane_stride = copy.piece_bytes;
    run.page_stride = page_bytes;
    Status status = staging.Step(
        [&](char* chunk) {
          run.base = chunk;
          part.from = From(copy.from, page, &from_planes);
          part.to = run;
          return leg(filler, part);
        },
        [&](char* chunk) {
          run.base = chunk;
          part.from = run;
          part.to = From(copy.to, page, &to_planes);
          return leg(emptier, part);
        });
    if (!status) return status;
  }
  if (emptier.stream.handle == main_.stream.handle) return {};
  return Chain(emptier, main_);
}

}  // namespace moonpool::gpu
