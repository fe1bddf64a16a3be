// Containers that fill a file of their own and are listed by the family they belong to.
#pragma once

#include "server/command.h"

namespace moonpool::server {

extern const Command kCommandCommand;  // command_commands.cc
extern const Command kConfigCommand;   // config_commands.cc

// info.cc: INFO for the given sections (none: the default ones).
void InfoCommand(Context& context);
// server_rdma.cc: INFO rdma, appended to `text`.
void RdmaSection(Context& context, std::string& text);
// server_gpu.cc: INFO gpu.
void GpuSection(Context& context, std::string& text);

}  // namespace moonpool::server
