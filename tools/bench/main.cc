// moonpool-bench replay | compare | pd | embedding | policy | ssd | gpu | gpu-server | rdma
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <string>

#include <CLI/CLI.hpp>

#include "tools/bench/compare.h"
#include "tools/bench/embedding.h"
#include "tools/bench/failure.h"
#include "tools/bench/gpu.h"
#include "tools/bench/gpu_server.h"
#include "tools/bench/pd.h"
#include "tools/bench/policy.h"
#include "tools/bench/replay.h"
#include "tools/bench/trace_families.h"
#include "tools/bench/ssd.h"
#ifdef MOONPOOL_HAVE_RDMA
#include "tools/bench/rdma.h"
#endif

namespace {

using namespace moonpool::bench;

void AddOutput(CLI::App* mode, CommonOptions* common) {
  mode->add_option("--json", common->json, "write the results as JSON to this file; -: to stdout");
  mode->add_flag("--quick", common->quick, "less work: done in under 60 s");
}

void AddCommon(CLI::App* mode, CommonOptions* common, bool with_url) {
  AddOutput(mode, common);
  mode->add_option("--server", common->server,
                   "the moonpool-server to start (default: the one built with this program, "
                   "else from PATH)");
  if (with_url) {
    mode->add_option("--url", common->url, "use this running server instead of starting one");
  }
}

void AddReplay(CLI::App* app, ReplayOptions* options) {
  AddCommon(app, &options->common, true);
  CLI::Option* trace =
      app->add_option("--trace", options->trace, "a trace in the Mooncake JSONL format")
          ->check(CLI::ExistingFile);
  app->add_flag_callback("--generate", [] {}, "generate a trace (the default without --trace)")
      ->excludes(trace);
  app->add_option("--requests", options->requests, "only this many requests")
      ->check(CLI::PositiveNumber);
  app->add_option("--seed", options->seed, "of the generated trace")->capture_default_str();
  app->add_option("--save-trace", options->save_trace, "write the trace to this file as well");
  app->add_flag("--dry-run", options->dry_run, "only print what the trace is like");
  app->add_option("--clients", options->clients, "client threads (default: one per core)")
      ->check(CLI::Range(1, 1024));
  app->add_option("--speed", options->speed, "fast, realtime, or a factor of real time")
      ->capture_default_str();
  app->add_option("--transport", options->transport,
                  "auto, shm, rdma or tcp; several with commas run one after the other")
      ->capture_default_str();
  app->add_option("--bytes-per-token", options->bytes_per_token,
                  "of KV cache; 131072 is Llama-3-8B in bf16")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--block-tokens", options->block_tokens, "tokens in a block of the trace")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--scale", options->scale,
                  "make blocks this many times smaller; fit: as the server's memory asks for")
      ->capture_default_str();
  app->add_option("--capacity", options->capacity,
                  "maxmemory of the server started (default: a quarter of what is free, at most "
                  "4gb)");
  app->add_flag("!--no-warm", options->warm, "do not fault the pool in before the clock starts");
  app->add_flag("--warm-url", options->warm_url,
                "do so with --url as well; it may evict keys of others");
  app->add_flag("!--no-verify", options->verify, "do not check the bytes that are read");
  app->add_option("--model", options->model, "first part of the keys")->capture_default_str();
}

void AddCompare(CLI::App* app, CompareOptions* options) {
  AddCommon(app, &options->common, false);
  app->add_option("--rows", options->rows, "only rows whose id or name matches this expression");
  app->add_flag("--list", options->list, "list the rows and stop");
  app->add_option("--reps", options->reps, "repetitions (default: 5; with --quick 1)")
      ->check(CLI::Range(1, 1000));
  app->add_option("--plot", options->plot, "draw the result into this PNG file (needs gnuplot)");
  app->add_option("--memory", options->memory, "maxmemory of the servers started")
      ->capture_default_str();
}

