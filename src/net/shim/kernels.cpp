// The loops of kernels.h. Compiled once per instruction set: ODH_ISA names the namespace, the compiler's flags the registers.
//
// Vectors run over channels, which lie side by side in NHWC memory; what is left over goes through ever narrower vectors.
#include "kernels.h"

#ifndef ODH_ISA
#define ODH_ISA odh_baseline
#endif
#define ODH_STRING_(x) #x
#define ODH_STRING(x) ODH_STRING_(x)

namespace ODH_ISA {
namespace {

typedef float V4 __attribute__((vector_size(16)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V16 __attribute__((vector_size(64)));

#define ODH_INLINE inline __attribute__((always_inline))

// One "vector" of one lane, so that the same code does the last channels.
struct V1 {
  float v;
  ODH_INLINE V1 operator+(V1 o) const { return {v + o.v}; }
  ODH_INLINE V1 operator-(V1 o) const { return {v - o.v}; }
  ODH_INLINE V1 operator*(V1 o) const { return {v * o.v}; }
  ODH_INLINE V1 &operator+=(V1 o) { v += o.v; return *this; }
};

template <typename V> constexpr int64_t lanes = sizeof(V) / sizeof(float);
template <typename V> ODH_INLINE V load(const float *p) { V v; __builtin_memcpy(&v, p, sizeof v); return v; }
template <typename V> ODH_INLINE void store(float *p, V v) { __builtin_memcpy(p, &v, sizeof v); }
template <typename V> ODH_INLINE V splat(float f) { return V{} + f; }
template <> ODH_INLINE V1 splat<V1>(float f) { return {f}; }
// The same value, out of the compiler's sight, so that it makes no fused multiply-add of what comes before and after.
template <typename V> ODH_INLINE V rounded(V v) {
#if defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}
template <> ODH_INLINE V1 rounded<V1>(V1 v) { return {rounded<float>(v.v)}; }
// NaN passes, as in libtorch.
template <typename V> ODH_INLINE V clamp(V z, V lo, V hi) { z = z < lo ? lo : z; return z > hi ? hi : z; }
template <> ODH_INLINE V1 clamp<V1>(V1 z, V1 lo, V1 hi) { float f = z.v < lo.v ? lo.v : z.v; return {f > hi.v ? hi.v : f}; }
// `d` where `z` lies strictly inside the clamp, else 0.
template <typename V> ODH_INLINE V inside(V z, V lo, V hi, V d) {
  const V zero{};
  d = z <= lo ? zero : d;
  return z >= hi ? zero : d;
}
template <> ODH_INLINE V1 inside<V1>(V1 z, V1 lo, V1 hi, V1 d) { return {z.v <= lo.v || z.v >= hi.v ? 0.f : d.v}; }

// Calls f(V, first channel) for vectors that cover [0, c).
template <typename F>
ODH_INLINE void over_channels(int64_t c, const F &f) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= c; i += 16) f(V16{}, i);
#endif
#if defined(__AVX__)
  for (; i + 8 <= c; i += 8) f(V8{}, i);
#endif
  for (; i + 4 <= c; i += 4) f(V4{}, i);
  for (; i < c; i++) f(V1{}, i);
}

template <int K> struct Count { static constexpr int value = K; };

// One weight and the input it meets.
struct Taps {
  int64_t count = 0;
  const float *src[kOdhMaxTaps];
  const float *w[kOdhMaxTaps];
};

// dst[j * dst_step] = the sum over taps of w * src[j * src_step], for J positions, all channels.
template <int J>
ODH_INLINE void gather_block(const Taps &taps, int64_t src_step, int64_t dst_step, int64_t c, float *dst) {
  over_channels(c, [&](auto kind, int64_t i) {
    using V = decltype(kind);
    V acc[J] = {};
    for (int64_t t = 0; t < taps.count; t++) {
      const V w = load<V>(taps.w[t] + i);
      const float *s = taps.src[t] + i;
      for (int j = 0; j < J; j++) acc[j] += w * load<V>(s + j * src_step);
    }
    for (int j = 0; j < J; j++) store<V>(dst + j * dst_step + i, acc[j]);
  });
}

// A run of `count` positions whose taps are all inside the source.
void gather(Taps taps, int64_t count, int64_t src_step, int64_t dst_step, int64_t c, float *dst) {
  int64_t left = count;
  const auto advance = [&](int64_t n) {
    for (int64_t t = 0; t < taps.count; t++) taps.src[t] += n * src_step;
    dst += n * dst_step;
    left -= n;
  };
  for (; left >= 8; advance(8)) gather_block<8>(taps, src_step, dst_step, c, dst);
  for (; left >= 4; advance(4)) gather_block<4>(taps, src_step, dst_step, c, dst);
  for (; left >= 1; advance(1)) gather_block<1>(taps, src_step, dst_step, c, dst);
}

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }
int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

void depthwise_forward(const OdhDepthwise &d, const float *x, const float *w, float *y, int64_t oh0, int64_t oh1) {
  const int64_t row = d.w * d.c;
  // Output columns whose every tap is inside.
  const int64_t inner0 = min_of(d.ow, max_of(0, ceil_div(d.left, d.stride_w)));
  const int64_t inner1 =
      max_of(inner0, min_of(d.ow, floor_div(d.w - 1 + d.left - (d.kw - 1) * d.dilation_w, d.stride_w) + 1));
  for (int64_t oh = oh0; oh < oh1; oh++) {
    const auto run = [&](int64_t ow, int64_t count) {
      Taps taps;
      for (int64_t kh = 0; kh < d.kh; kh++) {
        const int64_t ih = oh * d.stride_h - d.top + kh * d.dilation_h;
        if (ih < 0 || ih >= d.h) continue;
        for (int64_t kw = 0; kw < d.kw; kw++) {
          const int64_t iw = ow * d.stride_w - d.left + kw * d.dilation_w;
          if (iw < 0 || iw >= d.w) continue;
          taps.src[taps.count] = x + ih * row + iw * d.c;
          taps.w[taps.count++] = w + (kh * d.kw + kw) * d.c;
        }
      }
      gather(taps, count, d.stride_w * d.c, d.c, d.c, y + (oh * d.ow + ow) * d.c);
    };
    for (int64_t ow = 0; ow < inner0; ow++) run(ow, 1);
    if (inner1 > inner0) run(inner0, inner1 - inner0);
    for (int64_t ow = inner1; ow < d.ow; ow++) run(ow, 1);
  }
}

void depthwise_backward_input(const OdhDepthwise &d, const float *dy, const float *w, float *dx, int64_t ih0, int64_t ih1) {
  for (int64_t ih = ih0; ih < ih1; ih++) {
    // Columns a stride apart meet the same weights, with neighbouring outputs.
    for (int64_t phase = 0; phase < min_of(d.stride_w, d.w); phase++) {
      const int64_t count = (d.w - phase + d.stride_w - 1) / d.stride_w;
      // The j for which every tap of this phase lies inside [0, ow).
      int64_t inner0 = 0, inner1 = count;
      for (int64_t kw = 0; kw < d.kw; kw++) {
        const int64_t at = phase + d.left - kw * d.dilation_w;
        if (at - floor_div(at, d.stride_w) * d.stride_w != 0) continue;
        const int64_t ow = floor_div(at, d.stride_w);
        inner0 = max_of(inner0, -ow);
        inner1 = min_of(inner1, d.ow - ow);
      }
      inner0 = min_of(inner0, count);
      inner1 = max_of(inner0, inner1);
      const auto run = [&](int64_t j, int64_t n) {
        Taps taps;
        for (int64_t kh = 0; kh < d.kh; kh++) {
          const int64_t at_h = ih + d.top - kh * d.dilation_h;
          const int64_t oh = floor_div(at_h, d.stride_h);
          if (at_h != oh * d.stride_h || oh < 0 || oh >= d.oh) continue;
          for (int64_t kw = 0; kw < d.kw; kw++) {
            const int64_t at_w = phase + d.left - kw * d.dilation_w;
            const int64_t first = floor_div(at_w, d.stride_w);
            const int64_t ow = first + j;
            if (at_w != first * d.stride_w || ow < 0 || ow >= d.ow) continue;
            taps.src[taps.count] = dy + (oh * d.ow + ow) * d.c;
            taps.w[taps.count++] = w + (kh * d.kw + kw) * d.c;
          }
        }
        gather(taps, n, d.c, d.stride_w * d.c, d.c, dx + (ih * d.w + phase + j * d.stride_w) * d.c);
      };
      for (int64_t j = 0; j < inner0; j++) run(j, 1);
      if (inner1 > inner0) run(inner0, inner1 - inner0);
      for (int64_t j = inner1; j < count; j++) run(j, 1);
    }
  }
}

// dw[t] += the sum over J positions of dy * src[t].
template <int J>
ODH_INLINE void scatter_block(const Taps &taps, float *const *dw, int64_t src_step, int64_t c, const float *dy) {
  over_channels(c, [&](auto kind, int64_t i) {
    using V = decltype(kind);
    V g[J];
    for (int j = 0; j < J; j++) g[j] = load<V>(dy + j * c + i);
    for (int64_t t = 0; t < taps.count; t++) {
      const float *s = taps.src[t] + i;
      V a = g[0] * load<V>(s), b{};
      if (J > 1) b = g[J > 1] * load<V>(s + src_step);
      for (int j = 2; j + 1 < J; j += 2) {
        a += g[j] * load<V>(s + j * src_step);
        b += g[j + 1] * load<V>(s + (j + 1) * src_step);
      }
      store<V>(dw[t] + i, load<V>(dw[t] + i) + (a + b));
    }
  });
}

void depthwise_backward_weight(const OdhDepthwise &d, const float *x, const float *dy, float *dw, int64_t oh0, int64_t oh1) {
  const int64_t row = d.w * d.c;
  const int64_t inner0 = min_of(d.ow, max_of(0, ceil_div(d.left, d.stride_w)));
  const int64_t inner1 =
      max_of(inner0, min_of(d.ow, floor_div(d.w - 1 + d.left - (d.kw - 1) * d.dilation_w, d.stride_w) + 1));
  for (int64_t oh = oh0; oh < oh1; oh++) {
    const auto run = [&](int64_t ow, int64_t count) {
      Taps taps;
      float *out[kOdhMaxTaps];
      for (int64_t kh = 0; kh < d.kh; kh++) {
        const int64_t ih = oh * d.stride_h - d.top + kh * d.dilation_h;
        if (ih < 0 || ih >= d.h) continue;
        for (int64_t kw = 0; kw < d.kw; kw++) {
          const int64_t iw = ow * d.stride_w - d.left + kw * d.dilation_w;
          if (iw < 0 || iw >= d.w) continue;
          taps.src[taps.count] = x + ih * row + iw * d.c;
          out[taps.count++] = dw + (kh * d.kw + kw) * d.c;
        }
      }
      const float *g = dy + (oh * d.ow + ow) * d.c;
      const int64_t step = d.stride_w * d.c;
      int64_t left = count;
      const auto advance = [&](int64_t n) {
        for (int64_t t = 0; t < taps.count; t++) taps.src[t] += n * step;
        g += n * d.c;
        left -= n;
      };
      for (; left >= 8; advance(8)) scatter_block<8>(taps, out, step, d.c, g);
      for (; left >= 4; advance(4)) scatter_block<4>(taps, out, step, d.c, g);
      for (; left >= 1; advance(1)) scatter_block<1>(taps, out, step, d.c, g);
    };
    for (int64_t ow = 0; ow < inner0; ow++) run(ow, 1);
    if (inner1 > inner0) run(inner0, inner1 - inner0);
    for (int64_t ow = inner1; ow < d.ow; ow++) run(ow, 1);
  }
}

// Rows that are summed in single precision before the sum goes into double: few enough to keep the error near one rounding, and a block
// that stays in the second-level cache for its second reading.
constexpr int64_t kBlock = 64;

ODH_INLINE void zero(float *p, int64_t n) {
  over_channels(n, [&](auto kind, int64_t i) { store(p + i, decltype(kind){}); });
}

// One value before the clamp. The product is rounded before the sum, as in TensorFlow: a fused multiply-add would round once too few.
template <typename V> ODH_INLINE V normalized(const OdhNorm &norm, int64_t i, V x) {
  return rounded<V>((x - load<V>(norm.origin + i)) * load<V>(norm.scale + i)) + load<V>(norm.shift + i);
}

void normalize(const float *x, int64_t rows, int64_t c, const OdhNorm &norm, float *y) {
  for (int64_t r = 0; r < rows; r++, x += c, y += c)
    over_channels(c, [&](auto kind, int64_t i) {
      using V = decltype(kind);
      store<V>(y + i, clamp<V>(normalized<V>(norm, i, load<V>(x + i)), splat<V>(norm.lo), splat<V>(norm.hi)));
    });
}

void normalize_sums(const float *x, const float *dy, int64_t rows, int64_t c, const OdhNorm &norm, double *sums, float *scratch) {
  float *plain = scratch, *weighted = scratch + c;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t n = min_of(kBlock, rows - r0);
    zero(scratch, 2 * c);
    const auto rows_at = [&](int64_t r, auto count) {
      constexpr int K = decltype(count)::value;
      const float *p = x + (r0 + r) * c, *g = dy + (r0 + r) * c;
      over_channels(c, [&](auto kind, int64_t i) {
        using V = decltype(kind);
        const V m = load<V>(norm.mean + i);
        const V lo = splat<V>(norm.lo), hi = splat<V>(norm.hi);
        V sum{}, dot{};
        for (int k = 0; k < K; k++) {
          const V v = load<V>(p + k * c + i);
          const V dz = inside<V>(normalized<V>(norm, i, v), lo, hi, load<V>(g + k * c + i));
          sum += dz;
          dot += dz * (v - m);
        }
        store<V>(plain + i, load<V>(plain + i) + sum);
        store<V>(weighted + i, load<V>(weighted + i) + dot);
      });
    };
    int64_t r = 0;
    for (; r + 4 <= n; r += 4) rows_at(r, Count<4>{});
    for (; r < n; r++) rows_at(r, Count<1>{});
    for (int64_t i = 0; i < c; i++) {
      sums[i] += plain[i];
      sums[c + i] += static_cast<double>(weighted[i]) * norm.rstd[i];
    }
  }
}

void normalize_backward(const float *x, const float *dy, int64_t rows, int64_t c, const OdhNorm &norm, const float *offset,
                        const float *slope, float *dx) {
  for (int64_t r = 0; r < rows; r++, x += c, dy += c, dx += c)
    over_channels(c, [&](auto kind, int64_t i) {
      using V = decltype(kind);
      const V v = load<V>(x + i), centred = v - load<V>(norm.mean + i);
      const V dz = inside<V>(normalized<V>(norm, i, v), splat<V>(norm.lo), splat<V>(norm.hi), load<V>(dy + i));
      store<V>(dx + i, dz * load<V>(norm.scale + i) + (centred * load<V>(slope + i) + load<V>(offset + i)));
    });
}

// ---- Optimizers, each in one pass; the compiler turns these plain loops into vectors ----

void rmsprop(const OdhStretch &s, const OdhUpdate &u) {
  float *__restrict var = s.var, *__restrict ms = s.slot0, *__restrict mom = s.slot1;
  const float *__restrict grad = s.grad;
  const float keep = 1.f - u.decay, lr = u.lr, momentum = u.momentum, epsilon = u.epsilon, l2 = s.l2, scale = s.scale;
  for (int64_t i = 0; i < s.n; i++) {
    const float g = (grad[i] + l2 * var[i]) * scale;
    ms[i] += (g * g - ms[i]) * keep;
    mom[i] = mom[i] * momentum + (g * lr) / __builtin_sqrtf(epsilon + ms[i]);
    var[i] -= mom[i];
  }
}

void momentum(const OdhStretch &s, const OdhUpdate &u) {
  float *__restrict var = s.var, *__restrict acc = s.slot0;
  const float *__restrict grad = s.grad;
  const float lr = u.lr, momentum = u.momentum, l2 = s.l2, scale = s.scale;
  if (u.nesterov) {
    for (int64_t i = 0; i < s.n; i++) {
      const float g = (grad[i] + l2 * var[i]) * scale;
      acc[i] = acc[i] * momentum + g;
      var[i] -= g * lr + acc[i] * momentum * lr;
    }
  } else {
    for (int64_t i = 0; i < s.n; i++) {
      const float g = (grad[i] + l2 * var[i]) * scale;
      acc[i] = acc[i] * momentum + g;
      var[i] -= acc[i] * lr;
    }
  }
}

void adam(const OdhStretch &s, const OdhUpdate &u) {
  float *__restrict var = s.var, *__restrict m = s.slot0, *__restrict v = s.slot1;
  const float *__restrict grad = s.grad;
  const float lr = u.lr, b1 = 1.f - u.beta1, b2 = 1.f - u.beta2, epsilon = u.epsilon, l2 = s.l2, scale = s.scale;
  for (int64_t i = 0; i < s.n; i++) {
    const float g = (grad[i] + l2 * var[i]) * scale;
    m[i] += (g - m[i]) * b1;
    v[i] += (g * g - v[i]) * b2;
    var[i] -= (m[i] * lr) / (__builtin_sqrtf(v[i]) + epsilon);
  }
}

double sum_of_squares(int64_t n, float a, const float *x, float b, const float *y) {
  constexpr int64_t kLanes = 64;
  double total = 0;
  // 64 running sums of at most 64 terms each.
  for (int64_t from = 0; from < n; from += kLanes * 64) {
    const int64_t to = min_of(n, from + kLanes * 64);
    float acc[kLanes] = {};
    int64_t i = from;
    if (b != 0) {
      for (; i + kLanes <= to; i += kLanes)
        for (int64_t j = 0; j < kLanes; j++) {
          const float t = a * x[i + j] + b * y[i + j];
          acc[j] += t * t;
        }
    } else {
      for (; i + kLanes <= to; i += kLanes)
        for (int64_t j = 0; j < kLanes; j++) {
          const float t = a * x[i + j];
          acc[j] += t * t;
        }
    }
    for (; i < to; i++) {
      const float t = a * x[i] + (b != 0 ? b * y[i] : 0.f);
      acc[i - from - (i - from) / kLanes * kLanes] += t * t;
    }
    for (int64_t j = 0; j < kLanes; j++) total += acc[j];
  }
  return total;
}

}  // namespace

const OdhKernels kernels = {ODH_STRING(ODH_ISA), depthwise_forward, depthwise_backward_input, depthwise_backward_weight,
                            normalize, normalize_sums, normalize_backward, rmsprop, momentum, adam, sum_of_squares};

}  // namespace ODH_ISA
