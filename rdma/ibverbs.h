// Verbs over libibverbs and librdmacm.
//
// Threads: any.
// Errors: kUnavailable where this machine has no RDMA (or this process may not use it); the message
// says what is missing and how to get it.
#pragma once

#include <functional>
#include <memory>

#include "rdma/verbs.h"

namespace moonpool::rdma {

Result<std::unique_ptr<Verbs>> OpenVerbs();

// For tests: what OpenVerbs() gives from now on in this process.  Null: the libraries again.
using VerbsMaker = std::function<Result<std::unique_ptr<Verbs>>()>;
void ReplaceVerbs(VerbsMaker maker);

}  // namespace moonpool::rdma
