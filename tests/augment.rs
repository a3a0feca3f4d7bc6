//! The augmentations: their distributions against TensorFlow's, and what must hold of every draw.

use odh::data::augment::Augmentation;
use odh::data::augment::crop::Crop;
use odh::data::augment::flip::Flip;
use odh::data::image::RgbImage;
use odh::data::sample::{Pixels, Sample, share_inside};
use odh::detection::boxes::{BBox, Groundtruth};
use odh::proto::object_detection::protos as pb;
use pb::preprocessing_step::PreprocessingStep as Step;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A picture whose pixels tell where they stood: red is half the column, green the row, blue the column's last bit.
fn sample(height: usize, width: usize, boxes: &[BBox]) -> Sample {
    let mut data = Vec::new();
    for y in 0..height {
        for x in 0..width {
            data.extend([(x / 2) as u8, y as u8, (x % 2) as u8]);
        }
    }
    let count = boxes.len();
    let groundtruth = Groundtruth {
        boxes: boxes.to_vec(),
        classes: (0..count).collect(),
        difficult: (0..count).map(|i| i % 2 == 1).collect(),
        crowd: vec![false; count],
    };
    Sample::new(RgbImage { width, height, data }, groundtruth)
}

/// Row and column in the first picture of the pixel that is now the first.
fn first_pixel(sample: &Sample) -> (usize, usize) {
    let [r, g, b] = match &sample.pixels {
        Pixels::Bytes(data) => [data[0], data[1], data[2]].map(usize::from),
        Pixels::Floats(data) => [data[0], data[1], data[2]].map(|v| v as usize),
    };
    (g, 2 * r + b)
}

fn step(step: Step) -> pb::PreprocessingStep {
    pb::PreprocessingStep { preprocessing_step: Some(step) }
}

fn built(which: Step) -> Augmentation {
    Augmentation::from_config(&step(which)).unwrap()
}

const TWO: [BBox; 2] = [[0.1, 0.2, 0.4, 0.5], [0.55, 0.6, 0.9, 0.8]];

