//! tf.Example to labeled image and back.
