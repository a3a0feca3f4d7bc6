// Work shared among libtorch's own threads.
#pragma once
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <stdint.h>

#include <atomic>

namespace odh {

// Calls f(i) for every i in [0, tasks), each once, on libtorch's OpenMP threads, whoever is free first. What f writes must depend on i
// alone: then the result does not depend on the number of threads.
//
// The OpenMP library is the one that libtorch brought along, found at run time: linking another would start a second set of threads.
template <typename F>
void parallel(int64_t tasks, const F &f) {
  using Body = void (*)(void *);
  using GompParallel = void (*)(Body, void *, unsigned, unsigned);
  static const auto gomp = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  if (threads <= 1 || !gomp || at::in_parallel_region()) {
    for (int64_t i = 0; i < tasks; i++) f(i);
    return;
  }
  struct Job {
    std::atomic<int64_t> next{0};
    int64_t tasks;
    const F *f;
  } job;
  job.tasks = tasks;
  job.f = &f;
  gomp(
      [](void *p) {
        auto *job = static_cast<Job *>(p);
        for (int64_t i; (i = job->next.fetch_add(1)) < job->tasks;) (*job->f)(i);
      },
      &job, static_cast<unsigned>(at::get_num_threads()), 0);
}

}  // namespace odh
