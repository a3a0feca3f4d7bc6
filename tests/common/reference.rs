//! Reading the reference data: weights regenerated from variable names, golden tensors, variable tables.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use odh::detection::boxes::BBox;
use odh::net::graph::{Graph, NodeId};
use odh::net::variables::Variables;
use tch::Tensor;

/// The value of variable `name` by the recipe in the reference's README: FNV-1a of the name, SplitMix64, a range by the first rule that fits.
pub fn weight(name: &str, shape: &[i64]) -> Vec<f32> {
    let fan: i64 = if name.ends_with("/depthwise_weights") {
        shape[0] * shape[1]
    } else {
        shape[..shape.len().saturating_sub(1)].iter().product()
    };
    let wide = |a: f64, s: f64| {
        let limit = (3.0 * a / fan as f64).sqrt() * s;
        (-limit, limit)
    };
    let (lo, hi) = if name.ends_with("/moving_variance") {
        (0.5, 1.5)
    } else if name.ends_with("/moving_mean") {
        (-0.1, 0.1)
    } else if name.ends_with("/bottleneck_v1/conv3/BatchNorm/gamma") {
        (0.1, 0.3)
    } else if name.ends_with("/project/BatchNorm/gamma") {
        (0.4, 0.6)
    } else if name.ends_with("gamma") && name.contains("/cell_") {
        (0.48, 0.78)
    } else if name.ends_with("/gamma") {
        (0.8, 1.2)
    } else if name.ends_with("/beta") || name.ends_with("/biases") {
        (-0.1, 0.1)
    } else if name.contains("/resnet_v1_") && name.ends_with("/conv1/weights") && !name.contains("bottleneck") {
        wide(1.8, 1.0 / 64.0)
    } else if name.starts_with("BoxPredictor_") && name.ends_with("/ClassPredictor/weights") {
        wide(2.0, 1.0)
    } else if name.ends_with("BoxEncodingPredictor/weights") || name.ends_with("/refined_locations/weights") {
        wide(1.0, 1.0)
    } else if name.ends_with("ClassPredictor/weights") || name.ends_with("/class_predictions/weights") {
        wide(4.0, 1.0)
    } else {
        assert!(name.ends_with("weights"), "no rule for {name}");
        wide(1.8, 1.0)
    };
    let key = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (1..=shape.iter().product::<i64>() as u64)
        .map(|i| {
            let mut z = key.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (lo + (hi - lo) * ((z >> 40) as f64 / f64::from(1 << 24))) as f32
        })
        .collect()
}

/// Every variable at its regenerated value.
pub fn set_regenerated_weights(variables: &mut Variables) {
    for i in 0..variables.specs().len() {
        let (name, shape) = (variables.specs()[i].name.clone(), variables.specs()[i].shape.clone());
        variables.set_from_tensorflow(i, &weight(&name, &shape)).unwrap();
    }
}

/// Golden tensors by key.
pub struct Golden {
    arrays: HashMap<String, (Vec<u64>, Vec<f64>)>,
}

impl Golden {
    pub fn open(path: &Path) -> Self {
        let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
        let mut arrays = HashMap::new();
        for i in 0..archive.len() {
            let mut file = archive.by_index(i).unwrap();
            let key = file.name().unwrap().trim_end_matches(".npy").to_string();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let npy = npyz::NpyFile::new(&bytes[..]).unwrap();
            let shape = npy.shape().to_vec();
            let descr = npy.dtype().descr();
            let values: Vec<f64> = match descr.trim_matches('\'') {
                "<f4" => npy.into_vec::<f32>().unwrap().into_iter().map(f64::from).collect(),
                "<f8" => npy.into_vec::<f64>().unwrap(),
                "<i4" => npy.into_vec::<i32>().unwrap().into_iter().map(f64::from).collect(),
                "<i8" => npy.into_vec::<i64>().unwrap().into_iter().map(|v| v as f64).collect(),
                "|b1" => npy.into_vec::<bool>().unwrap().into_iter().map(|v| f64::from(u8::from(v))).collect(),
                "|u1" => npy.into_vec::<u8>().unwrap().into_iter().map(f64::from).collect(),
                other => panic!("{key}: dtype {other}"),
            };
            arrays.insert(key, (shape, values));
        }
        Self { arrays }
    }

