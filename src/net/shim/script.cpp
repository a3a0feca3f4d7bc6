// TorchScript modules: made from source and parameters, saved, loaded and run.
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/python/update_graph_executor_opt.h>
#include <torch/csrc/jit/serialization/export.h>
#include <torch/csrc/jit/serialization/import.h>

#include <set>

#include "common.h"

using odh::give;
using odh::guarded;
using torch::jit::Module;

namespace {

// What a call hands out as text stays here until the thread's next such call.
thread_local std::string text;

std::string joined(const std::set<std::string> &words) {
  std::string all;
  for (const auto &word : words) all += (all.empty() ? "" : "\n") + word;
  return all;
}

void operators(const torch::jit::Block *block, std::set<std::string> &found) {
  for (const auto *node : block->nodes()) {
    found.insert(node->kind().toQualString());
    for (const auto *inner : node->blocks()) operators(inner, found);
  }
}

// Neither profiles nor specializes: pictures have all sizes, and the first one should not wait.
struct Plainly {
  bool before = torch::jit::getGraphExecutorOptimize();
  Plainly() { torch::jit::setGraphExecutorOptimize(false); }
  ~Plainly() { torch::jit::setGraphExecutorOptimize(before); }
};

}  // namespace

extern "C" {

int odh_script_new(const char *name, Module **out) {
  return guarded([&] { *out = new Module(c10::QualifiedName(name)); });
}

void odh_script_free(Module *module) { delete module; }

int odh_script_add_parameter(Module *module, const char *name, const at::Tensor *value) {
  return guarded([&] { module->register_parameter(name, value->detach(), /*is_buffer=*/false); });
}

int odh_script_add_text(Module *module, const char *name, const char *value) {
  return guarded([&] { module->register_attribute(name, c10::StringType::get(), std::string(value)); });
}

// Compiles methods; they may call each other, and read what was added before.
int odh_script_define(Module *module, const char *source) {
  return guarded([&] { module->define(source); });
}

// Hands the file's bytes to `write`, piece by piece. That never fails here: where libtorch writes a file itself and the disk is full,
// one of its destructors throws, which ends the process.
int odh_script_write(const Module *module, void *to, void (*write)(void *to, const void *bytes, size_t count)) {
  return guarded([&] {
    torch::jit::ExportModule(*module, [&](const void *bytes, size_t count) {
      write(to, bytes, count);
      return count;
    });
  });
}

// device: -1 for the CPU, else a CUDA device's number.
int odh_script_load(const char *path, int device, Module **out) {
  return guarded([&] {
    const auto to = device < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    auto loaded = torch::jit::load(std::string(path), to);
    loaded.eval();
    *out = new Module(std::move(loaded));
  });
}

// Names of the parameters, a line each.
int odh_script_parameters(const Module *module, const char **out) {
  return guarded([&] {
    text.clear();
    for (const auto &parameter : module->named_parameters()) text += (text.empty() ? "" : "\n") + parameter.name;
    *out = text.c_str();
  });
}

int odh_script_parameter(const Module *module, const char *name, at::Tensor **out) {
  return guarded([&] { *out = give(module->attr(name).toTensor()); });
}

// The signature of a method and the operators of all methods, a line each.
int odh_script_operators(const Module *module, const char *method, const char **out) {
  return guarded([&] {
    std::set<std::string> found;
    for (const auto &each : module->get_methods()) operators(each.graph()->block(), found);
    const auto found_method = module->find_method(method);
    TORCH_CHECK(found_method.has_value(), "the module has no method ", method);
    std::ostringstream signature;
    signature << found_method->function().getSchema();
    text = signature.str() + "\n" + joined(found);
    *out = text.c_str();
  });
}

// What a method without arguments says; nothing where there is no such method.
int odh_script_ask(const Module *module, const char *method, const char **out) {
  return guarded([&] {
    *out = nullptr;
    const auto found = module->find_method(method);
    if (!found.has_value()) return;
    const auto answer = (*found)({});
    TORCH_CHECK(answer.isString(), method, " does not give text");
    text = answer.toStringRef();
    *out = text.c_str();
  });
}

// One tensor to a tuple of `count`.
int odh_script_forward(const Module *module, const at::Tensor *input, size_t count, at::Tensor **out) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    Plainly plainly;
    const auto result = module->get_method("forward")({*input});
    TORCH_CHECK(result.isTuple() && result.toTupleRef().elements().size() == count, "forward does not give ", count, " tensors");
    for (const auto &element : result.toTupleRef().elements()) TORCH_CHECK(element.isTensor(), "forward does not give tensors");
    for (size_t i = 0; i < count; i++) out[i] = give(result.toTupleRef().elements()[i].toTensor());
  });
}

}  // extern "C"
