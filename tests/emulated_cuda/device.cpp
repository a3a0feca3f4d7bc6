// A CUDA device for libtorch that a CPU emulates, in place of libtorch_cuda.so.
//
// Its memory cannot be touched from outside of an operator: it is mapped without access, so a pointer into it that the program follows on the
// CPU ends the process. An operator with a tensor on it takes no other tensor of the CPU, but for numbers. So it finds what would fail on a
// GPU and does not on a CPU, but for what the GPU's own kernels do: an operator opens its tensors' memory and runs the CPU's kernel on it.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

using at::Tensor;
using c10::IValue;

namespace {

const c10::Device kDevice(c10::kCUDA, 0);

// ---- Memory ----

struct Region {
  size_t size;
  int readers;
};

std::mutex lock;
std::map<void *, Region> regions;
int64_t used, peak;

void release(void *p) {
  std::lock_guard<std::mutex> held(lock);
  const auto found = regions.find(p);
  used -= static_cast<int64_t>(found->second.size);
  munmap(p, found->second.size);
  regions.erase(found);
}

struct Memory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, kDevice};
    const size_t page = 4096, size = (bytes + page - 1) / page * page;
    void *p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(p != MAP_FAILED, "emulated device: out of memory");
    std::lock_guard<std::mutex> held(lock);
    regions[p] = {size, 0};
    used += static_cast<int64_t>(size);
    peak = std::max(peak, used);
    return {p, p, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void *, const void *, size_t) const override { TORCH_CHECK(false, "emulated device: copy_data"); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr &, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    std::lock_guard<std::mutex> held(lock);
    stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak = peak;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {}
};

Memory *memory() {
  static auto *one = new Memory;
  return one;
}

// Gives access to regions for as long as it lives.
class Access {
 public:
  void to(void *p) {
    if (!p) return;
    std::lock_guard<std::mutex> held(lock);
    const auto found = regions.find(p);
    TORCH_CHECK(found != regions.end(), "emulated device: a tensor whose memory is elsewhere");
    if (found->second.readers++ == 0) mprotect(p, found->second.size, PROT_READ | PROT_WRITE);
    open_.push_back(p);
  }
  ~Access() {
    std::lock_guard<std::mutex> held(lock);
    for (void *p : open_) {
      const auto found = regions.find(p);
      if (found != regions.end() && --found->second.readers == 0) mprotect(p, found->second.size, PROT_NONE);
    }
  }

 private:
  std::vector<void *> open_;
};

// ---- The device ----

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = c10::kCUDA;
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void record(void **, const c10::Stream &, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void *, const c10::Stream &) const override {}
  bool queryEvent(void *) const override { return true; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream &) const override { return true; }
  void synchronizeStream(const c10::Stream &) const override {}
  void synchronizeEvent(void *) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr &, const c10::Stream &) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

}  // namespace

namespace at {

// libtorch looks for a class of this very name.
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  const Generator &getDefaultGenerator(DeviceIndex) const override {
    static const Generator one = detail::createCPUGenerator();
    return one;
  }
  Generator getNewGenerator(DeviceIndex) const override { return detail::createCPUGenerator(); }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  long versionCUDART() const override { return 13000; }
  std::string showConfig() const override { return ""; }
  void deviceSynchronize(DeviceIndex) const override {}
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
};

REGISTER_CUDA_HOOKS(CUDAHooks);

}  // namespace at

