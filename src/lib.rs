//! `odh`: from a folder of labelled pictures to a trained, evaluated, exported object detector.
//!
//! The layers, each of which imports only what stands below it:
//!
//! ```text
//! cli        flags as typed, then as meant; dispatch
//! commands   one file per subcommand
//! engine     the training loop, evaluation, checkpoints      export   files that other programs run
//! runtime    exported files, run without the model's definition
//! models     SSD, Faster R-CNN, R-FCN: predict, loss, postprocess
//! backbones  networks as data    data  examples, pictures, loader    metrics    config
//! net        the graph and its executor                     detection  box maths
//! formats    files that know no detection: records, checkpoints, events, VOC XML
//! ```
//!
//! Invariants: `formats` and `detection` never import `net`; `backbones` never imports `tch`; `models` does no file I/O;
//! `engine` never imports `export`. Tensors are NCHW, boxes `[ymin, xmin, ymax, xmax]`, normalized unless the name ends in `_px`.

pub mod backbones;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod detection;
pub mod engine;
pub mod exit;
pub mod export;
pub mod flags;
pub mod formats;
pub mod interrupt;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod models;
pub mod net;
pub mod prompt;
pub mod proto;
pub mod runtime;
#[cfg(test)]
pub mod testing;
