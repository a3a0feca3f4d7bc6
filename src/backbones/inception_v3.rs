//! Inception V3 (Szegedy et al., arXiv:1512.00567, table 1; upstream slim/nets/inception_v3.py), up to Mixed_7c.

use super::ssd::{Base, Source, SsdBackbone};
use crate::net::graph::{Graph, MovingVariance, NodeId, Op, Padding, Window};
use crate::net::layers::{Scope, concat, conv2d};

/// What an SSD builds on.
pub const SSD: SsdBackbone = SsdBackbone {
    scope: "InceptionV3",
    // TensorFlow's fused kernel.
    moving: MovingVariance::Unbiased,
    // Upstream gives this network the config's settings, and insists that the config says so.
    slim: None,
    side: None,
    layout: &[
        Source::Layer("Mixed_5d"),
        Source::Layer("Mixed_6e"),
        Source::Layer("Mixed_7c"),
        Source::Extra { kernel: 3, channels: 512 },
        Source::Extra { kernel: 3, channels: 256 },
        Source::Extra { kernel: 3, channels: 128 },
    ],
    base: inception_v3,
};

/// One step of a branch.
enum Step {
    /// A convolution that keeps the size: its name, `[height, width]` of its window, channels.
    Conv(&'static str, [i64; 2], i64),
    /// Two such convolutions of the same map, side by side.
    Fork([(&'static str, [i64; 2], i64); 2]),
    /// A 3x3 convolution that halves the size, without padding: its name, channels.
    Down(&'static str, i64),
    /// Means of 3x3, of the same size.
    Average,
    /// Maxima of 3x3 that halve the size, without padding.
    Max,
}

use Step::{Average, Conv, Down, Fork, Max};

const POINT: [i64; 2] = [1, 1];
const SQUARE: [i64; 2] = [3, 3];
const ROW: [i64; 2] = [1, 7];
const COLUMN: [i64; 2] = [7, 1];

/// A module of one of the first three, whose second branch has other names in the second.
macro_rules! mixed_5 {
    ($point:literal, $five:literal, $behind:literal) => {
        &[
            &[Conv("Conv2d_0a_1x1", POINT, 64)],
            &[Conv($point, POINT, 48), Conv($five, [5, 5], 64)],
            &[Conv("Conv2d_0a_1x1", POINT, 64), Conv("Conv2d_0b_3x3", SQUARE, 96), Conv("Conv2d_0c_3x3", SQUARE, 96)],
            &[Average, Conv("Conv2d_0b_1x1", POINT, $behind)],
        ]
    };
}

/// A module whose windows are rows and columns of seven cells.
macro_rules! mixed_6 {
    ($channels:literal) => {
        &[
            &[Conv("Conv2d_0a_1x1", POINT, 192)],
            &[Conv("Conv2d_0a_1x1", POINT, $channels), Conv("Conv2d_0b_1x7", ROW, $channels), Conv("Conv2d_0c_7x1", COLUMN, 192)],
            &[
                Conv("Conv2d_0a_1x1", POINT, $channels),
                Conv("Conv2d_0b_7x1", COLUMN, $channels),
                Conv("Conv2d_0c_1x7", ROW, $channels),
                Conv("Conv2d_0d_7x1", COLUMN, $channels),
                Conv("Conv2d_0e_1x7", ROW, 192),
            ],
            &[Average, Conv("Conv2d_0b_1x1", POINT, 192)],
        ]
    };
}

/// One of the last two modules.
macro_rules! mixed_7 {
    ($column:literal) => {
        &[
            &[Conv("Conv2d_0a_1x1", POINT, 320)],
            &[Conv("Conv2d_0a_1x1", POINT, 384), Fork([("Conv2d_0b_1x3", [1, 3], 384), ($column, [3, 1], 384)])],
            &[
                Conv("Conv2d_0a_1x1", POINT, 448),
                Conv("Conv2d_0b_3x3", SQUARE, 384),
                Fork([("Conv2d_0c_1x3", [1, 3], 384), ("Conv2d_0d_3x1", [3, 1], 384)]),
            ],
            &[Average, Conv("Conv2d_0b_1x1", POINT, 192)],
        ]
    };
}

/// The modules, and the branches of each.
const MODULES: &[(&str, &[&[Step]])] = &[
    ("Mixed_5b", mixed_5!("Conv2d_0a_1x1", "Conv2d_0b_5x5", 32)),
    ("Mixed_5c", mixed_5!("Conv2d_0b_1x1", "Conv_1_0c_5x5", 64)),
    ("Mixed_5d", mixed_5!("Conv2d_0a_1x1", "Conv2d_0b_5x5", 64)),
    (
        "Mixed_6a",
        &[
            &[Down("Conv2d_1a_1x1", 384)],
            &[Conv("Conv2d_0a_1x1", POINT, 64), Conv("Conv2d_0b_3x3", SQUARE, 96), Down("Conv2d_1a_1x1", 96)],
            &[Max],
        ],
    ),
    ("Mixed_6b", mixed_6!(128)),
    ("Mixed_6c", mixed_6!(160)),
    ("Mixed_6d", mixed_6!(160)),
    ("Mixed_6e", mixed_6!(192)),
    (
        "Mixed_7a",
        &[
            &[Conv("Conv2d_0a_1x1", POINT, 192), Down("Conv2d_1a_3x3", 320)],
            &[
                Conv("Conv2d_0a_1x1", POINT, 192),
                Conv("Conv2d_0b_1x7", ROW, 192),
                Conv("Conv2d_0c_7x1", COLUMN, 192),
                Down("Conv2d_1a_3x3", 192),
            ],
            &[Max],
        ],
    ),
    ("Mixed_7b", mixed_7!("Conv2d_0b_3x1")),
    ("Mixed_7c", mixed_7!("Conv2d_0c_3x1")),
];

/// Appends the whole network to `graph`; returns each module's output by its name.
///
/// * `x`: `[N, C, H, W]` in [-1, 1].
fn inception_v3(graph: &mut Graph, x: NodeId, base: &Base) -> Vec<(String, NodeId)> {
    let (scope, depth) = (&base.scope, base.depth);
    let stem = |graph: &mut Graph, x: NodeId, name: &str, channels: i64, window: Window| {
        conv2d(graph, x, &scope.child(name), depth.of(channels), window, &base.with)
    };
    let valid = |kernel: i64, stride: i64| Window::square(kernel, stride, Padding::Valid);
    let y = stem(graph, x, "Conv2d_1a_3x3", 32, valid(3, 2));
    let y = stem(graph, y, "Conv2d_2a_3x3", 32, valid(3, 1));
    let y = stem(graph, y, "Conv2d_2b_3x3", 64, Window::square(3, 1, Padding::Same));
    let y = max_pool(graph, y, &scope.child("MaxPool_3a_3x3"));
    let y = stem(graph, y, "Conv2d_3b_1x1", 80, valid(1, 1));
    let y = stem(graph, y, "Conv2d_4a_3x3", 192, valid(3, 1));
    let mut y = max_pool(graph, y, &scope.child("MaxPool_5a_3x3"));
    let mut endpoints = Vec::with_capacity(MODULES.len());
    for (name, branches) in MODULES {
        let module = scope.child(name);
        let mut parts = Vec::new();
        for (i, steps) in branches.iter().enumerate() {
            parts.push(branch(graph, y, &module.child(&format!("Branch_{i}")), steps, base));
        }
        y = concat(graph, &parts, &module);
        endpoints.push(((*name).to_string(), y));
    }
    endpoints
}

fn branch(graph: &mut Graph, x: NodeId, scope: &Scope, steps: &[Step], base: &Base) -> NodeId {
    let mut y = x;
    let conv = |graph: &mut Graph, x: NodeId, name: &str, kernel: [i64; 2], channels: i64| {
        let window = Window { kernel, ..Window::square(1, 1, Padding::Same) };
        conv2d(graph, x, &scope.child(name), base.depth.of(channels), window, &base.with)
    };
    for step in steps {
        y = match step {
            Conv(name, kernel, channels) => conv(graph, y, name, *kernel, *channels),
            Fork(ways) => {
                let parts = ways.map(|(name, kernel, channels)| conv(graph, y, name, kernel, channels));
                concat(graph, &parts, scope)
            }
            Down(name, channels) => {
                let window = Window::square(3, 2, Padding::Valid);
                conv2d(graph, y, &scope.child(name), base.depth.of(*channels), window, &base.with)
            }
            Average => {
                let channels = graph.channels(y);
                let name = format!("{}/AvgPool_0a_3x3/AvgPool", scope.ops);
                graph.push(&name, Op::AvgPool(Window::square(3, 1, Padding::Same)), &[y], channels)
            }
            Max => max_pool(graph, y, &scope.child("MaxPool_1a_3x3")),
        };
    }
    y
}

fn max_pool(graph: &mut Graph, x: NodeId, scope: &Scope) -> NodeId {
    let channels = graph.channels(x);
    graph.push(&format!("{}/MaxPool", scope.ops), Op::MaxPool(Window::square(3, 2, Padding::Valid)), &[x], channels)
}
