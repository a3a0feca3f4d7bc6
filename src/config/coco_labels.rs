//! The classes of COCO, which the zoo's pretrained models know.

use crate::config::label_map::{Item, LabelMap};

/// Id and name of COCO's 80 classes; ten of the ids up to 90 have no class. Source: the annotations of COCO 2014.
#[rustfmt::skip]
const CLASSES: [(u32, &str); 80] = [
    (1, "person"), (2, "bicycle"), (3, "car"), (4, "motorcycle"), (5, "airplane"), (6, "bus"), (7, "train"), (8, "truck"),
    (9, "boat"), (10, "traffic light"), (11, "fire hydrant"), (13, "stop sign"), (14, "parking meter"), (15, "bench"),
    (16, "bird"), (17, "cat"), (18, "dog"), (19, "horse"), (20, "sheep"), (21, "cow"), (22, "elephant"), (23, "bear"),
    (24, "zebra"), (25, "giraffe"), (27, "backpack"), (28, "umbrella"), (31, "handbag"), (32, "tie"), (33, "suitcase"),
    (34, "frisbee"), (35, "skis"), (36, "snowboard"), (37, "sports ball"), (38, "kite"), (39, "baseball bat"),
    (40, "baseball glove"), (41, "skateboard"), (42, "surfboard"), (43, "tennis racket"), (44, "bottle"),
    (46, "wine glass"), (47, "cup"), (48, "fork"), (49, "knife"), (50, "spoon"), (51, "bowl"), (52, "banana"),
    (53, "apple"), (54, "sandwich"), (55, "orange"), (56, "broccoli"), (57, "carrot"), (58, "hot dog"), (59, "pizza"),
    (60, "donut"), (61, "cake"), (62, "chair"), (63, "couch"), (64, "potted plant"), (65, "bed"), (67, "dining table"),
    (70, "toilet"), (72, "tv"), (73, "laptop"), (74, "mouse"), (75, "remote"), (76, "keyboard"), (77, "cell phone"),
    (78, "microwave"), (79, "oven"), (80, "toaster"), (81, "sink"), (82, "refrigerator"), (84, "book"), (85, "clock"),
    (86, "vase"), (87, "scissors"), (88, "teddy bear"), (89, "hair drier"), (90, "toothbrush"),
];

/// COCO's label map.
pub fn coco() -> LabelMap {
    let items = CLASSES.iter().map(|&(id, name)| Item { id, name: name.to_string(), display_name: None }).collect();
    LabelMap { items }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_rise_to_ninety() {
        assert!(CLASSES.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!(coco().max_id(), 90);
    }

    #[test]
    fn the_names_are_those_of_the_golden_detections() {
        let Some(path) = crate::testing::shared("golden/detect/detections.json") else { return };
        let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let map = coco();
        let mut seen = 0;
        for picture in golden.as_object().unwrap().values() {
            for detection in picture["detections"].as_array().unwrap() {
                let id = detection["class_id"].as_u64().unwrap() as u32;
                assert_eq!(map.name_of(id), detection["class"].as_str(), "{id}");
                seen += 1;
            }
        }
        assert!(seen > 100);
    }
}
