//! `odh models`: what can be trained, how good and fast it was published to be, and whether its weights are on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::zoo_args::ZooArgs;
use crate::config::weights::{self, Presence, WeightsOptions};
use crate::config::zoo::{self, MODELS, ZooModel};
use crate::data::resizer::Target;
use crate::models::{self, DetectionModel};
use crate::outln;
use crate::proto::object_detection::protos as pb;

const EXAMPLE: &str = "\
Examples:
  odh models
  odh models ssd_mobilenet_v2_coco
  odh models --json | jq '.[].name'";

/// What `odh models` is told.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    /// Tell all of this one: its name or folder, their start, or its number in the menu
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// As JSON: a list, or the one model
    #[arg(long = "json")]
    json: bool,
    #[command(flatten)]
    zoo: ZooArgs,
}

/// Runs `odh models`.
///
/// # Errors
/// If no model is called so, or its config in the working directory cannot be read.
pub fn run(args: Args) -> Result<()> {
    let options = args.zoo.options();
    match &args.name {
        None if args.json => print_json(&MODELS.iter().map(|model| Line::new(model, &options)).collect::<Vec<_>>()),
        None => {
            list(&options);
            Ok(())
        }
        Some(typed) => {
            let model = zoo::resolve(typed)?;
            let all = All::new(model, &options)?;
            if args.json { print_json(&all) } else { all.print() }
        }
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    outln!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// What the list says of a model. What nobody published is left out.
#[derive(Debug, Serialize)]
struct Line {
    /// In the old tool's menu.
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u8>,
    name: &'static str,
    folder: &'static str,
    /// Of the archive's contents, as the tutorial's table has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    coco_map: Option<u8>,
    /// A picture, on one Titan X.
    speed_ms: u16,
    /// Sides of the network's input, in pixels.
    input: &'static str,
    weights: Weights,
}

/// Where the pretrained weights are.
#[derive(Debug, Serialize)]
struct Weights {
    /// `checkpoint`, `archive`, `absent` or `damaged`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    url: String,
}

impl Weights {
    fn new(folder: &str, options: &WeightsOptions) -> Self {
        let shown = |path: PathBuf| Some(path.display().to_string());
        let (state, path, why) = match weights::presence(folder, &options.zoo_dir) {
            Presence::Checkpoint(prefix) => ("checkpoint", shown(prefix), None),
            Presence::Archive(archive) => ("archive", shown(archive), None),
            Presence::Absent => ("absent", None, None),
            Presence::Damaged(why) => ("damaged", None, Some(why)),
        };
        Self { state, path, why, url: weights::url(folder, &options.base_url) }
    }

    fn in_words(&self) -> &'static str {
        match self.state {
            "checkpoint" => "here",
            "archive" => "here, packed",
            "damaged" => "damaged",
            _ => "-",
        }
    }
}

impl Line {
    fn new(model: &ZooModel, options: &WeightsOptions) -> Self {
        Self {
            number: model.number,
            name: model.table_name,
            folder: model.folder,
            size: model.size,
            coco_map: model.coco_map,
            speed_ms: model.speed_ms,
            input: model.input,
            weights: Weights::new(model.folder, options),
        }
    }
}

fn list(options: &WeightsOptions) {
    let lines: Vec<Line> = MODELS.iter().map(|model| Line::new(model, options)).collect();
    let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
    outln!("{:>2}  {:width$}  {:>5}  {:>8}  {:>7}  {:>11}  weights", "", "model", "size", "COCO mAP", "ms", "input px");
    for line in &lines {
        let number = line.number.map_or_else(String::new, |n| n.to_string());
        let map = line.coco_map.map_or_else(|| "-".to_string(), |map| map.to_string());
        outln!(
            "{number:>2}  {:width$}  {:>5}  {map:>8}  {:>7}  {:>11}  {}",
            line.name,
            line.size.unwrap_or("-"),
            line.speed_ms,
            line.input,
            line.weights.in_words()
        );
    }
    outln!("");
    outln!(
        "mAP and ms (a picture, on one Titan X) as the TensorFlow detection model zoo published them; weights are looked for in {}.",
        options.zoo_dir.display()
    );
    outln!("`odh models NAME` tells all of one.");
}

/// What is told of one model.
#[derive(Debug, Serialize)]
struct All {
    #[serde(flatten)]
    line: Line,
    /// The tutorial's time for 1000 steps with evaluation and export, on one P100.
    #[serde(skip_serializing_if = "Option::is_none")]
    training_time: Option<&'static str>,
    /// Where its pipeline config is from.
    config: String,
    meta_architecture: &'static str,
    feature_extractor: String,
    num_classes: usize,
    /// Of the first stage, where there are two.
    #[serde(skip_serializing_if = "Option::is_none")]
    proposals: Option<i32>,
    batch_size: u32,
    optimizer: &'static str,
    learning_rate: f64,
    /// 0 if the config does not say.
    num_steps: u32,
    augmentations: Vec<String>,
    /// Of the network with the config's number of classes.
    network: Network,
}

/// A network's variables.
#[derive(Debug, Serialize)]
struct Network {
    variables: usize,
    trainable_variables: usize,
    parameters: i64,
    trainable_parameters: i64,
    /// As the resizer has it.
    pictures: String,
}

impl Network {
    fn new(model: &dyn DetectionModel) -> Self {
        let count = |trainable: bool| model.variables().iter().filter(move |v| v.trainable || !trainable);
        let parameters = |trainable: bool| count(trainable).map(|v| v.shape.iter().product::<i64>()).sum();
        Self {
            variables: count(false).count(),
            trainable_variables: count(true).count(),
            parameters: parameters(false),
            trainable_parameters: parameters(true),
            pictures: match model.resizer().target {
                Target::FixedShape { height, width } => format!("resized to {height} x {width}"),
                Target::KeepAspectRatio { min, max } => {
                    format!("resized, keeping their aspect: short side {min}, long side {max} at most")
                }
            },
        }
    }
}

impl All {
    fn new(model: &ZooModel, options: &WeightsOptions) -> Result<Self> {
        use pb::detection_model::Model as M;
        let (config, source) = model.config(Path::new("."))?;
        let line = Line::new(model, options);
        let network = Network::new(models::from_config(&config).context("building the network")?.as_ref());
        let (meta_architecture, feature_extractor, num_classes) = match config.model.as_ref().and_then(|m| m.model.as_ref()) {
            Some(M::Ssd(ssd)) => ("SSD", ssd.feature_extractor.as_ref().map(|f| f.r#type().to_string()), ssd.num_classes()),
            Some(M::FasterRcnn(rcnn)) => {
                use pb::box_predictor::BoxPredictorOneof as P;
                let predictor = rcnn.second_stage_box_predictor.as_ref().and_then(|p| p.box_predictor_oneof.as_ref());
                let name = if matches!(predictor, Some(P::RfcnBoxPredictor(_))) { "R-FCN" } else { "Faster R-CNN" };
                (name, rcnn.feature_extractor.as_ref().map(|f| f.r#type().to_string()), rcnn.num_classes())
            }
            None => ("", None, 0),
        };
        let proposals = match config.model.as_ref().and_then(|m| m.model.as_ref()) {
            Some(M::FasterRcnn(rcnn)) => Some(rcnn.first_stage_max_proposals()),
            _ => None,
        };
        let train = config.train_config.with_context(|| format!("{source}: train_config is not set"))?;
        let (optimizer, learning_rate) = optimizer(&train)?;
        Ok(Self {
            training_time: model.training_time,
            config: source,
            meta_architecture,
            feature_extractor: feature_extractor.unwrap_or_default(),
            num_classes: usize::try_from(num_classes).unwrap_or(0),
            proposals,
            batch_size: train.batch_size(),
            optimizer,
            learning_rate,
            num_steps: train.num_steps(),
            augmentations: augmentations(&train),
            network,
            line,
        })
    }

    fn print(&self) -> Result<()> {
        let line = &self.line;
        let mut rows: Vec<(&str, String)> = vec![("folder", line.folder.to_string())];
        rows.extend(line.number.map(|n| ("menu number", n.to_string())));
        rows.push(("network", format!("{} on {}", self.meta_architecture, self.feature_extractor)));
        rows.extend(line.coco_map.map(|map| ("COCO mAP", format!("{map}, as published"))));
        rows.push(("speed", format!("{} ms a picture, as published (one Titan X)", line.speed_ms)));
        rows.push(("input", format!("{} px", line.input)));
        rows.extend(line.size.map(|size| ("size", format!("{size}, unpacked"))));
        rows.extend(
            self.training_time.map(|time| ("1000 steps", format!("{time} with evaluation and export (one P100, the old tool)"))),
        );
        let n = &self.network;
        rows.push(("pictures", n.pictures.clone()));
        rows.push((
            "variables",
            format!("{} ({} trainable) for {} classes", n.variables, n.trainable_variables, self.num_classes),
        ));
        rows.push(("parameters", format!("{} ({} trainable)", grouped(n.parameters), grouped(n.trainable_parameters))));
        rows.push(("config", self.config.clone()));
        rows.extend(self.proposals.map(|count| ("proposals", format!("{count} a picture at most"))));
        let steps = if self.num_steps > 0 { format!(", {} steps", self.num_steps) } else { String::new() };
        rows.push(("training", format!("batch {}, {} at {}{steps}", self.batch_size, self.optimizer, self.learning_rate)));
        if !self.augmentations.is_empty() {
            rows.push(("augmentation", self.augmentations.join(", ")));
        }
        let weights = &line.weights;
        rows.push((
            "weights",
            match (&weights.path, &weights.why) {
                (Some(path), _) => format!("{} ({path})", weights.in_words()),
                (None, Some(why)) => format!("damaged: {why}"),
                (None, None) => "not on this machine".to_string(),
            },
        ));
        rows.push(("URL", weights.url.clone()));
        outln!("{}", line.name);
        for (name, value) in rows {
            outln!("  {name:12}  {value}");
        }
        Ok(())
    }
}

/// Its name, and the rate of its first step.
fn optimizer(train: &pb::TrainConfig) -> Result<(&'static str, f64)> {
    use crate::engine::learning_rate::LearningRate;
    use pb::optimizer::Optimizer as O;
    let set = train.optimizer.as_ref().and_then(|o| o.optimizer.as_ref()).context("train_config.optimizer is not set")?;
    let (name, rate) = match set {
        O::RmsPropOptimizer(o) => ("RMSProp", &o.learning_rate),
        O::MomentumOptimizer(o) => ("momentum", &o.learning_rate),
        O::AdamOptimizer(o) => ("Adam", &o.learning_rate),
    };
    // Rates are 32-bit numbers in a config; as such they print as they were written.
    let rate = LearningRate::from_config(rate.as_ref())?.at(0) as f32;
    Ok((name, rate.to_string().parse()?))
}

/// By their names in the config.
fn augmentations(train: &pb::TrainConfig) -> Vec<String> {
    use crate::config::text;
    let names = train.data_augmentation_options.iter().filter_map(|step| {
        let step = text::reflect("object_detection.protos.PreprocessingStep", step).ok()?;
        step.fields().next().map(|(field, _)| field.name().to_string())
    });
    names.collect()
}

/// `1234567` as `1,234,567`.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 16_882_632].map(grouped), ["0", "999", "1,000", "16,882,632"]);
    }
}
