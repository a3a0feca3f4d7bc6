// Mean and variance of each channel, rounded as TensorFlow's CPU kernels round them.
#pragma once
#include <stdint.h>

// Adds up `rows` rows of `c` channels, for the channels [first, last), into `mean` and the biased `variance`.
//
// TensorFlow sums over the positions in four interleaved accumulators a channel, ((0 + 1) + 2) + 3, then the up to three positions left
// over (below 16 positions: one accumulator), and divides by the count; the squared deviations are rounded before they are summed. A
// small network trained from another rounding drifts by 1e-3 within one forward pass, because each batch norm amplifies the one before;
// with this one it follows TensorFlow's to 1e-5. (Found by comparing bits with TensorFlow 2.15's `moments` on all layers of an SSD.)
void odh_moments(const float *x, int64_t rows, int64_t c, int64_t first, int64_t last, float *mean, float *variance);