namespace {

// ---- Operators ----

Tensor over(const c10::Storage &storage, c10::DispatchKey key, const Tensor &like) {
  Tensor t = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  t.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  return t;
}

// One run of an operator: its tensors here, over the memory of those on the device, and back.
class Call {
 public:
  Tensor here(const Tensor &t) {
    if (!t.defined() || !t.is_cuda()) return t;
    for (const auto &each : tensors_)
      if (each.first.is_same(t)) return each.second;
    const size_t bytes = t.storage().nbytes();
    void *data = t.storage().mutable_data();
    access_.to(data);
    const c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, c10::DataPtr(data, c10::kCPU), c10::GetAllocator(c10::kCPU), bytes == 0);
    Tensor mine = over(storage, c10::DispatchKey::CPU, t);
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) mine.unsafeGetTensorImpl()->set_wrapped_number(true);
    tensors_.emplace_back(t, mine);
    return mine;
  }

  Tensor there(const Tensor &mine) {
    if (!mine.defined()) return mine;
    const void *data = mine.storage().data();
    for (const auto &each : tensors_) {
      if (!each.second.is_same(mine)) continue;
      auto *impl = each.first.unsafeGetTensorImpl();
      if (data != each.first.storage().data()) impl->set_storage_keep_dtype(copied(mine).storage());
      impl->set_storage_offset(mine.storage_offset());
      impl->set_sizes_and_strides(mine.sizes(), mine.strides());
      return each.first;
    }
    for (const auto &each : tensors_)
      if (data && each.second.storage().data() == data) return over(each.first.storage(), c10::DispatchKey::CUDA, mine);
    return copied(mine);
  }

 private:
  static Tensor copied(const Tensor &mine) {
    const size_t bytes = mine.storage().nbytes();
    c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, memory()->allocate(bytes), memory(), true);
    Access access;
    access.to(storage.mutable_data());
    if (bytes > 0) std::memcpy(storage.mutable_data(), mine.storage().data(), bytes);
    return over(storage, c10::DispatchKey::CUDA, mine);
  }

  Access access_;
  std::vector<std::pair<Tensor, Tensor>> tensors_;  // on the device, here
};

// Every tensor of a value through f.
template <typename F>
IValue each_tensor(const IValue &value, const F &f) {
  if (value.isTensor()) return f(value.toTensor());
  if (value.isTensorList()) {
    std::vector<Tensor> all;
    for (const Tensor &t : value.toTensorVector()) all.push_back(f(t));
    return c10::List<Tensor>(all);
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> all;
    for (const std::optional<Tensor> &t : value.toOptionalTensorVector()) all.push_back(t ? std::optional<Tensor>(f(*t)) : std::nullopt);
    return all;
  }
  return value;
}

void run(const c10::OperatorHandle &op, torch::jit::Stack *stack) {
  const size_t in = op.schema().arguments().size(), out = op.schema().returns().size();
  Call call;
  auto inputs = torch::jit::pop(*stack, in);
  for (size_t i = 0; i < in; i++) {
    const auto here = [&](const Tensor &t) {
      const bool number = t.defined() && t.unsafeGetTensorImpl()->is_wrapped_number();
      TORCH_CHECK(!t.defined() || t.is_cuda() || number, "emulated device: ", op.schema().operator_name(), " is given a CPU tensor ", t.sizes(),
                  " as ", op.schema().arguments()[i].name());
      return call.here(t);
    };
    torch::jit::push(*stack, inputs[i].isDevice() ? IValue(c10::Device(c10::kCPU)) : each_tensor(inputs[i], here));
  }
  op.callBoxed(stack);
  for (auto &value : torch::jit::pop(*stack, out)) torch::jit::push(*stack, each_tensor(value, [&](const Tensor &t) { return call.there(t); }));
}

Tensor &copy(Tensor &to, const Tensor &from, bool) {
  Call call;
  const Tensor target = call.here(to), source = call.here(from);
  target.copy_(source);
  return to;
}

using Kind = std::optional<at::ScalarType>;

Tensor empty(at::IntArrayRef sizes, Kind kind, std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(sizes, memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(kind), format);
}

Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides, Kind kind, std::optional<at::Layout>, std::optional<at::Device>,
                     std::optional<bool>) {
  return at::detail::empty_strided_generic(sizes, strides, memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(kind));
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&run>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", &copy);
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  // libtorch would choose among a GPU's own ways to convolve.
  library.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&run>());
  library.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&run>());
}

[[maybe_unused]] const bool registered = [] {
  c10::SetAllocator(c10::kCUDA, memory(), 10);
  return true;
}();

}  // namespace
