//! Crops of a map, each resized to one size (TensorFlow's `crop_and_resize`).

use std::ffi::c_int;

use anyhow::{Context, Result, ensure};
use tch::Tensor;
use torch_sys::C_tensor;

use super::tensor;

type Call = unsafe extern "C" fn(*const C_tensor, *const C_tensor, *const C_tensor, i64, i64, *mut *mut C_tensor) -> c_int;

unsafe extern "C" {
    fn odh_crop_and_resize(
        map: *const C_tensor,
        boxes: *const C_tensor,
        pictures: *const C_tensor,
        height: i64,
        width: i64,
        out: *mut *mut C_tensor,
    ) -> c_int;
    #[cfg(test)]
    fn odh_crop_and_resize_composed(
        map: *const C_tensor,
        boxes: *const C_tensor,
        pictures: *const C_tensor,
        height: i64,
        width: i64,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// What each box holds, sampled bilinearly, corners on corners, 0 outside the map. Differentiable with respect to the map.
///
/// On the CPU the result and its gradient do not depend on the number of threads.
///
/// * `map`: `[N, C, H, W]`.
/// * `boxes`: `[R]` of `[ymin, xmin, ymax, xmax]`, normalized; `pictures`: which of the `N` each is of, `[R]`.
/// * `size`: `[height, width]` of a crop.
/// * returns `[R, C, height, width]`.
///
/// # Errors
/// If the shapes do not fit.
///
/// Source: tensorflow/core/kernels/image/crop_and_resize_op.cc.
pub fn crop_and_resize(map: &Tensor, boxes: &[[f32; 4]], pictures: &[i64], size: [i64; 2]) -> Result<Tensor> {
    call(odh_crop_and_resize, map, boxes, pictures, size)
}

fn call(f: Call, map: &Tensor, boxes: &[[f32; 4]], pictures: &[i64], [height, width]: [i64; 2]) -> Result<Tensor> {
    ensure!(boxes.len() == pictures.len(), "{} boxes of {} pictures", boxes.len(), pictures.len());
    let rows = Tensor::from_slice(boxes.as_flattened()).f_view([-1, 4])?;
    let pictures = Tensor::from_slice(pictures);
    tensor(|out| unsafe { f(map.as_ptr(), rows.as_ptr(), pictures.as_ptr(), height, width, out) }).context("cropping a map")
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn values(x: &Tensor) -> Vec<f32> {
        Vec::<f32>::try_from(x.contiguous().view([-1])).unwrap()
    }

    #[test]
    fn a_crop_has_the_corners_of_its_box_and_zeros_outside_the_map() {
        let map = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([1, 1, 3, 4]);
        let whole = crop_and_resize(&map, &[[0.0, 0.0, 1.0, 1.0]], &[0], [2, 2]).unwrap();
        assert_eq!(values(&whole), [0.0, 3.0, 8.0, 11.0]);
        // One sample lies in the middle.
        assert_eq!(values(&crop_and_resize(&map, &[[0.0, 0.0, 1.0, 1.0]], &[0], [1, 1]).unwrap()), [5.5]);
        // Twice as high as the map: its second half is outside.
        let tall = crop_and_resize(&map, &[[0.0, 0.0, 2.0, 1.0]], &[0], [3, 2]).unwrap();
        assert_eq!(values(&tall), [0.0, 3.0, 8.0, 11.0, 0.0, 0.0]);
        // Upside down.
        assert_eq!(values(&crop_and_resize(&map, &[[1.0, 0.0, 0.0, 1.0]], &[0], [2, 2]).unwrap()), [8.0, 11.0, 0.0, 3.0]);
    }

    fn random_case() -> (Tensor, Vec<[f32; 4]>, Vec<i64>) {
        tch::manual_seed(3);
        let map = Tensor::rand([2, 70, 9, 7], (Kind::Float, Device::Cpu));
        let corners = Vec::<f32>::try_from((Tensor::rand([40], (Kind::Float, Device::Cpu)) * 1.4 - 0.2).view([-1])).unwrap();
        let boxes: Vec<[f32; 4]> = corners.as_chunks::<4>().0.to_vec();
        let pictures = (0..10).map(|i| i % 2).collect();
        (map, boxes, pictures)
    }

    #[test]
    fn the_kernel_equals_libtorchs_own_operators_forward_and_backward() {
        let (map, boxes, pictures) = random_case();
        let mut results = Vec::new();
        for f in [odh_crop_and_resize as Call, odh_crop_and_resize_composed as Call] {
            let x = map.copy().set_requires_grad(true);
            let y = call(f, &x, &boxes, &pictures, [5, 4]).unwrap();
            assert_eq!(y.size(), [10, 70, 5, 4]);
            (y.square() * 0.5).sum(Kind::Float).backward();
            results.push((y.detach(), x.grad()));
        }
        let d = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(d(&results[0].0, &results[1].0) < 1e-5);
        assert!(d(&results[0].1, &results[1].1) < 1e-4);
        assert!(results[0].1.abs().max().double_value(&[]) > 0.5);
    }

    #[test]
    fn crops_that_end_with_the_map_are_the_same_on_every_path() {
        for side in 2..40 {
            let map = Tensor::ones([1, 1, side, 3], (Kind::Float, Device::Cpu));
            for crop in 2..18 {
                let [a, b] = [odh_crop_and_resize as Call, odh_crop_and_resize_composed as Call]
                    .map(|f| call(f, &map, &[[0.1, 0.0, 1.0, 1.0]], &[0], [crop, 2]).unwrap());
                assert_eq!(a, b, "{side} {crop}");
            }
        }
    }

    #[test]
    fn the_gradient_is_the_slope() {
        let (map, boxes, pictures) = random_case();
        let map = map.narrow(1, 0, 2);
        let loss = |x: &Tensor| crop_and_resize(x, &boxes, &pictures, [3, 3]).unwrap().square().sum(Kind::Double);
        let x = map.copy().set_requires_grad(true);
        loss(&x).backward();
        let grad = x.grad();
        for at in [[0, 0, 0, 0], [0, 1, 4, 3], [1, 1, 8, 6], [1, 0, 5, 2]] {
            let step = 1e-2;
            let moved = |by: f64| {
                let y = map.copy();
                let _ =
                    y.narrow(0, at[0], 1).narrow(1, at[1], 1).narrow(2, at[2], 1).narrow(3, at[3], 1).f_add_scalar_(by).unwrap();
                loss(&y).double_value(&[])
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let got = grad.double_value(&at);
            assert!((slope - got).abs() < 1e-3 * slope.abs().max(1.0), "{at:?}: {slope} {got}");
        }
    }

    #[test]
    fn no_boxes_give_no_crops_and_a_picture_too_many_is_refused() {
        let map = Tensor::zeros([1, 2, 3, 3], (Kind::Float, Device::Cpu));
        assert_eq!(crop_and_resize(&map, &[], &[], [4, 4]).unwrap().size(), [0, 2, 4, 4]);
        assert!(crop_and_resize(&map, &[[0.0; 4]], &[1], [4, 4]).is_err());
        assert!(crop_and_resize(&map, &[[0.0; 4]], &[], [4, 4]).is_err());
    }
}
