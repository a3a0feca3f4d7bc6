//! Tensors as bytes: their element types, and how a tensor of strings is laid out in a checkpoint.
//!
//! Source: TensorFlow's `core/util/tensor_bundle/tensor_bundle.cc`.

use anyhow::{Context, Result, bail, ensure};

use super::sstable;
use super::tfrecord::mask;
use crate::proto::tensorflow::DataType;

/// A tensor's bytes as the checkpoint holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorData {
    /// The type of its elements.
    pub dtype: DataType,
    /// Its sizes; none for a scalar.
    pub shape: Vec<i64>,
    /// Its elements, little endian, in row-major order.
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// A float32 tensor.
    pub fn from_f32(shape: &[i64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        TensorData { dtype: DataType::DtFloat, shape: shape.to_vec(), bytes }
    }

    /// An int64 tensor, as `global_step` is (a scalar: `shape` is empty).
    pub fn from_i64(shape: &[i64], values: &[i64]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        TensorData { dtype: DataType::DtInt64, shape: shape.to_vec(), bytes }
    }

    /// Its elements, if they are float32.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        let value = |chunk: &[u8]| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        (self.dtype == DataType::DtFloat).then(|| self.bytes.chunks_exact(4).map(value).collect())
    }

    /// Its elements, if they are int64.
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        let value = |chunk: &[u8]| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            i64::from_le_bytes(bytes)
        };
        (self.dtype == DataType::DtInt64).then(|| self.bytes.chunks_exact(8).map(value).collect())
    }
}

/// Bytes of one element; `None` for types without a fixed size.
pub fn element_size(dtype: DataType) -> Option<usize> {
    use DataType::*;
    match dtype {
        DtUint8 | DtInt8 | DtBool | DtQint8 | DtQuint8 => Some(1),
        DtInt16 | DtUint16 | DtQint16 | DtQuint16 | DtBfloat16 | DtHalf => Some(2),
        DtFloat | DtInt32 | DtUint32 | DtQint32 => Some(4),
        DtDouble | DtInt64 | DtUint64 | DtComplex64 => Some(8),
        DtComplex128 => Some(16),
        DtInvalid | DtString | DtResource | DtVariant => None,
    }
}

/// Lays strings out as `unpack_strings` reads them, and gives the tensor's checksum, unmasked.
pub(super) fn pack_strings<S: AsRef<[u8]>>(strings: &[S]) -> (Vec<u8>, u32) {
    let mut bytes = Vec::new();
    let mut crc = 0;
    for string in strings {
        let length = string.as_ref().len() as u64;
        sstable::put_varint(&mut bytes, length);
        crc = append_length(crc, length);
    }
    let lengths = mask(crc).to_le_bytes();
    bytes.extend_from_slice(&lengths);
    crc = crc32c::crc32c_append(crc, &lengths);
    for string in strings {
        bytes.extend_from_slice(string.as_ref());
        crc = crc32c::crc32c_append(crc, string.as_ref());
    }
    (bytes, crc)
}

/// Strings lie as their lengths, the checksum of the lengths, and their bytes one behind the other.
///
/// Returns the strings and the checksum of the tensor, which covers the lengths as fixed-size numbers.
pub(super) fn unpack_strings(bytes: &[u8], count: usize) -> Result<(Vec<Vec<u8>>, u32)> {
    let mut rest = bytes;
    let mut lengths = Vec::with_capacity(count);
    let mut crc = 0;
    for i in 0..count {
        let (length, used) = sstable::varint(rest).with_context(|| format!("the length of string {i} is cut short"))?;
        crc = append_length(crc, length);
        lengths.push(length);
        rest = &rest[used..];
    }
    let Some((stored, mut rest)) = rest.split_first_chunk::<4>() else {
        bail!("the checksum of its lengths is cut short");
    };
    let found = mask(crc);
    ensure!(found.to_le_bytes() == *stored, "the checksum of its string lengths differs: the file is damaged");
    crc = crc32c::crc32c_append(crc, stored);
    crc = crc32c::crc32c_append(crc, rest);
    let mut strings = Vec::with_capacity(count);
    for (i, length) in lengths.into_iter().enumerate() {
        let Some((string, after)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) else {
            bail!("string {i} has {length} bytes, and {} are left", rest.len());
        };
        strings.push(string.to_vec());
        rest = after;
    }
    ensure!(rest.is_empty(), "{} bytes are left after its last string", rest.len());
    Ok((strings, crc))
}

fn append_length(crc: u32, length: u64) -> u32 {
    match u32::try_from(length) {
        Ok(short) => crc32c::crc32c_append(crc, &short.to_le_bytes()),
        Err(_) => crc32c::crc32c_append(crc, &length.to_le_bytes()),
    }
}
