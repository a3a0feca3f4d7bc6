// What `../shim/start.rs` asks before and after libtorch is loaded. Nothing here calls libtorch.
#include <dlfcn.h>
#include <limits.h>
#include <malloc.h>

#include <string>

// Weak in this file, so that its address is looked at and not taken for granted.
namespace at {
__attribute__((weak)) std::string show_config();
}

extern "C" {

// Whether libtorch's addresses are filled in.
int odh_has_libtorch() { return &at::show_config != nullptr; }

// Why libtorch is not found, or cannot be loaded, in the dynamic linker's words.
const char *odh_why_no_libtorch() {
  if (dlopen("libtorch_cpu.so", RTLD_NOW))
    return "the libtorch_cpu.so that is found is another version's, or may not be preloaded, as where this file runs with rights of its own (setuid)";
  const char *why = dlerror();
  return why ? why : "unknown dlopen error";
}

// Lets malloc keep what it has: a training step frees and takes the same hundreds of megabytes again, and giving them back to the kernel
// in between costs a page fault per page. With huge pages that is little, and large tensors had better be returned: kept in the heap, a
// third as much again is lost between them.
void odh_keep_memory(int huge_pages) {
#ifdef __GLIBC__
  // glibc takes no higher threshold than 32 MiB.
  if (huge_pages) mallopt(M_MMAP_THRESHOLD, 32 << 20);
  else mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

}  // extern "C"
