//! Slices of a partitioned tensor: the table keys their data lies under, and putting them together again.
//!
//! Source: TensorFlow's `core/framework/tensor_slice.cc`, `core/util/saved_tensor_slice_util.cc` and
//! `core/lib/strings/ordered_code.cc`.

use anyhow::{Context, Result, ensure};

use crate::proto::tensorflow::TensorSliceProto;
use crate::proto::tensorflow::tensor_slice_proto::extent::HasLength;

/// What the table key holds for the length of an axis that is taken whole.
const WHOLE: i64 = -1;

/// One box of a tensor, within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Where it starts, for each axis.
    pub start: Vec<usize>,
    /// How long it is, for each axis.
    pub length: Vec<usize>,
}

impl Slice {
    /// Places `proto` in a tensor of `shape`.
    ///
    /// # Errors
    /// If it has another number of axes, or reaches outside.
    pub fn place(proto: &TensorSliceProto, shape: &[usize]) -> Result<Self> {
        ensure!(proto.extent.len() == shape.len(), "a slice has {} axes, the tensor {}", proto.extent.len(), shape.len());
        let mut slice = Slice { start: Vec::new(), length: Vec::new() };
        for (axis, (extent, &size)) in proto.extent.iter().zip(shape).enumerate() {
            let (start, length) = match extent.has_length {
                Some(HasLength::Length(length)) => (extent.start, length),
                None => (0, size as i64),
            };
            let end = start.checked_add(length);
            let inside = start >= 0 && length >= 0 && end.is_some_and(|end| end as u64 <= size as u64);
            ensure!(inside, "a slice takes {length} from {start} on axis {axis}, which has {size}");
            slice.start.push(start as usize);
            slice.length.push(length as usize);
        }
        Ok(slice)
    }

    /// How many elements it holds.
    pub fn elements(&self) -> usize {
        self.length.iter().product()
    }
}

/// The table key of one slice of the tensor `name`.
pub fn key(name: &str, proto: &TensorSliceProto) -> Vec<u8> {
    let mut key = Vec::new();
    put_number(&mut key, 0); // what sets slices apart from tensors
    put_string(&mut key, name.as_bytes());
    put_number(&mut key, proto.extent.len() as u64);
    for extent in &proto.extent {
        match extent.has_length {
            Some(HasLength::Length(length)) => {
                put_signed(&mut key, extent.start);
                put_signed(&mut key, length);
            }
            None => {
                put_signed(&mut key, 0);
                put_signed(&mut key, WHOLE);
            }
        }
    }
    key
}

/// A tensor that is put together slice by slice.
pub struct Assembly {
    shape: Vec<usize>,
    element: usize,
    bytes: Vec<u8>,
    covered: Vec<bool>,
}

impl Assembly {
    /// Starts a tensor of `shape` with elements of `element` bytes; the caller has made sure that its slices hold as many.
    ///
    /// # Errors
    /// If it does not fit into memory's address space.
    pub fn new(shape: &[usize], element: usize) -> Result<Self> {
        let elements = elements(shape)?;
        let size = elements.checked_mul(element).context("the tensor is too large")?;
        Ok(Assembly { shape: shape.to_vec(), element, bytes: vec![0; size], covered: vec![false; elements] })
    }

