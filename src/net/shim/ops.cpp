// The layers that libtorch is slow at on the CPU (depthwise convolution, batch norm with its activation), as autograd functions.
//
// Fast paths take fp32 on the CPU in NHWC order; all else goes through libtorch's own operators.
#include "parallel.h"
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <vector>

#include "common.h"
#include "kernels.h"
#include "moments.h"

using at::Tensor;
using odh::parallel;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

// What this processor can run, the best first.
std::vector<const OdhKernels *> supported_kernels() {
  std::vector<const OdhKernels *> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    found.push_back(&odh_avx512::kernels);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&odh_avx2::kernels);
#endif
  found.push_back(&odh_baseline::kernels);
  return found;
}

// A lesser set, for tests.
thread_local const OdhKernels *chosen = nullptr;

}  // namespace

const OdhKernels &odh_kernels() {
  static const OdhKernels &best = *supported_kernels().front();
  return chosen ? *chosen : best;
}

namespace {

const auto kNhwc = at::MemoryFormat::ChannelsLast;

bool plain_cpu(const Tensor &t) { return t.device().is_cpu() && t.scalar_type() == at::kFloat && t.layout() == at::kStrided; }

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// These functions' gradients are computed by hand, outside autograd: asked for a gradient of a gradient, they must not answer 0.
void refuse_second_order(const char *what) {
  TORCH_CHECK(!at::GradMode::is_enabled(), what, ": gradients of gradients are not supported");
}

// ---- Depthwise convolution ----

struct DepthwiseConfig {
  int64_t stride[2], padding[4] /* top, left, bottom, right */, dilation[2];
};

OdhDepthwise depthwise_shape(const Tensor &x, const Tensor &w, const DepthwiseConfig &c) {
  OdhDepthwise d{};
  d.h = x.size(2), d.w = x.size(3), d.c = x.size(1), d.kh = w.size(2), d.kw = w.size(3);
  d.stride_h = c.stride[0], d.stride_w = c.stride[1], d.dilation_h = c.dilation[0], d.dilation_w = c.dilation[1];
  d.top = c.padding[0], d.left = c.padding[1];
  d.oh = (d.h + c.padding[0] + c.padding[2] - (d.kh - 1) * d.dilation_h - 1) / d.stride_h + 1;
  d.ow = (d.w + c.padding[1] + c.padding[3] - (d.kw - 1) * d.dilation_w - 1) / d.stride_w + 1;
  return d;
}

// [C, 1, kh, kw] -> [kh * kw, C]
Tensor tap_major(const Tensor &w) { return w.reshape({w.size(0), w.size(2) * w.size(3)}).t().contiguous(); }

// Output rows a task takes: enough work to be worth the call, few enough terms for a sum in single precision.
int64_t depthwise_band(const OdhDepthwise &d) { return std::min(d.oh, std::max<int64_t>(4, divide_up(2048, d.ow))); }

struct DepthwiseConv : Function<DepthwiseConv> {
  static Tensor forward(AutogradContext *ctx, const Tensor &input, const Tensor &weight, const DepthwiseConfig &config) {
    const Tensor x = input.contiguous(kNhwc), w = tap_major(weight);
    const OdhDepthwise d = depthwise_shape(x, weight, config);
    Tensor y = at::empty({x.size(0), d.c, d.oh, d.ow}, x.options(), kNhwc);
    const auto &kernels = odh_kernels();
    const float *xp = x.const_data_ptr<float>(), *wp = w.const_data_ptr<float>();
    float *yp = y.mutable_data_ptr<float>();
    const int64_t band = depthwise_band(d), bands = divide_up(d.oh, band);
    parallel(x.size(0) * bands, [&](int64_t i) {
      const int64_t n = i / bands, oh0 = i % bands * band;
      kernels.depthwise_forward(d, xp + n * d.h * d.w * d.c, wp, yp + n * d.oh * d.ow * d.c, oh0, std::min(d.oh, oh0 + band));
    });
    ctx->save_for_backward({x, weight});
    ctx->saved_data["config"] = std::vector<int64_t>{config.stride[0], config.stride[1], config.padding[0], config.padding[1],
                                                     config.padding[2], config.padding[3], config.dilation[0], config.dilation[1]};
    return y;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    refuse_second_order("depthwise_conv2d");
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const auto v = ctx->saved_data["config"].toIntVector();
    const DepthwiseConfig config{{v[0], v[1]}, {v[2], v[3], v[4], v[5]}, {v[6], v[7]}};
    if (!grads[0].defined()) return {Tensor(), Tensor(), Tensor()};
    const Tensor dy = grads[0].contiguous(kNhwc), w = tap_major(weight);
    const OdhDepthwise d = depthwise_shape(x, weight, config);
    const bool want_dx = ctx->needs_input_grad(0), want_dw = ctx->needs_input_grad(1);
    const int64_t n = x.size(0), taps = d.kh * d.kw, band = depthwise_band(d), bands = divide_up(d.oh, band), tasks = n * bands;
    Tensor dx, partial;
    if (want_dx) dx = at::empty_like(x);
    if (want_dw) partial = at::zeros({tasks, taps * d.c}, x.options());
    const auto &kernels = odh_kernels();
    const float *xp = x.const_data_ptr<float>(), *wp = w.const_data_ptr<float>(), *dyp = dy.const_data_ptr<float>();
    float *dxp = want_dx ? dx.mutable_data_ptr<float>() : nullptr, *pp = want_dw ? partial.mutable_data_ptr<float>() : nullptr;
    parallel(tasks, [&](int64_t i) {
      const int64_t image = i / bands, oh0 = i % bands * band, oh1 = std::min(d.oh, oh0 + band);
      const float *x0 = xp + image * d.h * d.w * d.c, *dy0 = dyp + image * d.oh * d.ow * d.c;
      // Both gradients of a row at a time, while it is in the cache.
      for (int64_t oh = oh0; oh < oh1; oh++) {
        if (want_dw) kernels.depthwise_backward_weight(d, x0, dy0, pp + i * taps * d.c, oh, oh + 1);
        if (want_dx) {
          const int64_t ih0 = std::min(d.h, oh * d.stride_h), ih1 = oh + 1 == d.oh ? d.h : std::min(d.h, (oh + 1) * d.stride_h);
          kernels.depthwise_backward_input(d, dy0, wp, dxp + image * d.h * d.w * d.c, ih0, ih1);
        }
      }
    });
    Tensor dw;
    if (want_dw) dw = partial.sum(0, false, at::kDouble).to(at::kFloat).view({taps, d.c}).t().reshape(weight.sizes());
    return {dx, dw, Tensor()};
  }
};

Tensor depthwise_conv2d(const Tensor &x, const Tensor &w, const DepthwiseConfig &c) {
  TORCH_CHECK(x.dim() == 4 && w.dim() == 4 && w.size(1) == 1 && x.size(1) > 0 && w.size(0) % x.size(1) == 0,
              "depthwise_conv2d: input ", x.sizes(), " does not fit weights ", w.sizes());
  for (int i = 0; i < 2; i++)
    TORCH_CHECK(c.stride[i] > 0 && c.dilation[i] > 0 && c.padding[i] >= 0 && c.padding[i + 2] >= 0,
                "depthwise_conv2d: strides and dilations are at least 1, padding at least 0");
  if (plain_cpu(x) && plain_cpu(w) && w.size(0) == x.size(1) && w.size(2) * w.size(3) <= kOdhMaxTaps) {
    const OdhDepthwise d = depthwise_shape(x, w, c);
    TORCH_CHECK(d.oh > 0 && d.ow > 0, "depthwise_conv2d: the kernel ", w.sizes(), " is larger than the padded input ", x.sizes());
    return DepthwiseConv::apply(x, w, c);
  }
  const bool symmetric = c.padding[0] == c.padding[2] && c.padding[1] == c.padding[3];
  const Tensor in = symmetric ? x : at::constant_pad_nd(x, {c.padding[1], c.padding[3], c.padding[0], c.padding[2]});
  const std::vector<int64_t> pad = symmetric ? std::vector<int64_t>{c.padding[0], c.padding[1]} : std::vector<int64_t>{0, 0};
  return at::conv2d(in, w, {}, c.stride, pad, c.dilation, x.size(1));
}

// ---- Batch norm and its activation ----

// A tensor as positions by channels.
struct Matrix {
  int64_t rows, c;
};

Matrix matrix(const Tensor &x) {
  const int64_t c = x.size(1);
  return {x.numel() / c, c};
}

// Splits rows into tasks of whole blocks of 64, the same ones whatever the number of threads.
struct Split {
  int64_t rows, step, tasks;
  explicit Split(const Matrix &m)
      : rows(m.rows),
        step(64 * std::max<int64_t>({1, divide_up(m.rows, 64 * 64), divide_up(16384, 64 * m.c)})),
        tasks(divide_up(m.rows, step)) {}
};

// Runs f(first row, rows, its own double sums [2, c], its own float scratch [2, c]) over the rows; gives the sum of the sums, [2, c] in
// double, added in the order of the rows.
template <typename F>
Tensor sum_rows(const Matrix &m, const F &f) {
  const Split split(m);
  const Tensor sums = at::zeros({split.tasks, 2, m.c}, at::kDouble);
  const Tensor scratch = at::empty({split.tasks, 2, m.c}, at::kFloat);
  double *sp = sums.mutable_data_ptr<double>();
  float *fp = scratch.mutable_data_ptr<float>();
  parallel(split.tasks, [&](int64_t i) {
    const int64_t r = i * split.step;
    f(r, std::min(split.step, m.rows - r), sp + i * 2 * m.c, fp + i * 2 * m.c);
  });
  return sums.sum(0);
}

template <typename F>
void each_rows(const Matrix &m, const F &f) {
  const Split split(m);
  parallel(split.tasks, [&](int64_t i) {
    const int64_t r = i * split.step;
    f(r, std::min(split.step, m.rows - r));
  });
}

OdhNorm norm_of(const Tensor &mean, const Tensor &rstd, const Tensor &scale, const Tensor &origin, const Tensor &shift, double lo,
                double hi) {
  return {mean.const_data_ptr<float>(),  rstd.const_data_ptr<float>(), scale.const_data_ptr<float>(), origin.const_data_ptr<float>(),
          shift.const_data_ptr<float>(), static_cast<float>(lo),       static_cast<float>(hi)};
}

// dx of clamp((x - origin) * scale + shift), given offset and slope (kernels.h).
Tensor normalize_backward(const Tensor &x, const Tensor &dy, const OdhNorm &norm, const Tensor &offset, const Tensor &slope) {
  const Matrix m = matrix(x);
  Tensor dx = at::empty_like(x);
  const float *xp = x.const_data_ptr<float>(), *gp = dy.const_data_ptr<float>(), *op = offset.const_data_ptr<float>(),
              *sp = slope.const_data_ptr<float>();
  float *dp = dx.mutable_data_ptr<float>();
  const auto &kernels = odh_kernels();
  each_rows(m, [&](int64_t r, int64_t n) {
    kernels.normalize_backward(xp + r * m.c, gp + r * m.c, n, m.c, norm, op, sp, dp + r * m.c);
  });
  return dx;
}

// The sums of dz and of dz * (x - mean) * rstd, [2, c] in double.
Tensor normalize_sums(const Tensor &x, const Tensor &dy, const OdhNorm &norm) {
  const Matrix m = matrix(x);
  const float *xp = x.const_data_ptr<float>(), *gp = dy.const_data_ptr<float>();
  const auto &kernels = odh_kernels();
  return sum_rows(m, [&](int64_t r, int64_t n, double *sums, float *scratch) {
    kernels.normalize_sums(xp + r * m.c, gp + r * m.c, n, m.c, norm, sums, scratch);
  });
}

Tensor normalize(const Tensor &x, const OdhNorm &norm) {
  const Matrix m = matrix(x);
  Tensor y = at::empty_like(x);
  const float *xp = x.const_data_ptr<float>();
  float *yp = y.mutable_data_ptr<float>();
  const auto &kernels = odh_kernels();
  each_rows(m, [&](int64_t r, int64_t n) { kernels.normalize(xp + r * m.c, n, m.c, norm, yp + r * m.c); });
  return y;
}

Tensor nhwc(const Tensor &x) { return x.dim() == 4 ? x.contiguous(kNhwc) : x.contiguous(); }

struct BatchNormAct : Function<BatchNormAct> {
  // centred: how the fused kernel of TensorFlow writes it, (x - mean) * scale + beta; else as its separate operations have it.
  static variable_list forward(AutogradContext *ctx, const Tensor &input, const Tensor &gamma, const Tensor &beta, double eps, bool centred,
                               double lo, double hi) {
    const Tensor x = nhwc(input);
    const Matrix m = matrix(x);
    TORCH_CHECK(m.rows > 0, "batch_norm_train: an empty batch has no mean");
    const float *xp = x.const_data_ptr<float>();
    const Tensor mean = at::empty({m.c}, at::kFloat), var = at::empty({m.c}, at::kFloat);
    float *mp = mean.mutable_data_ptr<float>(), *vp = var.mutable_data_ptr<float>();
    // Whole cache lines of channels a task. A channel is summed by one thread, in order, so the number of threads does not matter.
    const int64_t step = 16 * divide_up(m.c, 16 * at::get_num_threads());
    const Tensor scratch = at::empty({4, divide_up(m.c, step) * step}, at::kFloat);
    float *sp = scratch.mutable_data_ptr<float>();
    parallel(divide_up(m.c, step), [&](int64_t i) {
      const int64_t first = i * step;
      odh_moments(xp + first, m.rows, m.c, std::min(step, m.c - first), sp + 4 * first, mp + first, vp + first);
    });
    const Tensor rstd = (var + eps).rsqrt_();
    const Tensor scale = rstd * gamma;
    const Tensor origin = centred ? mean : at::zeros_like(mean), shift = centred ? beta.contiguous() : beta - mean * scale;
    Tensor y = normalize(x, norm_of(mean, rstd, scale, origin, shift, lo, hi));
    ctx->save_for_backward({x, mean, rstd, scale, origin, shift});
    ctx->saved_data["lo"] = lo;
    ctx->saved_data["hi"] = hi;
    ctx->mark_non_differentiable({mean, var});
    ctx->set_materialize_grads(false);
    return {y, mean, var};
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    refuse_second_order("batch_norm_train");
    variable_list out(7);
    if (!grads[0].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &mean = saved[1], &rstd = saved[2], &scale = saved[3];
    const OdhNorm norm = norm_of(mean, rstd, scale, saved[4], saved[5], ctx->saved_data["lo"].toDouble(), ctx->saved_data["hi"].toDouble());
    const Tensor dy = nhwc(grads[0]), sums = normalize_sums(x, dy, norm);
    if (ctx->needs_input_grad(0)) {
      const Tensor per_row = sums / (-static_cast<double>(matrix(x).rows));
      out[0] = normalize_backward(x, dy, norm, (per_row[0] * scale).to(at::kFloat), (per_row[1] * scale * rstd).to(at::kFloat));
    }
    if (ctx->needs_input_grad(1)) out[1] = sums[1].to(at::kFloat);
    if (ctx->needs_input_grad(2)) out[2] = sums[0].to(at::kFloat);
    return out;
  }
};

struct AffineAct : Function<AffineAct> {
  static Tensor forward(AutogradContext *ctx, const Tensor &input, const Tensor &scale, const Tensor &shift, double lo, double hi) {
    const Tensor x = nhwc(input), s = scale.contiguous(), b = shift.contiguous();
    const Tensor zero = at::zeros_like(s), one = at::ones_like(s);
    Tensor y = normalize(x, norm_of(zero, one, s, zero, b, lo, hi));
    ctx->save_for_backward({x, s, b});
    ctx->saved_data["lo"] = lo;
    ctx->saved_data["hi"] = hi;
    return y;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    refuse_second_order("affine_act");
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &scale = saved[1], &shift = saved[2];
    const Tensor zero = at::zeros_like(scale), one = at::ones_like(scale), dy = nhwc(grads[0]);
    const OdhNorm norm = norm_of(zero, one, scale, zero, shift, ctx->saved_data["lo"].toDouble(), ctx->saved_data["hi"].toDouble());
    if (ctx->needs_input_grad(0)) out[0] = normalize_backward(x, dy, norm, zero, zero);
    if (ctx->needs_input_grad(1) || ctx->needs_input_grad(2)) {
      const Tensor sums = normalize_sums(x, dy, norm);
      if (ctx->needs_input_grad(1)) out[1] = sums[1].to(at::kFloat);
      if (ctx->needs_input_grad(2)) out[2] = sums[0].to(at::kFloat);
    }
    return out;
  }
};

enum Act { kNone = 0, kRelu = 1, kRelu6 = 2 };

void act_range(int act, double *lo, double *hi) {
  const double inf = std::numeric_limits<double>::infinity();
  TORCH_CHECK(act >= kNone && act <= kRelu6, "no such activation: ", act);
  *lo = act == kNone ? -inf : 0;
  *hi = act == kRelu6 ? 6 : inf;
}

// In the memory of x, a result that nothing else has: its gradient then keeps the activation's result alone, and not what went in beside it.
Tensor activate(Tensor x, int act) { return act == kNone ? x : act == kRelu ? x.relu_() : at::hardtanh_(x, 0, 6); }

bool fits(const Tensor &v, const Tensor &x) { return v.dim() == 1 && v.size(0) == x.size(1); }

// gamma may be undefined, for 1.
variable_list batch_norm_train(const Tensor &x, const Tensor &given_gamma, const Tensor &beta, double eps, bool centred, int act) {
  const Tensor gamma = given_gamma.defined() ? given_gamma : at::ones_like(beta);
  TORCH_CHECK((x.dim() == 4 || x.dim() == 2) && x.numel() > 0, "batch_norm_train: input ", x.sizes());
  TORCH_CHECK(fits(beta, x) && fits(gamma, x), "batch_norm_train: gamma or beta does not fit input ", x.sizes());
  double lo, hi;
  act_range(act, &lo, &hi);
  if (plain_cpu(x) && plain_cpu(beta) && plain_cpu(gamma))
    return BatchNormAct::apply(x, gamma, beta, eps, centred, lo, hi);
  auto [y, mean, rstd] = at::native_batch_norm(x, gamma, beta, {}, {}, true, 0., eps);
  const Tensor r = rstd.detach();
  return {activate(y, act), mean.detach(), (r * r).reciprocal_().sub_(eps).clamp_min_(0)};
}

Tensor affine_act(const Tensor &x, const Tensor &scale, const Tensor &shift, int act) {
  TORCH_CHECK((x.dim() == 4 || x.dim() == 2) && x.size(1) > 0 && fits(scale, x) && fits(shift, x), "affine_act: scale or shift does not fit input ",
              x.sizes());
  double lo, hi;
  act_range(act, &lo, &hi);
  if (plain_cpu(x) && plain_cpu(scale) && plain_cpu(shift)) return AffineAct::apply(x, scale, shift, lo, hi);
  const auto per_channel = [&](const Tensor &v) { return x.dim() == 4 ? v.view({1, -1, 1, 1}) : v; };
  return activate(at::addcmul(per_channel(shift), x, per_channel(scale)), act);
}

const Tensor &maybe(const Tensor *t) {
  static const Tensor undefined;
  return t ? *t : undefined;
}

}  // namespace

extern "C" {

const char *odh_instruction_set() { return odh_kernels().name; }

// Makes the calling thread use the i-th set that this processor supports, 0 being the best. Error where there are fewer.
int odh_use_instruction_set(int i) {
  return odh::guarded([&] {
    const auto found = supported_kernels();
    TORCH_CHECK(i >= 0 && i < static_cast<int>(found.size()), "this processor has ", found.size(), " instruction sets");
    chosen = i == 0 ? nullptr : found[i];
  });
}

// geometry: stride h, w; padding top, left, bottom, right; dilation h, w.
int odh_depthwise_conv2d(const Tensor *x, const Tensor *w, const int64_t *geometry, Tensor **out) {
  return odh::guarded([&] {
    DepthwiseConfig c;
    std::copy(geometry, geometry + 2, c.stride);
    std::copy(geometry + 2, geometry + 6, c.padding);
    std::copy(geometry + 6, geometry + 8, c.dilation);
    *out = odh::give(depthwise_conv2d(*x, *w, c));
  });
}

// out: y, batch mean, batch variance (biased). gamma may be null.
int odh_batch_norm_train(const Tensor *x, const Tensor *gamma, const Tensor *beta, double eps, int centred, int act, Tensor **out) {
  return odh::guarded([&] {
    auto r = batch_norm_train(*x, maybe(gamma), *beta, eps, centred != 0, act);
    for (int i = 0; i < 3; i++) out[i] = odh::give(r[i]);
  });
}

int odh_affine_act(const Tensor *x, const Tensor *scale, const Tensor *shift, int act, Tensor **out) {
  return odh::guarded([&] { *out = odh::give(affine_act(*x, *scale, *shift, act)); });
}

}  // extern "C"
