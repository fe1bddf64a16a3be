#include "client/view_state.h"

namespace moonpool::client {

View::View() = default;
View::View(View&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      state_(std::move(other.state_)) {}
View& View::operator=(View&& other) noexcept {
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  state_ = std::move(other.state_);
  return *this;
}
View::~View() = default;

bool View::is_copy() const { return state_ != nullptr && state_->channel == nullptr; }

bool View::still_valid() const {
  if (state_ == nullptr) return false;
  if (state_->channel == nullptr) return true;
  return ForkCount() == state_->forks && state_->channel->usable() &&
         state_->channel->session_alive() &&
         protocol::GenerationUnchanged(*state_->counter, state_->generation);
}

}  // namespace moonpool::client
