// Mean and variance of each channel, rounded as TensorFlow's CPU kernels round them.
#pragma once
#include <stdint.h>

// Averages `rows` rows of `c` channels, for the `n` channels from `x` on, into `mean` and the biased `variance`; scratch [4][n].
//
// TensorFlow sums over the positions in four interleaved accumulators a channel, ((0 + 1) + 2) + 3, then the up to three positions left
// over (below 16 positions: one accumulator), and divides by the count; the squared deviations are rounded before they are summed. A
// small network trained from another rounding drifts by 1e-3 within one forward pass, because each batch norm amplifies the one before;
// with this one it follows TensorFlow's to 1e-5. (Found by comparing bits with TensorFlow 2.15's `moments` on all layers of an SSD.)
void odh_moments(const float *x, int64_t rows, int64_t c, int64_t n, float *scratch, float *mean, float *variance);
