// What the shim's C++ files share: errors as messages, tensors as tch holds them.
#pragma once
#include <ATen/ATen.h>

#include <string>

namespace odh {

extern thread_local std::string last_error;

// Runs f; an exception becomes status 1 and a message.
template <typename F>
int guarded(const F &f) {
  try {
    f();
    return 0;
  } catch (const c10::Error &e) {
    last_error = e.what_without_backtrace();
  } catch (const std::exception &e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown C++ exception";
  }
  return 1;
}

// Hands a tensor to Rust, which frees it as it frees tch's own.
inline at::Tensor *give(at::Tensor t) { return new at::Tensor(std::move(t)); }

}  // namespace odh
