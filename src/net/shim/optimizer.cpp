// One step of an optimizer over all variables at once, as TensorFlow 1.x computes it.
//
// fp32 on the CPU takes one pass over memory; all else goes through libtorch's _foreach operators.
#include "parallel.h"
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <vector>

#include "common.h"
#include "kernels.h"

using at::Tensor;
using odh::parallel;

namespace {

constexpr int64_t kStretch = 1 << 16;

enum Rule { kRmsProp = 0, kMomentum = 1, kAdam = 2 };

int slots_of(int rule) { return rule == kMomentum ? 1 : 2; }

bool dense_cpu(const Tensor &t) {
  return t.device().is_cpu() && t.scalar_type() == at::kFloat && t.layout() == at::kStrided && t.is_non_overlapping_and_dense();
}

struct Lists {
  std::vector<Tensor> vars, grads, slot0, slot1;
  const double *l2, *multiplier;
};

struct Numbers {
  double lr, decay, momentum, epsilon, beta1, beta2, beta1_power, beta2_power, clip;
  bool nesterov;
  // Adam's step size, corrected for slots that began at 0.
  double adam_lr() const { return lr * std::sqrt(1 - beta2_power) / (1 - beta1_power); }
};

void step_fused(int rule, Lists &t, const Numbers &u) {
  const auto &kernels = odh_kernels();
  const auto run = rule == kRmsProp ? kernels.rmsprop : rule == kMomentum ? kernels.momentum : kernels.adam;
  OdhUpdate update{};
  update.lr = static_cast<float>(rule == kAdam ? u.adam_lr() : u.lr);
  update.decay = static_cast<float>(u.decay), update.momentum = static_cast<float>(u.momentum);
  update.epsilon = static_cast<float>(u.epsilon), update.beta1 = static_cast<float>(u.beta1), update.beta2 = static_cast<float>(u.beta2);
  update.nesterov = u.nesterov;
  std::vector<OdhStretch> all;
  std::vector<size_t> owner;
  for (size_t i = 0; i < t.vars.size(); i++) {
    float *var = t.vars[i].mutable_data_ptr<float>(), *s0 = t.slot0[i].mutable_data_ptr<float>();
    float *s1 = slots_of(rule) > 1 ? t.slot1[i].mutable_data_ptr<float>() : nullptr;
    const float *grad = t.grads[i].const_data_ptr<float>();
    const int64_t n = t.vars[i].numel();
    for (int64_t at = 0; at < n; at += kStretch) {
      all.push_back({std::min(kStretch, n - at), var + at, grad + at, s0 + at, s1 ? s1 + at : nullptr, static_cast<float>(t.l2[i]), static_cast<float>(t.multiplier[i])});
      owner.push_back(i);
    }
  }
  const auto tasks = static_cast<int64_t>(all.size());
  if (u.clip > 0) {
    std::vector<double> part(all.size()), whole(t.vars.size(), 0.);
    parallel(tasks, [&](int64_t i) { part[i] = kernels.sum_of_squares(all[i].n, all[i].scale, all[i].grad, all[i].scale * all[i].l2, all[i].var); });
    for (size_t i = 0; i < all.size(); i++) whole[owner[i]] += part[i];
    for (size_t i = 0; i < all.size(); i++) all[i].scale *= static_cast<float>(u.clip / std::max(std::sqrt(whole[owner[i]]), u.clip));
  }
  parallel(tasks, [&](int64_t i) { run(all[i], update); });
}

void step_foreach(int rule, Lists &t, const Numbers &u) {
  std::vector<at::Scalar> l2(t.l2, t.l2 + t.vars.size());
  auto g = at::_foreach_mul(t.vars, l2);
  at::_foreach_add_(g, t.grads);
  at::_foreach_mul_(g, std::vector<at::Scalar>(t.multiplier, t.multiplier + t.vars.size()));
  if (u.clip > 0) {
    auto norm = at::_foreach_norm(g, 2);
    at::_foreach_clamp_min_(norm, u.clip);
    at::_foreach_reciprocal_(norm);
    at::_foreach_mul_(norm, u.clip);
    at::_foreach_mul_(g, norm);
  }
  if (rule == kMomentum) {
    at::_foreach_mul_(t.slot0, u.momentum);
    at::_foreach_add_(t.slot0, g);
    if (u.nesterov) {
      at::_foreach_add_(t.vars, g, -u.lr);
      at::_foreach_add_(t.vars, t.slot0, -u.lr * u.momentum);
    } else {
      at::_foreach_add_(t.vars, t.slot0, -u.lr);
    }
    return;
  }
  // slot += (value - slot) * part
  const auto approach = [](std::vector<Tensor> &slot, std::vector<Tensor> value, double part) {
    at::_foreach_sub_(value, slot);
    at::_foreach_add_(slot, value, part);
  };
  if (rule == kRmsProp) {
    approach(t.slot0, at::_foreach_mul(g, g), 1 - u.decay);
    auto root = at::_foreach_add(t.slot0, u.epsilon);
    at::_foreach_sqrt_(root);
    at::_foreach_mul_(g, u.lr);
    at::_foreach_div_(g, root);
    at::_foreach_mul_(t.slot1, u.momentum);
    at::_foreach_add_(t.slot1, g);
    at::_foreach_sub_(t.vars, t.slot1);
  } else {
    approach(t.slot1, at::_foreach_mul(g, g), 1 - u.beta2);
    approach(t.slot0, g, 1 - u.beta1);
    auto root = at::_foreach_sqrt(t.slot1);
    at::_foreach_add_(root, u.epsilon);
    auto change = at::_foreach_mul(t.slot0, u.adam_lr());
    at::_foreach_div_(change, root);
    at::_foreach_sub_(t.vars, change);
  }
}

std::vector<Tensor> list(int64_t n, Tensor *const *p) {
  std::vector<Tensor> out;
  out.reserve(n);
  for (int64_t i = 0; i < n; i++) out.push_back(p[i]->detach());
  return out;
}

}  // namespace

