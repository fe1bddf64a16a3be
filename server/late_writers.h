// Clients whose sessions are over, and whose copies may be on their way into memory of devices yet.
//
// What such a client had reserved there, ExtentPool gives to nobody before its WriterGone().  That
// is called when one of two things proves that nothing is on its way any more:
//   1. The client says so over the attach socket (AttachMessage::kDone), which outlives a session.
//   2. Its process is gone: a pidfd of the socket's peer can be read.  Linux tells that (do_exit():
//      exit_notify()) when every thread has let go of its files and their release() has run
//      (exit_files(), exit_task_work()); and NVIDIA's driver frees within the release() of its
//      control file all that was made through it, among that the channels that carry the copies
//      (rm_cleanup_file_private() in its open kernel modules).
// End of file on the attach socket is neither, and no clock is asked.
//
// The second is no proof where something else keeps a dead process's files of the driver open or
// does its work: a child that was forked when CUDA had been initialized, and lives on without
// exec(); the server of CUDA's MPS; a driver that was told to put off such work
// (RmClientListDeferredFree), or puts it off while the machine is being suspended.  There, clients
// should prefer dram, from where the server moves values on.
//
// Threads: any.  One of its own waits.  The pools must outlive it; what they hold back when it goes
// they hold back to their end.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <unordered_map>

#include "protocol/mutex.h"
#include "protocol/status.h"
#include "protocol/unique_fd.h"
#include "storage/bulk_value.h"

namespace moonpool::server {

// A pidfd of the process that connected the socket: SO_PEERPIDFD, and before Linux 6.5 SO_PEERCRED
// and pidfd_open(2).  An error says why there is none.
Result<UniqueFd> PeerProcess(int socket);

class LateWriters {
 public:
  using FindProcess = std::function<Result<UniqueFd>(int socket)>;
  // `find` empty: PeerProcess().
  explicit LateWriters(FindProcess find = nullptr);
  ~LateWriters();

  // For a session that begins: the process at the other end of its attach socket.  Empty: its end
  // would not be seen, which is counted, and logged when the reason is another than the last.
  UniqueFd PeerOf(int socket) EXCLUDES(mu_);
  // For one that has ended: tells the pool when its client writes no more.
  void Await(storage::ExtentPool& pool, storage::SessionId writer, UniqueFd socket,
             UniqueFd process) EXCLUDES(mu_);

  // Who is waited for.
  size_t size() const EXCLUDES(mu_);
  uint64_t unwatched() const EXCLUDES(mu_);
  std::string unwatched_reason() const EXCLUDES(mu_);

 private:
  struct Writer {
    storage::ExtentPool* pool = nullptr;
    UniqueFd socket;  // none once its end was read
    UniqueFd process;
  };
  void Run();
  bool Watch(int fd, uint64_t name) const;
  // Whether it said that it is done, as far as it has said anything.
  bool SaysDone(storage::SessionId id) EXCLUDES(mu_);
  void Gone(storage::SessionId id) EXCLUDES(mu_);

  const FindProcess find_;
  const UniqueFd epoll_;
  const UniqueFd stop_;
  mutable Mutex mu_;
  // Taken out by the thread alone.
  std::unordered_map<storage::SessionId, Writer> writers_ GUARDED_BY(mu_);
  uint64_t unwatched_ GUARDED_BY(mu_) = 0;
  std::string unwatched_reason_ GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace moonpool::server
