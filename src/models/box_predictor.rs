//! Convolutional box predictors: what turns a feature map into box codes and class scores (upstream core/box_predictor.py).

use anyhow::{Result, ensure};

use super::config_values::{box_code_size, kept_by_dropout, positive};
use crate::net::graph::{Graph, MovingVariance, NodeId, Op, Padding, Regularizer, Variable, VariableKind, Window};
use crate::net::hyperparams::{Surroundings, conv_scope};
use crate::net::layers::{ConvScope, Scope, conv2d, depthwise_conv2d};
use crate::proto::object_detection::protos as pb;

/// The fields of the message `ConvolutionalBoxPredictor`, resolved.
#[derive(Debug, Clone)]
pub struct ConvolutionalBoxPredictor {
    num_classes: usize,
    scope: ConvScope,
    min_depth: i64,
    max_depth: i64,
    num_layers: i64,
    dropout_keep: Option<f64>,
    kernel_size: i64,
    class_bias: f32,
    use_depthwise: bool,
    /// In training too, so that the loss is of the sigmoid of a sigmoid, as upstream has it.
    sigmoid: bool,
}

/// One feature map's raw outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predicted {
    /// `[N, per_cell * 4, H, W]`.
    pub boxes: NodeId,
    /// Logits, or their sigmoids where the config says so: `[N, per_cell * (K + 1), H, W]`.
    pub classes: NodeId,
}

impl ConvolutionalBoxPredictor {
    /// # Errors
    /// If the message sets what is not supported.
    pub fn from_config(config: &pb::ConvolutionalBoxPredictor, num_classes: usize, freeze_batch_norm: bool) -> Result<Self> {
        let field = "model.ssd.box_predictor.convolutional_box_predictor";
        box_code_size(field, config.box_code_size())?;
        let (least, most) = (config.min_depth(), config.max_depth());
        ensure!(least <= most, "{field}: min_depth {least} is above max_depth {most}");
        // Upstream says fused=False around the backbones only.
        let surroundings = Surroundings { freeze_batch_norm, moving: MovingVariance::Unbiased };
        let default = pb::Hyperparams::default();
        let hyperparams = config.conv_hyperparams.as_ref().unwrap_or(&default);
        Ok(Self {
            num_classes,
            scope: conv_scope(hyperparams, &format!("{field}.conv_hyperparams"), surroundings)?,
            min_depth: config.min_depth().into(),
            max_depth: config.max_depth().into(),
            num_layers: config.num_layers_before_predictor().into(),
            dropout_keep: config.use_dropout().then(|| kept_by_dropout(field, config.dropout_keep_probability())).transpose()?,
            kernel_size: positive(&format!("{field}.kernel_size"), config.kernel_size())? as i64,
            class_bias: config.class_prediction_bias_init(),
            use_depthwise: config.use_depthwise(),
            sigmoid: config.apply_sigmoid_to_scores(),
        })
    }

    /// Appends the predictors of all maps, under `BoxPredictor_<i>` (`BoxPredictor` where there is one map).
    pub fn append(&self, graph: &mut Graph, maps: &[NodeId], per_cell: &[usize]) -> Vec<Predicted> {
        let single = maps.len() == 1;
        maps.iter()
            .zip(per_cell)
            .enumerate()
            .map(|(i, (&map, &anchors))| {
                let scope = Scope::new(if single { "BoxPredictor".to_string() } else { format!("BoxPredictor_{i}") });
                self.one(graph, map, &scope, anchors as i64)
            })
            .collect()
    }

    fn one(&self, graph: &mut Graph, map: NodeId, scope: &Scope, anchors: i64) -> Predicted {
        let mut x = map;
        let depth = graph.channels(map).min(self.max_depth).max(self.min_depth);
        if depth > 0 {
            for i in 0..self.num_layers {
                let layer = scope.child(&format!("Conv2d_{i}_1x1_{depth}"));
                x = conv2d(graph, x, &layer, depth, Window::square(1, 1, Padding::Same), &self.scope);
            }
        }
        let boxes = self.predictor(graph, x, &scope.child("BoxEncodingPredictor"), anchors * 4, 0.0);
        if let Some(keep) = self.dropout_keep {
            let channels = graph.channels(x);
            x = graph.push(&format!("{}/Dropout", scope.ops), Op::Dropout { keep }, &[x], channels);
        }
        let columns = anchors * (self.num_classes as i64 + 1);
        // Upstream gives it to the layer without a depthwise one before it only.
        let class_bias = if self.use_depthwise { 0.0 } else { self.class_bias };
        let mut classes = self.predictor(graph, x, &scope.child("ClassPredictor"), columns, class_bias);
        if self.sigmoid {
            classes = graph.push(&format!("{}/Sigmoid", scope.ops), Op::Sigmoid, &[classes], columns);
        }
        Predicted { boxes, classes }
    }

    fn predictor(&self, graph: &mut Graph, x: NodeId, scope: &Scope, channels: i64, bias: f32) -> NodeId {
        // Declared before its layer, so that this start value counts.
        graph.declare(Variable {
            name: format!("{}/biases", scope.variables),
            shape: vec![channels],
            kind: VariableKind::Vector,
            trainable: true,
            initializer: crate::net::graph::Initializer::Constant(bias),
            regularizer: Regularizer::None,
        });
        let window = Window::square(self.kernel_size, 1, Padding::Same);
        if !self.use_depthwise {
            return conv2d(graph, x, scope, channels, window, &self.scope.linear());
        }
        let depthwise = Scope::split(format!("{}_depthwise", scope.variables), format!("{}_depthwise", scope.ops));
        let y = depthwise_conv2d(graph, x, &depthwise, window, &self.scope);
        conv2d(graph, y, scope, channels, Window::square(1, 1, Padding::Same), &self.scope.linear())
    }
}
