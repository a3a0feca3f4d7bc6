//! MobileNet V1.
