//! Label maps: protobuf text that gives each class its id.