    #[allow(dead_code)]
    pub fn has(&self, key: &str) -> bool {
        self.arrays.contains_key(key)
    }

    /// How many keys start and end so.
    #[allow(dead_code)]
    pub fn count(&self, start: &str, end: &str) -> usize {
        self.arrays.keys().filter(|key| key.starts_with(start) && key.ends_with(end)).count()
    }

    /// The keys that start so, without that start, in order.
    #[allow(dead_code)]
    pub fn keys(&self, start: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.arrays.keys().filter_map(|key| key.strip_prefix(start)).map(str::to_string).collect();
        keys.sort();
        keys
    }

    pub fn get(&self, key: &str) -> &[f64] {
        &self.arrays.get(key).unwrap_or_else(|| panic!("no golden tensor {key}")).1
    }

    pub fn f32(&self, key: &str) -> Vec<f32> {
        self.get(key).iter().map(|&v| v as f32).collect()
    }

    pub fn scalar(&self, key: &str) -> f64 {
        self.get(key)[0]
    }

    /// Largest difference to `values` (the whole tensor, row by row), relative to the golden tensor's largest magnitude.
    pub fn difference(&self, key: &str, values: &[f32]) -> f64 {
        let (golden, mine): (&[f64], Vec<f64>) = if self.arrays.contains_key(key) {
            (self.get(key), values.iter().map(|&v| f64::from(v)).collect())
        } else {
            let stride = self.scalar(&format!("{key}@stride")) as usize;
            let count: f64 = self.get(&format!("{key}@shape")).iter().product();
            assert_eq!(values.len(), count as usize, "{key}: number of elements");
            (self.get(&format!("{key}@sample")), values.iter().step_by(stride).map(|&v| f64::from(v)).collect())
        };
        assert_eq!(golden.len(), mine.len(), "{key}: number of elements");
        let largest = golden.iter().fold(1e-30, |m: f64, v| m.max(v.abs()));
        golden.iter().zip(&mine).fold(0.0, |m: f64, (g, v)| m.max(apart(*g, *v) / largest))
    }
}

/// How far two numbers are from each other, and what is no number from any: `f64::max` would pass over it.
pub fn apart(a: f64, b: f64) -> f64 {
    let apart = (a - b).abs();
    if apart.is_nan() { f64::INFINITY } else { apart }
}

/// One row of a variable table.
pub struct Row {
    pub name: String,
    pub shape_90: Vec<i64>,
    pub shape_5: Vec<i64>,
    pub trainable: bool,
}

/// The reference's variable table, sorted by name.
pub fn variable_table(path: &Path) -> Vec<Row> {
    let shape = |text: &str| -> Vec<i64> {
        if text == "scalar" { vec![] } else { text.split('x').map(|d| d.parse().unwrap()).collect() }
    };
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .filter(|l| !l.starts_with('#'))
        .map(|line| {
            let columns: Vec<&str> = line.split('\t').collect();
            assert_eq!(columns[1], if columns[0] == "global_step" { "int64" } else { "float32" }, "{line}");
            Row { name: columns[0].into(), shape_90: shape(columns[2]), shape_5: shape(columns[3]), trainable: columns[4] == "1" }
        })
        .collect()
}

/// The elements in their order.
#[allow(dead_code)]
pub fn values(x: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(x.detach().contiguous().view([-1])).unwrap()
}

/// The elements of `[N, C, H, W]` in the order that TensorFlow has them.
#[allow(dead_code)]
pub fn nhwc(x: &Tensor) -> Vec<f32> {
    values(&x.permute([0, 2, 3, 1]))
}

/// Four numbers a box.
#[allow(dead_code)]
pub fn rows(values: &[f32]) -> Vec<BBox> {
    values.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
}

/// The graph, with more of its nodes as outputs: `name_0`, `name_1`, ...
#[allow(dead_code)]
pub fn with_outputs(graph: &Graph, name: &str, nodes: &[NodeId]) -> Arc<Graph> {
    let mut graph = graph.clone();
    for (i, node) in nodes.iter().enumerate() {
        graph.output(&format!("{name}_{i}"), *node);
    }
    Arc::new(graph)
}
