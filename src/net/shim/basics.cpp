// Libtorch calls that tch has no binding for; `../shim.rs` is the safe face of every function here.
//
// Every function returns 0, or 1 with the message in odh_last_error(): no C++ exception reaches Rust.
// Tensors arrive as the `at::Tensor *` that tch holds, and leave as a new one that tch frees.
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Version.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>
#include <stdint.h>

#include "common.h"

thread_local std::string odh::last_error;

namespace {

using odh::give;
using odh::guarded;

std::string dl_error() {
  const char *e = dlerror();
  return e ? e : "unknown dlopen error";
}

// The folder of the libtorch_cpu.so that is loaded: its CUDA half lies beside it.
std::string libtorch_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void *>(&at::show_config), &info) == 0 || !info.dli_fname) return "";
  std::string path = info.dli_fname;
  auto slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

}  // namespace

extern "C" {

const char *odh_last_error() { return odh::last_error.c_str(); }

// Loads libtorch's CUDA half; has_driver says whether there is a driver. Without one (the usual case on a CPU machine) this ends at the first
// dlopen. The driver is asked for its devices first, because loading libtorch_cuda.so costs up to a second and 350 MB.
int odh_load_cuda(int *has_driver) {
  return guarded([&] {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    *has_driver = driver != nullptr;
    if (!driver) throw std::runtime_error("no NVIDIA driver: " + dl_error());
    auto init = reinterpret_cast<int (*)(unsigned)>(dlsym(driver, "cuInit"));
    auto count = reinterpret_cast<int (*)(int *)>(dlsym(driver, "cuDeviceGetCount"));
    if (init && count) {
      int devices = 0, code = init(0);
      if (code == 0) code = count(&devices);
      const int no_device = 100;  // CUDA_ERROR_NO_DEVICE
      if (code != 0 && code != no_device)
        throw std::runtime_error("the NVIDIA driver does not start (CUDA driver error " + std::to_string(code) + ")");
      if (devices == 0) throw std::runtime_error("the NVIDIA driver lists no device");
    }
    std::string beside = libtorch_folder() + "libtorch_cuda.so";
    if (dlopen(beside.c_str(), RTLD_NOW | RTLD_GLOBAL)) return;
    std::string first = dl_error();
    // LD_LIBRARY_PATH and the binary's own search path.
    if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL)) return;
    throw std::runtime_error("there is an NVIDIA device, but this libtorch has no CUDA half: " + first);
  });
}

// The CUDA version that the driver is for, 0 where it does not say, and the one that libtorch is made for, as 1000 * major + 10 * minor. To be
// called after odh_load_cuda.
int odh_cuda_versions(int *driver, int *libtorch) {
  return guarded([&] {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    auto version = library ? reinterpret_cast<int (*)(int *)>(dlsym(library, "cuDriverGetVersion")) : nullptr;
    if (!version || version(driver) != 0) *driver = 0;
    *libtorch = static_cast<int>(at::detail::getCUDAHooks().versionCUDART());
  });
}

// The version of the libtorch that is loaded, such as "2.11.0", or "" where it does not say.
int odh_libtorch_version(char *out, size_t size) {
  return guarded([&] {
    std::string config = at::show_config(), version;
    const std::string key = "TORCH_VERSION=";
    auto at = config.find(key);
    if (at != std::string::npos) {
      at += key.size();
      version = config.substr(at, config.find_first_of(", \n", at) - at);
    }
    snprintf(out, size, "%s", version.c_str());
  });
}

int odh_channels_last(const at::Tensor *x, at::Tensor **out) {
  return guarded([&] { *out = give(x->contiguous(at::MemoryFormat::ChannelsLast)); });
}

int odh_is_channels_last(const at::Tensor *x, int *out) {
  return guarded([&] { *out = x->is_contiguous(at::MemoryFormat::ChannelsLast); });
}

// Peak bytes that CUDA tensors have taken on one device since the start.
int odh_cuda_memory_peak(int device, int64_t *out) {
  return guarded([&] {
    auto *allocator = at::getDeviceAllocator(at::kCUDA);
    auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    *out = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  });
}

int odh_numerics(int tf32, int deterministic, int cudnn_benchmark) {
  return guarded([&] {
    auto &context = at::globalContext();
    context.setAllowTF32CuBLAS(tf32);
    context.setAllowTF32CuDNN(tf32);
    context.setDeterministicCuDNN(deterministic);
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/true);
    context.setBenchmarkCuDNN(cudnn_benchmark && !deterministic);
  });
}

}  // extern "C"
