//! frozen_inference_graph.pb.
