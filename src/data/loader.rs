//! Batches of decoded, augmented pictures from background threads.
