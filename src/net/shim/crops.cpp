// Crops of a map, resized bilinearly, as TensorFlow's CropAndResize: corners lie on corners, and what is outside the map is 0.
#include "parallel.h"
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "common.h"

using at::Tensor;
using odh::parallel;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

const auto kNhwc = at::MemoryFormat::ChannelsLast;

// Where one output coordinate reads along one axis: two neighbours and the weight of the second; none outside the map.
struct Tap {
  int64_t lower, upper;
  float lerp;
  bool inside;
};

// Source: tensorflow/core/kernels/image/crop_and_resize_op.cc; single precision, in its order.
void taps(float from, float to, int64_t side, int64_t crop, Tap *out) {
  const float last = static_cast<float>(side - 1);
  const float scale = crop > 1 ? (to - from) * last / static_cast<float>(crop - 1) : 0;
  for (int64_t i = 0; i < crop; i++) {
    const float at = crop > 1 ? from * last + static_cast<float>(i) * scale : 0.5f * (from + to) * last;
    // A box of NaN is outside too.
    const bool inside = at >= 0 && at <= last;
    const float floor = inside ? std::floor(at) : 0;
    out[i] = {static_cast<int64_t>(floor), inside ? static_cast<int64_t>(std::ceil(at)) : 0, inside ? at - floor : 0, inside};
  }
}

struct Shape {
  int64_t n, c, h, w, boxes, ch, cw;
};

// The taps of every box: ch along y, then cw along x.
std::vector<Tap> all_taps(const Shape &s, const float *boxes) {
  std::vector<Tap> all(s.boxes * (s.ch + s.cw));
  for (int64_t b = 0; b < s.boxes; b++) {
    Tap *out = all.data() + b * (s.ch + s.cw);
    taps(boxes[4 * b], boxes[4 * b + 2], s.h, s.ch, out);
    taps(boxes[4 * b + 1], boxes[4 * b + 3], s.w, s.cw, out + s.ch);
  }
  return all;
}

struct CropAndResize : Function<CropAndResize> {
  // boxes: [R, 4] normalized; pictures: [R] int64; both on the CPU.
  static Tensor forward(AutogradContext *ctx, const Tensor &map, const Tensor &boxes, const Tensor &pictures, int64_t ch, int64_t cw) {
    const Tensor x = map.contiguous(kNhwc);
    const Shape s{x.size(0), x.size(1), x.size(2), x.size(3), boxes.size(0), ch, cw};
    Tensor y = at::empty({s.boxes, s.c, ch, cw}, x.options(), kNhwc);
    const auto all = all_taps(s, boxes.const_data_ptr<float>());
    const int64_t *of = pictures.const_data_ptr<int64_t>();
    const float *xp = x.const_data_ptr<float>();
    float *yp = y.mutable_data_ptr<float>();
    parallel(s.boxes * ch, [&](int64_t task) {
      const int64_t b = task / ch, i = task % ch;
      const Tap *ty = all.data() + b * (ch + cw), *tx = ty + ch;
      const Tap &row = ty[i];
      const float *image = xp + of[b] * s.h * s.w * s.c;
      for (int64_t j = 0; j < cw; j++) {
        float *out = yp + (task * cw + j) * s.c;
        const Tap &column = tx[j];
        if (!row.inside || !column.inside) {
          std::fill(out, out + s.c, 0.f);
          continue;
        }
        const float *tl = image + (row.lower * s.w + column.lower) * s.c, *tr = image + (row.lower * s.w + column.upper) * s.c;
        const float *bl = image + (row.upper * s.w + column.lower) * s.c, *br = image + (row.upper * s.w + column.upper) * s.c;
        for (int64_t c = 0; c < s.c; c++) {
          const float top = tl[c] + (tr[c] - tl[c]) * column.lerp, bottom = bl[c] + (br[c] - bl[c]) * column.lerp;
          out[c] = top + (bottom - top) * row.lerp;
        }
      }
    });
    ctx->save_for_backward({boxes, pictures});
    ctx->saved_data["shape"] = std::vector<int64_t>{s.n, s.c, s.h, s.w, s.boxes, ch, cw};
    return y;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "crop_and_resize: gradients of gradients are not supported");
    variable_list out(5);
    if (!grads[0].defined() || !ctx->needs_input_grad(0)) return out;
    const auto saved = ctx->get_saved_variables();
    const auto v = ctx->saved_data["shape"].toIntVector();
    const Shape s{v[0], v[1], v[2], v[3], v[4], v[5], v[6]};
    const Tensor dy = grads[0].contiguous(kNhwc);
    Tensor dx = at::zeros({s.n, s.c, s.h, s.w}, dy.options()).contiguous(kNhwc);
    const auto all = all_taps(s, saved[0].const_data_ptr<float>());
    const int64_t *of = saved[1].const_data_ptr<int64_t>();
    const float *gp = dy.const_data_ptr<float>();
    float *dp = dx.mutable_data_ptr<float>();
    // Crops overlap: a task owns some channels everywhere, and adds them up in the order of the boxes.
    const int64_t width = 64;
    parallel((s.c + width - 1) / width, [&](int64_t task) {
      const int64_t first = task * width, count = std::min(width, s.c - first);
      for (int64_t b = 0; b < s.boxes; b++) {
        const Tap *ty = all.data() + b * (s.ch + s.cw), *tx = ty + s.ch;
        float *image = dp + of[b] * s.h * s.w * s.c + first;
        for (int64_t i = 0; i < s.ch; i++) {
          if (!ty[i].inside) continue;
          for (int64_t j = 0; j < s.cw; j++) {
            if (!tx[j].inside) continue;
            const float *g = gp + ((b * s.ch + i) * s.cw + j) * s.c + first;
            const float low = 1 - ty[i].lerp, high = ty[i].lerp, left = 1 - tx[j].lerp, right = tx[j].lerp;
            float *tl = image + (ty[i].lower * s.w + tx[j].lower) * s.c, *tr = image + (ty[i].lower * s.w + tx[j].upper) * s.c;
            float *bl = image + (ty[i].upper * s.w + tx[j].lower) * s.c, *br = image + (ty[i].upper * s.w + tx[j].upper) * s.c;
            // The four may be one and the same cell: one after the other.
            for (int64_t c = 0; c < count; c++) tl[c] += left * (low * g[c]);
            for (int64_t c = 0; c < count; c++) tr[c] += right * (low * g[c]);
            for (int64_t c = 0; c < count; c++) bl[c] += left * (high * g[c]);
            for (int64_t c = 0; c < count; c++) br[c] += right * (high * g[c]);
          }
        }
      }
    });
    out[0] = dx;
    return out;
  }
};

