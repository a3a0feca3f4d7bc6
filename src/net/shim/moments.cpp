// The sums of moments.h. Compiled without contraction: a fused multiply-add would round the squares once too few.
#include "moments.h"

namespace {

// Lanes of one pass; the compiler lowers it to whatever the processor has.
typedef float Lanes __attribute__((vector_size(64)));
constexpr int64_t kLanes = sizeof(Lanes) / sizeof(float);

template <typename V> inline __attribute__((always_inline)) V load(const float *p) { V v; __builtin_memcpy(&v, p, sizeof v); return v; }

template <typename V> inline __attribute__((always_inline)) void store(float *p, V v) { __builtin_memcpy(p, &v, sizeof v); }

template <typename V, bool kSquares>
inline __attribute__((always_inline)) V term(const float *p, V mean) {
  const V v = load<V>(p);
  if (!kSquares) return v;
  const V d = v - mean;
  return d * d;
}

// Rows that are read for all channels before the next ones, so that memory is read in its own order.
constexpr int64_t kTile = 64;

// Four running sums a channel, of every fourth row each: acc [4][n], added to.
template <typename V, bool kSquares>
inline __attribute__((always_inline)) void tile(const float *x, int64_t rows, int64_t c, int64_t n, const float *mean, float *acc) {
  const V m = kSquares ? load<V>(mean) : V{};
  V s0 = load<V>(acc), s1 = load<V>(acc + n), s2 = load<V>(acc + 2 * n), s3 = load<V>(acc + 3 * n);
  for (int64_t r = 0; r < rows; r += 4, x += 4 * c) {
    s0 += term<V, kSquares>(x, m);
    s1 += term<V, kSquares>(x + c, m);
    s2 += term<V, kSquares>(x + 2 * c, m);
    s3 += term<V, kSquares>(x + 3 * c, m);
  }
  store(acc, s0), store(acc + n, s1), store(acc + 2 * n, s2), store(acc + 3 * n, s3);
}

// The mean of x, or of its squared deviation from `mean`, for n channels; acc [4][n] is scratch.
template <bool kSquares>
inline __attribute__((always_inline)) void average(const float *x, int64_t rows, int64_t c, int64_t n, const float *mean, float *acc,
                                                   float *out) {
  for (int64_t i = 0; i < 4 * n; i++) acc[i] = 0;
  const int64_t whole = rows >= 16 ? rows / 4 * 4 : 0;
  for (int64_t r = 0; r < whole; r += kTile) {
    const int64_t count = whole - r < kTile ? whole - r : kTile;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) tile<Lanes, kSquares>(x + r * c + i, count, c, n, mean + i, acc + i);
    for (; i < n; i++) tile<float, kSquares>(x + r * c + i, count, c, n, mean + i, acc + i);
  }
  const float count = static_cast<float>(rows);
  for (int64_t i = 0; i < n; i++) {
    float sum = ((acc[i] + acc[n + i]) + acc[2 * n + i]) + acc[3 * n + i];
    for (int64_t r = whole; r < rows; r++) sum += term<float, kSquares>(x + r * c + i, mean[i]);
    out[i] = sum / count;
  }
}

}  // namespace

#if defined(__x86_64__) && defined(__linux__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void odh_moments(const float *x, int64_t rows, int64_t c, int64_t n, float *scratch, float *mean, float *variance) {
  average<false>(x, rows, c, n, mean, scratch, mean);
  average<true>(x, rows, c, n, mean, scratch, variance);
}