    /// Copies a slice's elements, in row-major order, to their place.
    ///
    /// # Errors
    /// If it overlaps an earlier one.
    pub fn put(&mut self, slice: &Slice, data: &[u8]) -> Result<()> {
        assert_eq!(data.len(), slice.elements() * self.element, "the caller checks the size");
        if data.is_empty() {
            return Ok(());
        }
        let rank = self.shape.len();
        let run = slice.length.last().copied().unwrap_or(1); // elements that lie side by side
        let mut at = vec![0; rank]; // position within the slice, last axis always 0
        for source in data.chunks_exact(run * self.element) {
            let start = (0..rank).fold(0, |flat, axis| flat * self.shape[axis] + slice.start[axis] + at[axis]);
            ensure!(!self.covered[start..start + run].contains(&true), "its slices overlap at element {start}");
            self.covered[start..start + run].fill(true);
            self.bytes[start * self.element..(start + run) * self.element].copy_from_slice(source);
            for axis in (0..rank.saturating_sub(1)).rev() {
                at[axis] += 1;
                if at[axis] < slice.length[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        Ok(())
    }

    /// The whole tensor.
    ///
    /// # Errors
    /// If slices are missing.
    pub fn finish(self) -> Result<Vec<u8>> {
        let missing = self.covered.iter().filter(|&&covered| !covered).count();
        ensure!(missing == 0, "its slices leave {missing} of {} elements out", self.covered.len());
        Ok(self.bytes)
    }
}

/// The product of a shape's sizes.
///
/// # Errors
/// If it overflows.
pub fn elements(shape: &[usize]) -> Result<usize> {
    // A zero anywhere makes it empty, however large the others are.
    if shape.contains(&0) {
        return Ok(0);
    }
    let product = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    product.with_context(|| format!("shape {shape:?} has too many elements"))
}

/// A length byte, then the number's bytes, the highest first, without leading zeros.
fn put_number(key: &mut Vec<u8>, value: u64) {
    let bytes = value.to_be_bytes();
    let skip = value.leading_zeros() as usize / 8;
    key.push((8 - skip) as u8);
    key.extend_from_slice(&bytes[skip..]);
}

/// The bytes with 0 and 255 escaped, then a terminator that sorts below all of them.
fn put_string(key: &mut Vec<u8>, value: &[u8]) {
    for &byte in value {
        key.push(byte);
        match byte {
            0x00 => key.push(0xff),
            0xff => key.push(0x00),
            _ => {}
        }
    }
    key.extend_from_slice(&[0x00, 0x01]);
}

/// The number's low bytes, the highest first, its length told by the leading bits: as many ones (zeros if negative) as bytes.
fn put_signed(key: &mut Vec<u8>, value: i64) {
    let magnitude = if value < 0 { !value } else { value } as u64;
    let bits = (64 - magnitude.leading_zeros()) as usize;
    let length = bits / 7 + 1;
    let mut bytes = [if value < 0 { 0xff } else { 0 }; 10];
    bytes[2..].copy_from_slice(&value.to_be_bytes());
    let header: u16 = !(0xffff_u32 >> length) as u16; // `length` ones from the top
    let bytes = &mut bytes[10 - length..];
    bytes[0] ^= (header >> 8) as u8;
    if let Some(second) = bytes.get_mut(1) {
        *second ^= header as u8;
    }
    key.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::proto::tensorflow::tensor_slice_proto::Extent;

    fn proto(extents: &[(i64, Option<i64>)]) -> TensorSliceProto {
        let extent = |&(start, length): &(i64, Option<i64>)| Extent { start, has_length: length.map(HasLength::Length) };
        TensorSliceProto { extent: extents.iter().map(extent).collect() }
    }

    #[test]
    fn signed_numbers_sort_as_their_bytes_do() {
        let values = [i64::MIN, -(1 << 40), -8193, -8192, -129, -65, -64, -1, 0, 1, 63, 64, 8191, 8192, 1 << 20, i64::MAX];
        let keys: Vec<Vec<u8>> = values
            .iter()
            .map(|&v| {
                let mut key = Vec::new();
                put_signed(&mut key, v);
                key
            })
            .collect();
        assert!(keys.is_sorted(), "{keys:02x?}");
        // Lengths grow at 6, 13, 20 ... bits: one goes to the sign and one per byte to the length.
        assert_eq!(keys[8], [0x80]);
        assert_eq!(keys[7], [0x7f]);
        assert_eq!(keys[10], [0x80 + 63]);
        assert_eq!(keys[11], [0xc0, 64]);
        assert_eq!(keys[15].len(), 10);
    }

    #[test]
    fn a_slice_key_names_the_tensor_and_the_box() {
        let key = key("ab", &proto(&[(2, Some(3)), (0, None)]));
        assert_eq!(key, [0, b'a', b'b', 0, 1, 1, 2, 0x82, 0x83, 0x80, 0x7f]);
    }

    #[test]
    fn slices_come_together_along_any_axis() {
        // A 2x4 tensor in three boxes: the left half, and the right half row by row.
        let shape = [2, 4];
        let mut whole = Assembly::new(&shape, 1).unwrap();
        for (extents, data) in [
            (proto(&[(0, None), (0, Some(2))]), vec![0, 1, 4, 5]),
            (proto(&[(0, Some(1)), (2, Some(2))]), vec![2, 3]),
            (proto(&[(1, Some(1)), (2, Some(2))]), vec![6, 7]),
        ] {
            let slice = Slice::place(&extents, &shape).unwrap();
            whole.put(&slice, &data).unwrap();
        }
        assert_eq!(whole.finish().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    /// Splits a box at random along random axes.
    fn split(slice: Slice, rng: &mut ChaCha8Rng, into: &mut Vec<Slice>) {
        let axis = rng.random_range(0..slice.length.len());
        if slice.length[axis] < 2 || rng.random_bool(0.3) {
            into.push(slice);
            return;
        }
        let at = rng.random_range(1..slice.length[axis]);
        let (mut low, mut high) = (slice.clone(), slice);
        low.length[axis] = at;
        high.start[axis] += at;
        high.length[axis] -= at;
        split(low, rng, into);
        split(high, rng, into);
    }

    #[test]
    fn any_partition_of_any_tensor_comes_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for _ in 0..200 {
            let shape: Vec<usize> = (0..rng.random_range(1..5)).map(|_| rng.random_range(1..6)).collect();
            let count = elements(&shape).unwrap();
            let mut slices = Vec::new();
            split(Slice { start: vec![0; shape.len()], length: shape.clone() }, &mut rng, &mut slices);
            let mut whole = Assembly::new(&shape, 2).unwrap();
            for slice in &slices {
                // Element by element: its number in the whole, as two bytes.
                let mut data = Vec::new();
                for flat in 0..count {
                    let mut left = flat;
                    let mut inside = true;
                    for axis in (0..shape.len()).rev() {
                        let at = left % shape[axis];
                        left /= shape[axis];
                        inside &= (slice.start[axis]..slice.start[axis] + slice.length[axis]).contains(&at);
                    }
                    if inside {
                        data.extend_from_slice(&(flat as u16).to_le_bytes());
                    }
                }
                whole.put(slice, &data).unwrap();
            }
            let wanted: Vec<u8> = (0..count as u16).flat_map(u16::to_le_bytes).collect();
            assert_eq!(whole.finish().unwrap(), wanted, "{shape:?} in {} slices", slices.len());
        }
    }

    #[test]
    fn slices_that_overlap_or_leave_gaps_or_reach_outside_are_errors() {
        let slice = Slice::place(&proto(&[(0, Some(2))]), &[3]).unwrap();
        let mut whole = Assembly::new(&[3], 1).unwrap();
        whole.put(&slice, &[1, 2]).unwrap();
        assert_eq!(whole.put(&slice, &[1, 2]).unwrap_err().to_string(), "its slices overlap at element 0");
        assert_eq!(whole.finish().unwrap_err().to_string(), "its slices leave 1 of 3 elements out");
        for bad in [(2, Some(2)), (-1, Some(1)), (0, Some(-1)), (i64::MAX, Some(i64::MAX))] {
            assert!(Slice::place(&proto(&[bad]), &[3]).is_err(), "{bad:?}");
        }
    }
}