void AddPd(CLI::App* app, PdOptions* options) {
  AddCommon(app, &options->common, true);
  app->add_option("--model", options->model, "llama-3-8b, llama-3-70b-tp8 or deepseek-v3")
      ->capture_default_str();
  app->add_option("--writers", options->writers, "prefill writers")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app->add_option("--readers", options->readers, "decode readers")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app->add_option("--requests", options->requests, "requests handed over")
      ->check(CLI::PositiveNumber);
  app->add_option("--tokens", options->tokens, "prompt length")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--block-tokens", options->block_tokens, "tokens in a block")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--layers", options->layers, "instead of the model's")
      ->check(CLI::Range(1, 1000));
  app->add_option("--scale", options->scale, "make blocks this many times smaller")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app->add_option("--prefill-tokens-per-s", options->prefill_tokens_per_s,
                  "how fast the modelled prefill computes")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--poll-us", options->poll_us, "pause between a reader's looks for a layer")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
}

void AddEmbedding(CLI::App* app, EmbeddingOptions* options) {
  AddCommon(app, &options->common, false);
  app->add_option("--rows", options->gather_rows, "rows in one gather")
      ->check(CLI::Range(1, 10'000'000));
  app->add_option("--table", options->table_rows, "rows in the table")
      ->check(CLI::Range(1, 100'000'000));
  app->add_option("--bytes", options->sizes, "sizes of a row")
      ->check(CLI::Range(16, 1 << 20))
      ->capture_default_str();
  app->add_option("--reps", options->reps, "repetitions")->check(CLI::Range(1, 1000));
}

void AddPolicy(CLI::App* app, PolicyOptions* options) {
  AddOutput(app, &options->common);
  CLI::Option* trace =
      app->add_option("--trace", options->trace, "a trace in the Mooncake JSONL format")
          ->check(CLI::ExistingFile);
  std::string kinds = "conversation";
  for (const TraceFamily& family : TraceFamilies()) kinds += ", " + family.name;
  app->add_option("--generate", options->generate,
                  "generate traces instead, of these kinds, with commas; all: " + kinds)
      ->capture_default_str()
      ->excludes(trace);
  app->add_option("--requests", options->requests, "only this many requests")
      ->check(CLI::PositiveNumber);
  app->add_option("--seed", options->seed, "of generated traces")->capture_default_str();
  app->add_option("--capacity", options->capacity,
                  "of the cache, several with commas: a share of the trace's distinct blocks "
                  "(at most 1, with a point) or a size")
      ->capture_default_str();
  app->add_option("--block-bytes", options->block_bytes, "what a block takes, for a size")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
}

void AddSsd(CLI::App* app, SsdModeOptions* options) {
  AddCommon(app, &options->common, false);
  app->add_option("--directory", options->directory,
                  "on the disk to measure (default: the system's temporary folder); what is made "
                  "there is removed");
  app->add_option("--rows", options->rows, "only rows whose id or name matches this expression");
  app->add_flag("--list", options->list, "list the rows and stop");
  app->add_option("--reps", options->reps, "repetitions (default: 5; with --quick 1)")
      ->check(CLI::Range(1, 1000));
  app->add_option("--trace", options->trace,
                  "a trace in the Mooncake JSONL format for the rows about hits after a restart "
                  "(default: generated)")
      ->check(CLI::ExistingFile);
}

void AddGpu(CLI::App* app, GpuModeOptions* options) {
  AddOutput(app, &options->common);
  app->add_option("--rows", options->rows, "only rows whose id or name matches this expression");
  app->add_flag("--list", options->list, "list the rows and stop");
  app->add_option("--reps", options->reps, "repetitions (default: 7; with --quick 3)")
      ->check(CLI::Range(1, 1000));
  app->add_option("--device", options->device, "UUID of the GPU (default: the first)");
}

void AddGpuServer(CLI::App* app, GpuServerModeOptions* options) {
  AddCommon(app, &options->common, false);
  app->add_option("--rows", options->rows, "only rows whose id or name matches this expression");
  app->add_flag("--list", options->list, "list the rows and stop");
  app->add_option("--reps", options->reps, "repetitions (default: 5; with --quick 3)")
      ->check(CLI::Range(1, 1000));
  app->add_option("--device", options->device, "UUID of the GPU (default: the first)");
  app->add_option("--most-seconds", options->most_seconds,
                  "begin no row after so long (default: measure all)")
      ->check(CLI::PositiveNumber);
}