// The same of libtorch's own operators, for other devices; the boxes a few at a time, as four maps of each crop are in memory at once. Where
// the samples lie is computed here: a GPU divides by a number as it multiplies by the reciprocal, which puts some last samples past the map.
Tensor composed(const Tensor &map, const Tensor &boxes, const Tensor &pictures, int64_t ch, int64_t cw) {
  const Shape s{map.size(0), map.size(1), map.size(2), map.size(3), boxes.size(0), ch, cw};
  const int64_t step = 64, each = ch + cw;
  const auto all = all_taps(s, boxes.const_data_ptr<float>());
  const int64_t *of = pictures.const_data_ptr<int64_t>(), total = s.boxes * each;
  // Lower and upper neighbour, rows counted through all pictures; lerp and inside.
  Tensor places = at::empty({2, s.boxes, each}, at::kLong), weights = at::empty({2, s.boxes, each}, at::kFloat);
  int64_t *pp = places.mutable_data_ptr<int64_t>();
  float *wp = weights.mutable_data_ptr<float>();
  for (int64_t i = 0; i < total; i++) {
    const int64_t before = i % each < ch ? of[i / each] * s.h : 0;
    pp[i] = before + all[i].lower, pp[total + i] = before + all[i].upper;
    wp[i] = all[i].lerp, wp[total + i] = all[i].inside;
  }
  places = places.to(map.device());
  weights = weights.to(map.options());
  const Tensor cells = map.permute({0, 2, 3, 1}).reshape({-1, s.c});  // [N * H * W, C]
  std::vector<Tensor> crops;
  for (int64_t r = 0; r < s.boxes; r += step) {
    const int64_t n = std::min(step, s.boxes - r);
    const auto part = [&](const Tensor &t, int64_t which) { return t[which].narrow(0, r, n); };
    const auto rows = [&](const Tensor &t, int64_t which) { return part(t, which).narrow(1, 0, ch).unsqueeze(2); };      // [n, ch, 1]
    const auto columns = [&](const Tensor &t, int64_t which) { return part(t, which).narrow(1, ch, cw).unsqueeze(1); };  // [n, 1, cw]
    const auto gather = [&](int64_t row, int64_t column) {
      const Tensor index = rows(places, row) * s.w + columns(places, column);  // [n, ch, cw]
      return cells.index_select(0, index.view({-1})).view({n, ch, cw, s.c});
    };
    const Tensor down = rows(weights, 0).unsqueeze(3), across = columns(weights, 0).unsqueeze(3);
    const auto line = [&](int64_t row) {
      const Tensor left = gather(row, 0);
      return left + (gather(row, 1) - left) * across;
    };
    const Tensor upper = line(0), inside = (rows(weights, 1) * columns(weights, 1)).unsqueeze(3);
    crops.push_back(((upper + (line(1) - upper) * down) * inside).permute({0, 3, 1, 2}));
  }
  return crops.empty() ? at::empty({0, s.c, ch, cw}, map.options()) : at::cat(crops);
}

}  // namespace

extern "C" {

int odh_crop_and_resize(const Tensor *map, const Tensor *boxes, const Tensor *pictures, int64_t ch, int64_t cw, Tensor **out) {
  return odh::guarded([&] {
    TORCH_CHECK(map->dim() == 4 && boxes->dim() == 2 && boxes->size(1) == 4 && pictures->dim() == 1 && pictures->size(0) == boxes->size(0) &&
                    ch > 0 && cw > 0,
                "crop_and_resize: map ", map->sizes(), ", boxes ", boxes->sizes(), ", pictures ", pictures->sizes(), ", crops of ", ch, "x", cw);
    if (pictures->numel() > 0)
      TORCH_CHECK(pictures->min().item<int64_t>() >= 0 && pictures->max().item<int64_t>() < map->size(0),
                  "crop_and_resize: a box of a picture that is not there");
    const bool plain = map->device().is_cpu() && map->scalar_type() == at::kFloat;
    *out = odh::give(plain ? CropAndResize::apply(*map, *boxes, *pictures, ch, cw) : composed(*map, *boxes, *pictures, ch, cw));
  });
}

// For tests: the path of the other devices.
int odh_crop_and_resize_composed(const Tensor *map, const Tensor *boxes, const Tensor *pictures, int64_t ch, int64_t cw, Tensor **out) {
  return odh::guarded([&] { *out = odh::give(composed(*map, *boxes, *pictures, ch, cw)); });
}

}  // extern "C"