#[test]
fn crops_are_distributed_as_tensorflows() {
    // 40,000 draws of tf.image.sample_distorted_bounding_box (TensorFlow 2.15.1) on 150 x 200 pixels: means and standard
    // deviations of top, left, height and width, and how often the picture stayed whole.
    type Row = (f32, &'static [BBox], [f64; 4], [f64; 4], f64);
    let rows: [Row; 5] = [
        (0.0, &TWO, [27.37, 43.06, 94.47, 112.75], [22.96, 34.41, 28.27, 41.08], 0.0),
        (0.3, &TWO, [24.33, 41.33, 98.95, 118.79], [20.98, 33.08, 27.19, 40.41], 0.0),
        (0.9, &TWO, [18.63, 32.23, 111.81, 137.57], [19.75, 29.94, 24.29, 37.40], 0.0),
        (1.0, &TWO, [16.89, 29.84, 115.26, 142.04], [18.97, 28.90, 23.10, 36.01], 0.0),
        (1.0, &[[0.02, 0.02, 0.98, 0.98]], [0.13, 0.17, 149.66, 199.56], [0.5, 0.5, 1.2, 1.6], 0.858),
    ];
    const DRAWS: usize = 10_000;
    for (covered, boxes, means, deviations, whole) in rows {
        let crop = Augmentation::Crop(Crop {
            min_object_covered: covered,
            aspect_ratio: (0.5, 2.0),
            area: (0.1, 1.0),
            overlap_thresh: 0.0,
            random_coef: 0.0,
        });
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let start = sample(150, 200, boxes);
        let mut sums = [0.0; 4];
        let mut wholes = 0;
        for _ in 0..DRAWS {
            let mut s = start.clone();
            crop.apply(&mut s, &mut rng);
            let (top, left) = first_pixel(&s);
            for (sum, value) in sums.iter_mut().zip([top, left, s.height, s.width]) {
                *sum += value as f64;
            }
            wholes += usize::from((s.height, s.width) == (150, 200));
        }
        for i in 0..4 {
            // Five standard errors of the difference of two means, of 10,000 and 40,000 draws; half a last digit.
            let bound = 5.0 * deviations[i] * (1.25 / DRAWS as f64).sqrt() + 0.005;
            let mean = sums[i] / DRAWS as f64;
            assert!((mean - means[i]).abs() < bound, "{covered} [{i}]: {mean}, TensorFlow {} (bound {bound})", means[i]);
        }
        let share = wholes as f64 / DRAWS as f64;
        assert!((share - whole).abs() < 0.02, "{covered}: whole {share}, TensorFlow {whole}");
    }
}

#[test]
fn half_of_the_pictures_are_flipped_and_a_flip_moves_box_and_pixel_alike() {
    let start = sample(4, 6, &[[0.25, 0.5, 0.5, 1.0]]);
    for flip in [Flip::Horizontal, Flip::Vertical, Flip::Rotation90] {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut flipped = 0;
        for _ in 0..4000 {
            let mut s = start.clone();
            Augmentation::Flip(flip).apply(&mut s, &mut rng);
            flipped += usize::from(s != start);
            if s != start && flip == Flip::Horizontal {
                assert_eq!(first_pixel(&s), (0, 5));
                assert_eq!(s.groundtruth.boxes, [[0.25, 0.0, 0.5, 0.5]]);
            }
        }
        // Five standard deviations of 4000 fair coins are 158.
        assert!((1842..=2158).contains(&flipped), "{flip:?}: {flipped} of 4000");
    }
}

#[test]
fn ssd_random_crop_keeps_labels_with_their_boxes_and_boxes_within_the_picture() {
    let boxes: Vec<BBox> = (0..9)
        .map(|i| {
            let (y, x) = ((i / 3) as f32 * 0.33, (i % 3) as f32 * 0.33);
            [y, x, y + 0.1 + 0.025 * i as f32, x + 0.3]
        })
        .collect();
    let augmentation = built(Step::SsdRandomCrop(pb::SsdRandomCrop::default()));
    let Augmentation::SsdCrop(crops) = &augmentation else { panic!("{augmentation:?}") };
    assert_eq!(crops.len(), 7);
    assert!(crops.iter().all(|c| c.random_coef == 0.15 && c.aspect_ratio == (0.5, 2.0) && c.area == (0.1, 1.0)));
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let start = sample(150, 200, &boxes);
    let (mut whole, mut kept, mut empty) = (0, 0, 0);
    for _ in 0..3000 {
        let mut s = start.clone();
        augmentation.apply(&mut s, &mut rng);
        let truth = &s.groundtruth;
        let (top, left) = first_pixel(&s);
        if (s.height, s.width) == (150, 200) {
            whole += 1;
            continue;
        }
        let window = [top as f32 / 150.0, left as f32 / 200.0, (top + s.height) as f32 / 150.0, (left + s.width) as f32 / 200.0];
        assert!(truth.boxes.len() == truth.classes.len() && truth.boxes.len() == truth.difficult.len());
        kept += truth.boxes.len();
        empty += usize::from(truth.boxes.is_empty());
        for ((bbox, &class), &difficult) in truth.boxes.iter().zip(&truth.classes).zip(&truth.difficult) {
            assert_eq!(difficult, class % 2 == 1);
            assert!(bbox.iter().all(|v| (0.0..=1.0).contains(v)) && bbox[0] < bbox[2] && bbox[1] < bbox[3], "{bbox:?}");
            // Back in the first picture's frame it is the part of its own box that lies in the window.
            let whole_box = boxes[class];
            for i in 0..4 {
                let side = window[i % 2 + 2] - window[i % 2];
                let back = bbox[i] * side + window[i % 2];
                let want = whole_box[i].clamp(window[i % 2], window[i % 2 + 2]);
                assert!((back - want).abs() < 1e-5, "class {class}: {back}, {want}");
            }
        }
        // Under every degree of strictness, what stays has a larger share inside than what goes.
        let share = |class: usize| share_inside(&boxes[class], &window);
        let least_kept = truth.classes.iter().map(|&c| share(c)).fold(1.0, f32::min);
        let most_gone = (0..9).filter(|c| !truth.classes.contains(c)).map(share).fold(0.0, f32::max);
        assert!(least_kept >= most_gone, "kept at {least_kept}, dropped at {most_gone}");
    }
    // 15 % are left alone by choice, few because no crop was found; the loosest crop may lose every box.
    assert!((350..=600).contains(&whole), "{whole}");
    assert!(kept > 3000 && empty > 0 && empty < 600, "{kept} {empty}");
}

#[test]
fn a_picture_without_boxes_can_be_cropped() {
    let augmentation = built(Step::SsdRandomCrop(pb::SsdRandomCrop::default()));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut cropped = 0;
    for _ in 0..200 {
        let mut s = sample(37, 53, &[]);
        augmentation.apply(&mut s, &mut rng);
        cropped += usize::from((s.height, s.width) != (37, 53));
    }
    assert!(cropped > 20, "{cropped}");
    let mut s = sample(1, 1, &[[0.0, 0.0, 1.0, 1.0]]);
    for _ in 0..200 {
        augmentation.apply(&mut s, &mut rng);
    }
    assert_eq!((s.height, s.width), (1, 1));
}

/// Every step that is supported, with its defaults where they make sense.
fn every_step() -> Vec<Augmentation> {
    let resize = pb::ResizeImage { new_height: Some(30), new_width: Some(40), method: None };
    let normalize = pb::NormalizeImage {
        original_minval: Some(0.0),
        original_maxval: Some(255.0),
        target_minval: Some(0.0),
        target_maxval: Some(1.0),
    };
    vec![
        built(Step::RandomHorizontalFlip(Default::default())),
        built(Step::RandomVerticalFlip(Default::default())),
        built(Step::RandomRotation90(Default::default())),
        built(Step::RandomPixelValueScale(Default::default())),
        built(Step::RandomImageScale(Default::default())),
        built(Step::RandomRgbToGray(pb::RandomRgBtoGray { probability: Some(0.5) })),
        built(Step::RandomAdjustBrightness(Default::default())),
        built(Step::RandomAdjustContrast(Default::default())),
        built(Step::RandomAdjustHue(Default::default())),
        built(Step::RandomAdjustSaturation(Default::default())),
        built(Step::RandomDistortColor(Default::default())),
        built(Step::RandomDistortColor(pb::RandomDistortColor { color_ordering: Some(1) })),
        built(Step::RandomJitterBoxes(Default::default())),
        built(Step::RandomCropImage(Default::default())),
        built(Step::RandomPadImage(Default::default())),
        built(Step::RandomCropPadImage(Default::default())),
        built(Step::RandomCropToAspectRatio(Default::default())),
        built(Step::RandomBlackPatches(Default::default())),
        built(Step::ResizeImage(resize)),
        built(Step::RandomResizeMethod(pb::RandomResizeMethod { target_height: Some(30.0), target_width: Some(99.0) })),
        built(Step::SubtractChannelMean(pb::SubtractChannelMean { means: vec![1.0, 2.0, 3.0] })),
        built(Step::NormalizeImage(normalize)),
        built(Step::SsdRandomCrop(Default::default())),
        built(Step::SsdRandomCropPad(Default::default())),
        built(Step::SsdRandomCropFixedAspectRatio(Default::default())),
        built(Step::SsdRandomCropPadFixedAspectRatio(Default::default())),
    ]
}

#[test]
fn every_step_leaves_a_whole_picture_with_boxes_inside_and_repeats_itself_from_one_seed() {
    let start = sample(61, 83, &TWO);
    for augmentation in every_step() {
        let mut changed = 0;
        for seed in 0..60 {
            let run = || {
                let mut s = start.clone();
                augmentation.apply(&mut s, &mut ChaCha8Rng::seed_from_u64(seed));
                s
            };
            let s = run();
            assert_eq!(s, run(), "{augmentation:?}");
            let values = match &s.pixels {
                Pixels::Bytes(data) => data.len(),
                Pixels::Floats(data) => {
                    assert!(data.iter().all(|v| (-64.0..=320.0).contains(v)), "{augmentation:?}");
                    data.len()
                }
            };
            assert_eq!(values, s.height * s.width * 3, "{augmentation:?}");
            let truth = &s.groundtruth;
            assert!(truth.boxes.as_flattened().iter().all(|v| (-1e-6..=1.000_001).contains(v)), "{augmentation:?}: {truth:?}");
            assert!(truth.boxes.len() == truth.classes.len() && truth.boxes.len() == truth.difficult.len());
            changed += usize::from(s != start);
        }
        assert!(changed >= 10, "{augmentation:?}: changed {changed} of 60");
    }
}

#[test]
fn padding_keeps_the_pixels_under_the_boxes() {
    let augmentation = built(Step::RandomPadImage(pb::RandomPadImage { pad_color: vec![9.0, 9.0, 9.0], ..Default::default() }));
    for seed in 0..100 {
        let mut s = sample(50, 60, &[[0.2, 0.1, 0.6, 0.7]]);
        augmentation.apply(&mut s, &mut ChaCha8Rng::seed_from_u64(seed));
        let Pixels::Bytes(data) = &s.pixels else { panic!("floats") };
        let [ymin, xmin, ..] = s.groundtruth.boxes[0];
        let (y, x) = ((ymin * s.height as f32).round() as usize, (xmin * s.width as f32).round() as usize);
        let at = (y * s.width + x) * 3;
        assert_eq!(data[at..at + 3], [3, 10, 0], "row 10, column 6 of the first picture");
    }
}

#[test]
fn what_is_not_supported_or_out_of_range_is_refused() {
    let refusals = [
        (Step::RgbToGray(pb::RgBtoGray {}), "not supported"),
        (Step::RandomResizeMethod(Default::default()), "random_resize_method: target_height 0"),
        (Step::ScaleBoxesToPixelCoordinates(Default::default()), "not supported"),
        (Step::RandomDistortColor(pb::RandomDistortColor { color_ordering: Some(2) }), "color_ordering 2"),
        (Step::RandomPadImage(pb::RandomPadImage { pad_color: vec![1.0], ..Default::default() }), "pad_color has 1"),
        (
            Step::SsdRandomCrop(pb::SsdRandomCrop { operations: vec![pb::SsdRandomCropOperation::default()] }),
            "ssd_random_crop.operations[0]: min_aspect_ratio 0",
        ),
        (Step::RandomCropImage(pb::RandomCropImage { min_area: Some(0.0), ..Default::default() }), "min_area 0"),
        (Step::ResizeImage(pb::ResizeImage { new_height: Some(3), ..Default::default() }), "new_width 0"),
    ];
    for (which, said) in refusals {
        let error = format!("{:#}", Augmentation::from_config(&step(which)).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
    assert!(Augmentation::from_config(&pb::PreprocessingStep { preprocessing_step: None }).is_err());
}
