// The file system that RocksDB gets to see: what RocksDB has no options for.
//
// Tables pass through the page cache even when the rest of the database does direct I/O.  They hold
// references to payload, a few bytes per MiB, and are read in pieces of 512 bytes, which cost a
// disk as much as a chunk of payload does.  Payload is read past RocksDB, see ssd_blob_file.h.
//
// Without `ssd-sync` files and folders are never synced.  Nothing of the SSD tier then outlives a
// crash of the machine (SsdStore sees it by the boot id and starts empty), and what a process has
// written outlives the process without being synced.  Each flush of a write buffer would wait for
// four syncs, about as long as for the writing itself.
#pragma once

#include <rocksdb/env.h>

#include <memory>

namespace moonpool::storage {

// On top of `base`'s file system; null: the real one.
std::unique_ptr<rocksdb::Env> NewSsdEnv(rocksdb::Env* base, bool sync);

}  // namespace moonpool::storage
