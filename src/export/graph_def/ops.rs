//! Small pieces of a GraphDef that several writers use.

use super::builder::{Builder, Op, Value};
use crate::proto::tensorflow::DataType::{self, DtInt32};

/// Columns `begin..end` of the last of `rank` dimensions.
pub fn columns(b: &mut Builder, name: &str, x: Value, rank: usize, [begin, end]: [i32; 2]) -> Value {
    let (mut from, mut sizes) = (vec![0; rank], vec![-1; rank]);
    from[rank - 1] = begin;
    sizes[rank - 1] = end - begin;
    let first = b.ints(&format!("{name}/begin"), &[rank as i64], &from);
    let size = b.ints(&format!("{name}/size"), &[rank as i64], &sizes);
    b.add(name, Op::new("Slice", &[x, first, size]).typed("T").with("Index", DtInt32), x.dtype())
}

/// `x` with these sizes; one of them may be -1, what is left.
pub fn reshape(b: &mut Builder, name: &str, x: Value, sizes: &[i32]) -> Value {
    let sizes = b.ints(&format!("{name}/shape"), &[sizes.len() as i64], sizes);
    b.add(name, Op::new("Reshape", &[x, sizes]).typed("T").with("Tshape", DtInt32), x.dtype())
}

/// The first or the second value, as a scalar condition says.
pub fn select(b: &mut Builder, name: &str, condition: Value, values: [Value; 2]) -> Value {
    let op = Op::new("Select", &[condition, values[0], values[1]]).with("T", values[0].dtype());
    b.add(name, op, values[0].dtype())
}

/// All elements of `x` in one row.
pub fn flatten(b: &mut Builder, name: &str, x: Value) -> Value {
    reshape(b, name, x, &[-1])
}

/// Elements of `x` along its first dimension.
pub fn gather(b: &mut Builder, name: &str, x: Value, indices: Value) -> Value {
    let axis = b.int(&format!("{name}/axis"), 0);
    let op = Op::new("GatherV2", &[x, indices, axis]);
    let op = op.with("Tparams", x.dtype()).with("Tindices", indices.dtype()).with("Taxis", DtInt32);
    b.add(name, op, x.dtype())
}

/// `x` as elements of another type.
pub fn cast(b: &mut Builder, name: &str, x: Value, to: DataType) -> Value {
    b.add(name, Op::new("Cast", &[x]).with("SrcT", x.dtype()).with("DstT", to), to)
}

/// `x + 1`, of an integer.
pub fn increment(b: &mut Builder, x: Value) -> Value {
    let one = b.int("add/y", 1);
    b.same("add", "Add", &[x, one])
}

/// `parts` side by side along a new dimension `axis`; `parts` are of one shape.
pub fn pack(b: &mut Builder, name: &str, parts: &[Value], axis: i64) -> Value {
    let op = Op::new("Pack", parts).typed("T").with("N", parts.len() as i64).with("axis", axis);
    b.add(name, op, parts[0].dtype())
}

/// `parts` side by side along `axis`.
pub fn concat(b: &mut Builder, name: &str, parts: &[Value], axis: i32) -> Value {
    let axis = b.int(&format!("{name}/axis"), axis);
    let inputs: Vec<Value> = parts.iter().copied().chain([axis]).collect();
    let op = Op::new("ConcatV2", &inputs).typed("T").with("N", parts.len() as i64).with("Tidx", DtInt32);
    b.add(name, op, parts[0].dtype())
}

/// `[height, width]` of `[N, height, width, C]`.
pub fn height_and_width(b: &mut Builder, x: Value) -> Value {
    let sizes = shape_of(b, x);
    let places = b.ints("height_and_width", &[2], &[1, 2]);
    gather(b, "size", sizes, places)
}

/// The sides of `x`, integers.
pub fn shape_of(b: &mut Builder, x: Value) -> Value {
    b.add("Shape", Op::new("Shape", &[x]).typed("T").with("out_type", DtInt32), DtInt32)
}

/// Element `i` of a row.
pub fn element(b: &mut Builder, name: &str, row: Value, i: i32) -> Value {
    let i = b.int(&format!("{name}/index"), i);
    gather(b, name, row, i)
}

/// `value` in every place of a tensor of this shape.
pub fn filled(b: &mut Builder, sizes: Value, value: Value) -> Value {
    b.add("Fill", Op::new("Fill", &[sizes, value]).with("T", value.dtype()), value.dtype())
}

/// 0 to `count - 1`.
pub fn range(b: &mut Builder, count: Value) -> Value {
    let (zero, one) = (b.int("range/start", 0), b.int("range/delta", 1));
    b.add("range", Op::new("Range", &[zero, count, one]).with("Tidx", DtInt32), DtInt32)
}

/// A predictor's map `[pictures, h, w, a * columns]` as rows of anchors: `[pictures, h * w * a, columns]`.
pub fn rows(b: &mut Builder, name: &str, (pictures, map): (Value, Value), columns: i32) -> Value {
    let rest = b.int(&format!("{name}/rest"), -1);
    let columns = b.int(&format!("{name}/columns"), columns);
    let sizes = pack(b, &format!("{name}/shape"), &[pictures, rest, columns], 0);
    b.add(name, Op::new("Reshape", &[map, sizes]).typed("T").with("Tshape", DtInt32), map.dtype())
}