extern "C" {

// numbers: lr, decay, momentum, epsilon, beta1, beta2, beta1 to the t, beta2 to the t, clip (0: none), nesterov.
int odh_optimizer_step(int rule, int64_t n, Tensor *const *vars, Tensor *const *grads, Tensor *const *slot0, Tensor *const *slot1,
                       const double *l2, const double *multiplier, const double *numbers) {
  return odh::guarded([&] {
    TORCH_CHECK(rule >= kRmsProp && rule <= kAdam, "no such optimizer: ", rule);
    at::NoGradGuard no_grad;
    Lists t{list(n, vars), list(n, grads), list(n, slot0), slots_of(rule) > 1 ? list(n, slot1) : std::vector<Tensor>{}, l2, multiplier};
    const Numbers u{numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7], numbers[8], numbers[9] != 0};
    bool fused = true;
    for (int64_t i = 0; i < n; i++) {
      const Tensor &v = t.vars[i];
      const auto like = [&](const Tensor &o) { return dense_cpu(o) && o.strides() == v.strides(); };
      TORCH_CHECK(t.grads[i].sizes() == v.sizes() && t.slot0[i].sizes() == v.sizes() && (t.slot1.empty() || t.slot1[i].sizes() == v.sizes()),
                  "variable ", i, " is ", v.sizes(), ", its gradient ", t.grads[i].sizes(), ", its slot ", t.slot0[i].sizes());
      if (!dense_cpu(v) || !like(t.slot0[i]) || (!t.slot1.empty() && !like(t.slot1[i]))) fused = false;
      if (fused && !like(t.grads[i])) t.grads[i] = at::empty_like(v).copy_(t.grads[i]);
    }
    if (n == 0) return;
    if (fused)
      step_fused(rule, t, u);
    else
      step_foreach(rule, t, u);
  });
}

// The sum over variables of l2 / 2 * the sum of squares.
int odh_l2_loss(int64_t n, Tensor *const *vars, const double *l2, double *out) {
  return odh::guarded([&] {
    at::NoGradGuard no_grad;
    double total = 0;
    Tensor elsewhere;
    for (int64_t i = 0; i < n; i++) {
      if (l2[i] == 0) continue;
      const Tensor &v = *vars[i];
      if (!dense_cpu(v)) {
        const Tensor term = v.detach().square().sum(at::kDouble) * (l2[i] / 2);
        elsewhere = elsewhere.defined() ? elsewhere + term : term;
        continue;
      }
      const float *p = v.const_data_ptr<float>();
      const int64_t tasks = (v.numel() + kStretch - 1) / kStretch;
      std::vector<double> part(tasks);
      parallel(tasks, [&](int64_t j) {
        part[j] = odh_kernels().sum_of_squares(std::min(kStretch, v.numel() - j * kStretch), 1.f, p + j * kStretch, 0.f, nullptr);
      });
      for (double s : part) total += s * (l2[i] / 2);
    }
    *out = total + (elsewhere.defined() ? elsewhere.item<double>() : 0.);
  });
}

// Moves a variable's gradient out and leaves none, so that the next backward pass stores instead of adding. out is null where there is none.
int odh_take_grad(Tensor *var, Tensor **out) {
  return odh::guarded([&] {
    Tensor grad = std::move(var->mutable_grad());
    var->mutable_grad() = Tensor();
    *out = grad.defined() ? odh::give(grad) : nullptr;
  });
}

}  // extern "C"
