//! The four outputs of an exported file, in whichever runtime, as detections.

use anyhow::{Result, anyhow, ensure};

use crate::detection::boxes::{BBox, Detections};

/// Their names, in the order of [`detections`]' argument.
pub const NAMES: [&str; 4] = ["detection_boxes", "detection_scores", "detection_classes", "num_detections"];

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    pub shape: Vec<i64>,
    pub values: Vec<f32>,
}

/// What a file found in each of `pictures` pictures.
///
/// * boxes `[N, D, 4]`, scores `[N, D]`, class ids `[N, D]`, counts `[N]`.
///
/// # Errors
/// If the shapes are others, or a count or class id is none.
pub fn detections(pictures: usize, [boxes, scores, classes, counts]: [Output; 4]) -> Result<Vec<Detections>> {
    let (n, rows) = (pictures as i64, scores.shape.get(1).copied().unwrap_or_default());
    let shapes = [&boxes.shape, &scores.shape, &classes.shape, &counts.shape];
    ensure!(
        shapes == [&vec![n, rows, 4], &vec![n, rows], &vec![n, rows], &vec![n]],
        "the file gives {shapes:?} for {pictures} pictures"
    );
    let rows = rows as usize;
    let boxes: Vec<BBox> = boxes.values.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect();
    let class = |&id: &f32| if id >= 1.0 { Ok(id as usize - 1) } else { Err(anyhow!("the file gives the class id {id}")) };
    let found = |(i, &count): (usize, &f32)| {
        ensure!(count >= 0.0 && count as usize <= rows, "the file gives {count} detections of at most {rows}");
        let own = i * rows..i * rows + count as usize;
        Ok(Detections {
            boxes: boxes[own.clone()].to_vec(),
            scores: scores.values[own.clone()].to_vec(),
            classes: classes.values[own].iter().map(class).collect::<Result<_>>()?,
        })
    };
    counts.values.iter().enumerate().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(shape: &[i64], values: &[f32]) -> Output {
        Output { shape: shape.to_vec(), values: values.to_vec() }
    }

    /// Two pictures with room for two detections each.
    fn outputs(classes: [f32; 4], counts: [f32; 2]) -> [Output; 4] {
        let boxes: Vec<f32> = (0..16).map(|i| i as f32).collect();
        [output(&[2, 2, 4], &boxes), output(&[2, 2], &[0.9, 0.8, 0.7, 0.6]), output(&[2, 2], &classes), output(&[2], &counts)]
    }

    #[test]
    fn padding_is_left_out_and_classes_count_from_0() {
        let found = detections(2, outputs([3.0, 1.0, 2.0, 0.0], [2.0, 1.0])).unwrap();
        assert_eq!((&found[0].classes[..], &found[1].classes[..]), (&[2, 0][..], &[1][..]));
        assert_eq!((&found[1].boxes[..], &found[1].scores[..]), (&[[8.0, 9.0, 10.0, 11.0]][..], &[0.7][..]));
    }

    #[test]
    fn what_is_no_detection_is_refused_in_words() {
        let fault = |pictures, outputs| detections(pictures, outputs).unwrap_err().to_string();
        assert!(fault(2, outputs([0.0, 1.0, 1.0, 1.0], [2.0, 1.0])).contains("class id 0"));
        assert!(fault(2, outputs([1.0; 4], [3.0, 1.0])).contains("3 detections of at most 2"));
        assert!(fault(2, outputs([1.0; 4], [f32::NAN, 1.0])).contains("NaN detections"));
        assert!(fault(3, outputs([1.0; 4], [1.0, 1.0])).contains("for 3 pictures"));
    }
}
