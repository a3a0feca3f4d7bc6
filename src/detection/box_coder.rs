//! Boxes relative to anchors and back (Ren et al., Faster R-CNN, arXiv:1506.01497, section 3.1.2; upstream box_coders/faster_rcnn_box_coder.py).

use super::boxes::BBox;

/// Added to sizes before they are divided or their logarithm is taken (upstream's EPSILON).
const EPSILON: f32 = 1e-8;

/// `[y, x, height, width]` factors that the encoded numbers are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BoxCoder {
    pub scale: [f32; 4],
}

impl BoxCoder {
    /// A box relative to its anchor, as `[ty, tx, th, tw]`, times the scale factors.
    pub fn encode(&self, b: &BBox, anchor: &BBox) -> [f32; 4] {
        let [yc_a, xc_a, h_a, w_a] = center_size(anchor);
        let [yc, xc, h, w] = center_size(b);
        let (h_a, w_a, h, w) = (h_a + EPSILON, w_a + EPSILON, h + EPSILON, w + EPSILON);
        let t = [(yc - yc_a) / h_a, (xc - xc_a) / w_a, (h / h_a).ln(), (w / w_a).ln()];
        std::array::from_fn(|i| t[i] * self.scale[i])
    }

    /// The inverse of `encode`.
    pub fn decode(&self, code: &[f32], anchor: &BBox) -> BBox {
        let [yc_a, xc_a, h_a, w_a] = center_size(anchor);
        let (ty, tx) = (code[0] / self.scale[0], code[1] / self.scale[1]);
        let (th, tw) = (code[2] / self.scale[2], code[3] / self.scale[3]);
        let (h, w) = (th.exp() * h_a, tw.exp() * w_a);
        let (yc, xc) = (ty * h_a + yc_a, tx * w_a + xc_a);
        [yc - h / 2.0, xc - w / 2.0, yc + h / 2.0, xc + w / 2.0]
    }
}

/// `[y centre, x centre, height, width]`.
fn center_size(b: &BBox) -> [f32; 4] {
    let (h, w) = (b[2] - b[0], b[3] - b[1]);
    [b[0] + h / 2.0, b[1] + w / 2.0, h, w]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_undoes_encode() {
        let coder = BoxCoder { scale: [10.0, 10.0, 5.0, 5.0] };
        let (b, anchor) = ([0.1, 0.2, 0.5, 0.9], [0.2, 0.1, 0.4, 0.6]);
        let back = coder.decode(&coder.encode(&b, &anchor), &anchor);
        for (x, y) in back.iter().zip(b) {
            assert!((x - y).abs() < 1e-6);
        }
    }

    #[test]
    fn a_box_is_encoded_by_its_centre_and_size_each_with_its_factor() {
        let coder = BoxCoder { scale: [10.0, 20.0, 5.0, 2.0] };
        // The anchor's centre is (0.3, 0.35) and its size 0.2 x 0.5; the box's (0.4, 0.55) and 0.4 x 0.7.
        let code = coder.encode(&[0.2, 0.2, 0.6, 0.9], &[0.2, 0.1, 0.4, 0.6]);
        for (found, expected) in code.iter().zip([10.0 * 0.5, 20.0 * 0.4, 5.0 * 2f32.ln(), 2.0 * 1.4f32.ln()]) {
            assert!((found - expected).abs() < 1e-5, "{code:?}");
        }
    }

    #[test]
    fn a_box_that_is_its_anchor_encodes_to_zero() {
        let coder = BoxCoder { scale: [10.0, 10.0, 5.0, 5.0] };
        let b = [0.1, 0.2, 0.5, 0.9];
        assert_eq!(coder.encode(&b, &b).map(|t| t.abs() < 1e-6), [true; 4]);
    }
}
