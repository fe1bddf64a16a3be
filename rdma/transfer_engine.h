// Moves transfers over lanes.
//
// 1. A transfer is cut into slices; small values that lie one behind the other share one.
// 2. Slices go to the lane that would have them soonest, by what each delivers; each pass posts one
//    chain per lane.
// 3. When all slices of a checked value are posted, and those that are not complete are on one
// lane,
//    a READ of its generation follows them there, fenced (but for iWARP, which cannot).  Otherwise it
//    is read when all are complete, on any lane.  Either way it is after the last of the value's bytes, and slots that
//    are near each other are read together.
// 4. A lane that fails gives its slices back as they are flushed; the others take them.  Nothing
// that
//    the lane could still touch is used for anything else before: a transfer is done only when
//    nothing of it is posted.
//
// Threads: one at a time; lanes, transfers and domains must outlive their use.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "rdma/lane.h"
#include "rdma/transfer.h"

namespace moonpool::rdma {

struct EngineOptions {
  uint64_t slice_bytes = 1 << 20;         // at most
  uint64_t least_slice_bytes = 64 << 10;  // a value is not cut smaller to occupy more lanes
  uint64_t window_bytes = 16 << 20;       // under way on one lane
  uint64_t staging_bytes = 8 << 20;       // for local memory that is not registered
  uint32_t tries = 4;                     // of one slice
  // A lane on which nothing ends for so long has failed: when another one is open on which something
  // does, or nothing is under way; and when there is none.  (The NIC gives up by itself at some time,
  // too.)
  int64_t stall_ms = 100;
  int64_t lone_stall_ms = 5000;
  int64_t drain_ms = 50;  // one that does not flush what is posted is destroyed
};

struct EngineCounters {
  uint64_t slices = 0;
  uint64_t merged_values = 0;     // that shared a slice with others
  uint64_t generation_reads = 0;  // requests, not values
  uint64_t fenced_reads = 0;      // of those
  uint64_t retried_slices = 0;
  uint64_t staged_bytes = 0;
};

class TransferEngine {
 public:
  // Staging memory and landing places are registered in `domains` when they are first needed.
  TransferEngine(const Domains& domains, const EngineOptions& options);
  ~TransferEngine();

  void AddLane(Lane* lane);
  // REQUIRES: it is fenced, and Progress() has seen that.
  void RemoveLane(Lane* lane);
  const std::vector<Lane*>& lanes() const { return lanes_; }

  // Begins; the end is transfer->done().
  void Start(Transfer* transfer);
  // Takes completions and posts what may be posted.  True when anything happened.  `messages`: what
  // came over the lanes meanwhile.
  using Messages = std::vector<std::pair<Lane*, Message>>;
  bool Progress(Messages* messages);
  // What is not posted ends as kUnreachable; what is posted ends when its lanes fail.
  void GiveUp(Transfer* transfer, const std::string& why);
  // Destroys the lane's queue pair, which fences it.
  void Destroy(Lane* lane);
  // Every few milliseconds while something is posted: lanes that are stuck.  True when there was
  // one.
  bool CheckStuck(int64_t now_ms);

  // Parts that slices wait for, because Lane::remote() does not have them.  Told of once, and of
  // one region one at a time, until KeysCame() or NotThere().
  struct Missing {
    Lane* lane = nullptr;
    uint32_t remote = 0;
    uint64_t offset = 0;
  };
  std::vector<Missing> TakeMissing() { return std::exchange(missing_, {}); }
  // What was missing is in the lane's remote keys now: what waited is looked at again.
  void KeysCame(const Lane* lane, uint32_t remote);
  // The other side of the lane has no such thing.
  void NotThere(const Lane* lane, uint32_t remote);

  const EngineCounters& counters() const { return counters_; }

 private:
  // A READ of generations under way, of one request or several.
  struct Check {
    struct Member {
      Transfer* transfer = nullptr;
      uint32_t item = 0;
      uint32_t word = 0;  // in landing_
    };
    std::vector<Member> members;
    uint32_t requests = 0;  // not complete
    Completion::Status status = Completion::Status::kOk;
  };
  struct Queued {
    Transfer* transfer = nullptr;
    uint32_t slice = 0;
  };
  struct Asked {
    Missing what;
    bool denied = false;
  };
  using Member = std::pair<Transfer*, uint32_t>;

  // transfer_cutting.cc
  void Cut(Transfer* transfer);
  uint64_t SliceBytes(const Transfer& transfer) const;
  void CutItem(Transfer* transfer, uint32_t position, uint64_t slice_bytes, Transfer::Slice* open);
  void AddPiece(Transfer* transfer, Transfer::Slice* slice, const LocalPiece& piece);
  void CloseSlice(Transfer* transfer, Transfer::Slice* open);
  void SplitSlice(const Queued& queued, uint64_t length);

  // transfer_engine.cc
  bool Assign();
  bool AssignFront();
  Lane* BestLane(const Queued& queued, bool* any_carries, bool* any_missing);
  const RemotePart* Reachable(Lane& lane, const Transfer::Slice& slice, bool* missing);
  bool KeysFit(const Lane& lane, const Transfer& transfer, const Transfer::Slice& slice) const;
  bool MayCarry(const Lane& lane, const Transfer& transfer, const Transfer::Slice& slice) const;
  void PostSlice(Lane* lane, const Queued& queued, const RemotePart& part);
  void Ended(Lane* lane, const Lane::End& end);
  void SliceEnded(Lane* lane, const Queued& queued, const Lane::End& end);
  void FinishSlice(const Queued& queued, Outcome fate);
  void Close(Transfer* transfer, uint32_t item);
  void Requeue(const Queued& queued);
  void LookAgain();
  void DropQueued(Transfer* transfer);
  void Measure(Lane* lane);

  // staging.cc
  bool EnsureStaging();
  bool Stage(const Transfer& transfer, Transfer::Slice* slice);
  void Unstage(const Transfer& transfer, Transfer::Slice* slice, bool copy);

  // generation_checks.cc
  bool PostChecks();
  void PostCheck(Lane* lane, std::vector<Member>* members, bool fenced);
  void CheckEnded(uint64_t index, const Lane::End& end);
  Lane* CheckLane() const;
  void Unreachable(Transfer* transfer, uint32_t item, const std::string& why);

  const Domains& domains_;
  const EngineOptions options_;
  EngineCounters counters_;

  std::vector<Lane*> lanes_;
  int64_t checked_ms_ = 0;  // by CheckStuck()
  std::deque<Queued> queue_;
  uint64_t queued_bytes_ = 0;
  std::vector<Transfer*> transfers_;  // not done
  std::vector<Missing> missing_;
  std::vector<Asked> asked_;

  // Checked values all of whose slices are complete.
  std::vector<Member> to_check_;
  bool look_for_checks_ = false;
  std::deque<Check> checks_;
  std::vector<uint64_t> free_checks_;
  size_t open_checks_ = 0;
  std::vector<uint64_t> landing_;
  size_t landing_used_ = 0;
  std::unique_ptr<Registration> landing_keys_;

  std::vector<char> staging_;
  std::vector<int32_t> free_staging_;
  std::unique_ptr<Registration> staging_keys_;
  std::string staging_error_;

  std::vector<Lane::End> ends_;
  std::vector<Message> lane_messages_;
  std::vector<Piece> pieces_;
};

}  // namespace moonpool::rdma
