// The sums of moments.h. Compiled without contraction: a fused multiply-add would round the squares once too few.
#include "moments.h"

namespace {

// Lanes of one pass; the compiler lowers it to whatever the processor has.
typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t kLanes = sizeof(Lanes) / sizeof(float);

template <typename V> inline __attribute__((always_inline)) V load(const float *p) { V v; __builtin_memcpy(&v, p, sizeof v); return v; }

template <typename V, bool kSquares>
inline __attribute__((always_inline)) V term(const float *p, V mean) {
  const V v = load<V>(p);
  if (!kSquares) return v;
  const V d = v - mean;
  return d * d;
}

template <typename V, bool kSquares>
inline __attribute__((always_inline)) V sum(const float *x, int64_t rows, int64_t c, V mean) {
  V a{}, b{}, e{}, f{};
  int64_t r = 0;
  if (rows >= 16) {
    for (; r + 4 <= rows; r += 4, x += 4 * c) {
      a += term<V, kSquares>(x, mean);
      b += term<V, kSquares>(x + c, mean);
      e += term<V, kSquares>(x + 2 * c, mean);
      f += term<V, kSquares>(x + 3 * c, mean);
    }
    a = ((a + b) + e) + f;
  }
  for (; r < rows; r++, x += c) a += term<V, kSquares>(x, mean);
  return a;
}

template <typename V>
inline __attribute__((always_inline)) void channels(const float *x, int64_t rows, int64_t c, float *mean, float *variance) {
  const float count = static_cast<float>(rows);
  const V m = sum<V, false>(x, rows, c, V{}) / count;
  const V v = sum<V, true>(x, rows, c, m) / count;
  __builtin_memcpy(mean, &m, sizeof m);
  __builtin_memcpy(variance, &v, sizeof v);
}

}  // namespace

#if defined(__x86_64__) && defined(__linux__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void odh_moments(const float *x, int64_t rows, int64_t c, int64_t first, int64_t last, float *mean, float *variance) {
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) channels<Lanes>(x + i, rows, c, mean + i, variance + i);
  for (; i < last; i++) channels<float>(x + i, rows, c, mean + i, variance + i);
}
