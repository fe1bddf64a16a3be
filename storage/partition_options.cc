#include "storage/partition_options.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <utility>

#include "protocol/decimal.h"

namespace moonpool::storage {

namespace {

constexpr size_t kMaxNameBytes = 64;
// Shares written with a few digits may sum up to a little more than 1.
constexpr double kRounding = 1e-9;
constexpr std::array<std::string_view, 3> kAdmissions = {"second-read", "always", "never"};
constexpr std::array<std::string_view, 3> kCompressions = {"none", "lz4", "zstd"};
constexpr std::string_view kOptions = "prefix, dram, ssd, policy, admission, compression";

std::vector<std::string_view> Words(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n";
  std::vector<std::string_view> words;
  for (size_t at = text.find_first_not_of(kSpace); at != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
    words.push_back(text.substr(at, end - at));
    at = text.find_first_not_of(kSpace, end);
  }
  return words;
}

template <typename Names>
std::string Listed(const Names& names) {
  std::string text;
  for (const std::string_view name : names) {
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

template <typename Names>
std::optional<size_t> IndexIn(const Names& names, std::string_view name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<size_t>(found - names.begin());
}

// One definition under construction.
class Definition {
 public:
  explicit Definition(std::string_view name) { partition_.name = name; }

  Status Name() const {
    const std::string& name = partition_.name;
    const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_';
    });
    if (!plain || name.size() > kMaxNameBytes) {
      return Refuse("begins with '" + name + "' where its name belongs: up to " +
                    std::to_string(kMaxNameBytes) + " letters, digits, '-' and '_'");
    }
    if (name == kDefaultPartition) {
      return Refuse(
          "cannot have that name: it is that of the keys no prefix matches, which go by "
          "maxmemory-policy, ssd-compression and what the others leave");
    }
    return {};
  }

  Status Set(std::string_view word) {
    const size_t equals = word.find('=');
    const std::string_view option = word.substr(0, equals);
    if (equals == std::string_view::npos) {
      return Refuse("has the word '" + std::string(word) +
                    "'; it wants option=value, and a ';' after its last one");
    }
    if (std::find(given_.begin(), given_.end(), option) != given_.end()) {
      return Refuse("has " + std::string(option) + " twice");
    }
    given_.push_back(option);
    const std::string_view value = word.substr(equals + 1);
    if (option == "prefix") {
      if (value.empty()) {
        return Refuse(
            "has an empty prefix; the keys that match no prefix are in 'default' already");
      }
      partition_.prefix = value;
      return {};
    }
    if (option == "dram") return Share(option, value, &partition_.dram_share);
    if (option == "ssd") {
      partition_.ssd = value != "no";
      return partition_.ssd ? Share(option, value, &partition_.ssd_share) : Status();
    }
    if (option == "policy") {
      partition_.policy = ParseMaxmemoryPolicy(value);
      return partition_.policy ? Status() : NotOneOf(option, value, kMaxmemoryPolicyNames);
    }
    if (option == "admission") {
      const auto index = IndexIn(kAdmissions, value);
      if (!index) return NotOneOf(option, value, kAdmissions);
      partition_.admission = static_cast<Admission>(*index);
      return {};
    }
    if (option == "compression") {
      const auto index = IndexIn(kCompressions, value);
      if (!index) return NotOneOf(option, value, kCompressions);
      partition_.compression = static_cast<SsdCompression>(*index);
      return {};
    }
    return Refuse("has the unknown option '" + std::string(option) + "'; there are " +
                  std::string(kOptions));
  }

  Result<PartitionOptions> Finish() && {
    if (partition_.prefix.empty()) {
      return tl::unexpected<Error>(Refuse("has no prefix=: say what its keys begin with").error());
    }
    return std::move(partition_);
  }

 private:
  Status Refuse(const std::string& why) const {
    return Fail(ErrorCode::kInvalidArgument, "partition '" + partition_.name + "' " + why);
  }
  template <typename Names>
  Status NotOneOf(std::string_view option, std::string_view value, const Names& names) const {
    return Refuse("has " + std::string(option) + "=" + std::string(value) + "; it must be one of " +
                  Listed(names));
  }
  Status Share(std::string_view option, std::string_view value, double* share) const {
    const auto number = protocol::ParseLongDouble(value);
    // Not a number compares as neither.
    if (!number || !(*number > 0 && *number <= 1)) {
      return Refuse("has " + std::string(option) + "=" + std::string(value) +
                    "; a share is a number above 0 and up to 1, such as 0.25" +
                    (option == "ssd" ? ", or 'no'" : ""));
    }
    *share = static_cast<double>(*number);
    return {};
  }

  PartitionOptions partition_;
  std::vector<std::string_view> given_;
};

Result<PartitionOptions> ParseOne(const std::vector<std::string_view>& words) {
  Definition definition(words.front());
  if (Status named = definition.Name(); !named) return tl::unexpected<Error>(named.error());
  for (size_t i = 1; i < words.size(); ++i) {
    if (Status set = definition.Set(words[i]); !set) return tl::unexpected<Error>(set.error());
  }
  return std::move(definition).Finish();
}

Status CheckSum(const std::vector<PartitionOptions>& partitions, const char* option,
                double PartitionOptions::*share) {
  double sum = 0;
  for (const PartitionOptions& partition : partitions) sum += partition.*share;
  if (sum <= 1 + kRounding) return {};
  return Fail(ErrorCode::kInvalidArgument, std::string("the ") + option + "= shares sum up to " +
                                               std::to_string(sum) +
                                               ", more than 1: make some of them smaller");
}

}  // namespace

std::string_view NameOf(Admission admission) {
  return kAdmissions[static_cast<size_t>(admission)];
}

std::string_view NameOf(SsdCompression compression) {
  return kCompressions[static_cast<size_t>(compression)];
}

Result<std::vector<PartitionOptions>> ParsePartitions(std::string_view text) {
  std::vector<PartitionOptions> partitions;
  while (!text.empty()) {
    const size_t end = std::min(text.find(';'), text.size());
    const auto words = Words(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (words.empty()) continue;  // after the last one
    auto parsed = ParseOne(words);
    if (!parsed) return tl::unexpected<Error>(std::move(parsed.error()));
    for (const PartitionOptions& other : partitions) {
      if (other.name == parsed->name) {
        return Fail(ErrorCode::kInvalidArgument,
                    "there are two partitions '" + other.name + "': give one another name");
      }
      if (other.prefix == parsed->prefix) {
        return Fail(ErrorCode::kInvalidArgument, "partitions '" + other.name + "' and '" +
                                                     parsed->name + "' have the same prefix '" +
                                                     other.prefix + "': change one");
      }
    }
    partitions.push_back(std::move(*parsed));
  }
  if (partitions.size() > kMaxPartitions) {
    return Fail(ErrorCode::kInvalidArgument,
                "there are " + std::to_string(partitions.size()) + " partitions; at most " +
                    std::to_string(kMaxPartitions) + " can be defined");
  }
  if (Status sum = CheckSum(partitions, "dram", &PartitionOptions::dram_share); !sum) {
    return tl::unexpected<Error>(sum.error());
  }
  if (Status sum = CheckSum(partitions, "ssd", &PartitionOptions::ssd_share); !sum) {
    return tl::unexpected<Error>(sum.error());
  }
  return partitions;
}

}  // namespace moonpool::storage
