// The inner loops of training on the CPU, compiled once per instruction set and chosen when the program starts.
//
// All tensors are dense fp32 in NHWC order: a matrix of `rows` positions by `channels`. Nothing here allocates, throws or knows libtorch.
#pragma once
#include <stdint.h>

// The most weights a channel of a depthwise convolution may have.
constexpr int64_t kOdhMaxTaps = 128;

// A depthwise convolution of one picture: input [h, w, c], weights [kh * kw, c], output [oh, ow, c].
struct OdhDepthwise {
  int64_t h, w, c, oh, ow, kh, kw, stride_h, stride_w, dilation_h, dilation_w, top, left;
};

// Per-channel batch norm and the clamp after it: y = clamp((x - origin) * scale + shift, lo, hi), scale = gamma * rstd. Either the origin is
// the mean and the shift beta, or the origin 0 and the shift beta - mean * scale: the same but for rounding.
struct OdhNorm {
  const float *mean, *rstd, *scale, *origin, *shift;
  float lo, hi;
};

// The numbers of an optimizer's step, as TensorFlow's kernels name them.
struct OdhUpdate {
  float lr, decay, momentum, epsilon, beta1, beta2;
  int nesterov;
};

// One stretch of a variable. g' = (g + l2 * var) * scale.
struct OdhStretch {
  int64_t n;
  float *var;
  const float *grad;
  float *slot0, *slot1;
  float l2, scale;
};

struct OdhKernels {
  const char *name;
  void (*depthwise_forward)(const OdhDepthwise &, const float *x, const float *w, float *y, int64_t oh0, int64_t oh1);
  // dx is overwritten.
  void (*depthwise_backward_input)(const OdhDepthwise &, const float *dy, const float *w, float *dx, int64_t ih0, int64_t ih1);
  // dw [kh * kw, c] is added to.
  void (*depthwise_backward_weight)(const OdhDepthwise &, const float *x, const float *dy, float *dw, int64_t oh0, int64_t oh1);
  void (*normalize)(const float *x, int64_t rows, int64_t c, const OdhNorm &, float *y);
  // sums [2, c]: of dz and of dz * (x - mean) * rstd, where dz = dy where the clamp let pass; scratch [2, c].
  void (*normalize_sums)(const float *x, const float *dy, int64_t rows, int64_t c, const OdhNorm &, double *sums, float *scratch);
  // dx = scale * dz + offset + slope * (x - mean)
  void (*normalize_backward)(const float *x, const float *dy, int64_t rows, int64_t c, const OdhNorm &, const float *offset,
                             const float *slope, float *dx);
  void (*rmsprop)(const OdhStretch &, const OdhUpdate &);   // slot0: mean square, slot1: momentum
  void (*momentum)(const OdhStretch &, const OdhUpdate &);  // slot0: accumulator
  void (*adam)(const OdhStretch &, const OdhUpdate &);      // slot0: m, slot1: v; lr already corrected for bias
  // The sum of (a * x + b * y) squared; y may be null where b is 0.
  double (*sum_of_squares)(int64_t n, float a, const float *x, float b, const float *y);
};

// The best of the compiled ones that this processor can run.
const OdhKernels &odh_kernels();

namespace odh_baseline { extern const OdhKernels kernels; }
namespace odh_avx2 { extern const OdhKernels kernels; }
namespace odh_avx512 { extern const OdhKernels kernels; }