#ifdef MOONPOOL_HAVE_RDMA
void AddRdma(CLI::App* app, RdmaModeOptions* options) {
  AddCommon(app, &options->common, false);
  app->add_option("--devices", options->devices, "only these devices, with commas; * stands for any");
  app->add_option("--exclude", options->exclude, "not these");
  app->add_option("--rows", options->rows, "only rows whose id or name matches this expression");
  app->add_flag("--list", options->list, "list the rows and stop");
  app->add_option("--reps", options->reps, "repetitions (default: 5; with --quick 3)")
      ->check(CLI::Range(1, 1000));
  app->add_option("--fail-nic", options->fail_nic,
                  "take this network interface down for the row about recovery (needs root)");
}
#endif

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures Moonpool: replays traces, compares with redis-server, models prefill and "
               "decode hand-over, gathers embeddings, compares eviction policies, the SSD tier "
               "with its disk, and GPU memory with raw CUDA calls.");
  app.require_subcommand(1);
  ReplayOptions replay;
  CompareOptions compare;
  PdOptions pd;
  EmbeddingOptions embedding;
  PolicyOptions policy;
  SsdModeOptions ssd;
  GpuModeOptions gpu;
  GpuServerModeOptions gpu_server;
  AddReplay(app.add_subcommand("replay", "a serving trace through a server, every byte checked"),
            &replay);
  AddCompare(app.add_subcommand("compare", "the same work on Moonpool and on redis-server"),
             &compare);
  AddPd(app.add_subcommand("pd", "prefill writers hand blocks to decode readers, layer by layer"),
        &pd);
  AddEmbedding(app.add_subcommand("embedding", "gathers of many small rows"), &embedding);
  AddPolicy(app.add_subcommand("policy", "hit ratios of the eviction policies, without any bytes"),
            &policy);
  AddSsd(app.add_subcommand("ssd", "the SSD tier and what its disk does without it"), &ssd);
  AddGpu(app.add_subcommand("gpu", "copies to, from and within GPU memory beside raw CUDA calls"),
         &gpu);
  AddGpuServer(app.add_subcommand("gpu-server",
                                  "values to and from GPU memory through a server and libmoonpool, "
                                  "beside raw CUDA calls"),
               &gpu_server);
#ifdef MOONPOOL_HAVE_RDMA
  RdmaModeOptions rdma;
  AddRdma(app.add_subcommand("rdma", "batched reads beside the device's own READ loop, over a server and over none"), &rdma);
#endif
  CLI11_PARSE(app, argc, argv);
  std::string command_line;
  for (int i = 1; i < argc; ++i) command_line += (i > 1 ? " " : "") + std::string(argv[i]);
  for (CommonOptions* common :
       {&replay.common, &compare.common, &pd.common, &embedding.common, &policy.common,
        &ssd.common, &gpu.common, &gpu_server.common}) {
    common->command_line = command_line;
  }
#ifdef MOONPOOL_HAVE_RDMA
  rdma.common.command_line = command_line;
#endif
  try {
    if (app.got_subcommand("replay")) return Replay(replay);
    if (app.got_subcommand("compare")) return Compare(compare);
    if (app.got_subcommand("pd")) return HandOver(pd);
    if (app.got_subcommand("policy")) return ComparePolicies(policy);
    if (app.got_subcommand("ssd")) return Ssd(ssd);
    if (app.got_subcommand("gpu")) return Gpu(gpu);
    if (app.got_subcommand("gpu-server")) return GpuServer(gpu_server);
#ifdef MOONPOOL_HAVE_RDMA
    if (app.got_subcommand("rdma")) return Rdma(rdma);
#endif
    return Embedding(embedding);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "moonpool-bench: %s\n", failure.what());
    return 1;
  }
}
