//! saved_model/: the frozen graph under the names that TensorFlow's loaders and TensorFlow Serving ask for (upstream exporter.py).

use crate::export::graph_def::builder::shape;
use crate::proto::tensorflow::meta_graph_def::MetaInfoDef;
use crate::proto::tensorflow::{DataType, GraphDef, MetaGraphDef, SavedModel, SignatureDef, TensorInfo};

/// The version of the format, the only one there is.
const SCHEMA_VERSION: i64 = 1;
/// Who may load the graph.
const TAG: &str = "serve";
/// What is called where nothing else is asked for.
const SIGNATURE: &str = "serving_default";

/// The frozen graph with its signature: `inputs` to the four outputs.
///
/// * `detections`: the limit of detections in all, the `D` of the outputs' shapes.
pub fn saved_model(graph: GraphDef, detections: usize) -> SavedModel {
    let d = detections as i64;
    let tensor = |name: &str, dtype: DataType, sides: &[i64]| TensorInfo {
        name: format!("{name}:0"),
        dtype: dtype as i32,
        tensor_shape: Some(shape(sides)),
    };
    let outputs: [(&str, &[i64]); 4] = [
        ("detection_boxes", &[-1, d, 4]),
        ("detection_scores", &[-1, d]),
        ("detection_classes", &[-1, d]),
        ("num_detections", &[-1]),
    ];
    let signature = SignatureDef {
        inputs: [("inputs".to_string(), tensor("image_tensor", DataType::DtUint8, &[-1, -1, -1, 3]))].into(),
        outputs: outputs.map(|(name, sides)| (name.to_string(), tensor(name, DataType::DtFloat, sides))).into(),
        method_name: "tensorflow/serving/predict".to_string(),
    };
    let meta_graph = MetaGraphDef {
        meta_info_def: Some(MetaInfoDef { tags: vec![TAG.to_string()], ..MetaInfoDef::default() }),
        graph_def: Some(graph),
        signature_def: [(SIGNATURE.to_string(), signature)].into(),
    };
    SavedModel { saved_model_schema_version: SCHEMA_VERSION, meta_graphs: vec![meta_graph] }
}
