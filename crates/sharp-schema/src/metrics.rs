//! Describes `metrics.jsonl`, a JSON object a line: the course of the warm-up and of the fine-tuning.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::Start;

/// Holds one line, of either training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "lowercase")]
pub enum Line {
    /// Of the warm-up.
    Warmup(WarmupLine),
    /// Of the fine-tuning.
    Finetune(FinetuneLine),
    /// Of its result, at the end.
    Result(ResultLine),
}

/// Holds a measurement of one layer's warm-up. Errors are relative squared errors: 1 is what no MLP at all
/// would give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WarmupLine {
    /// The changed layer.
    pub layer: usize,
    /// The layer whose MLP it uses.
    pub reference: Option<usize>,
    /// Where its parameters began.
    pub start: Start,
    /// Steps taken.
    pub step: u64,
    /// Error on validation tokens; files of before say `held_out`, here and below.
    #[serde(alias = "held_out_error", deserialize_with = "or_nan")]
    pub validation_error: f64,
    /// Mean over validation tokens of each token's error.
    #[serde(alias = "held_out_token_error", deserialize_with = "or_nan")]
    pub validation_token_error: f64,
    /// Error on validation tokens in the weighting that is trained.
    #[serde(alias = "held_out_weighted_error", deserialize_with = "or_nan")]
    pub validation_weighted_error: f64,
    /// The same on training tokens, since the last measurement; none before the first step.
    pub train_weighted_error: Option<f64>,
    /// The learning rate.
    pub lr: f64,
    /// Seconds since the layer's start.
    pub seconds: f64,
}

/// Holds a step of the fine-tuning. The order of the keys differs between the two kinds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FinetuneLine {
    /// After a step.
    Step {
        /// The number of the step, from 1.
        step: u64,
        /// Mean loss of its tokens, in nats.
        train_loss: f64,
        /// Mean divergence of its tokens from the original, in nats; none for a loss without it.
        train_kl: Option<f64>,
        /// The learning rate.
        lr: f64,
        /// Norm of the gradient before clipping.
        grad_norm: f64,
        /// Training tokens a second.
        tokens_per_second: f64,
        /// Seconds of training, those before a resume included.
        seconds: f64,
        /// The measurement after it, where one was due.
        #[serde(flatten)]
        validation: Option<Validation>,
    },
    /// Before the first step.
    Start {
        /// 0.
        step: u64,
        /// The measurement.
        #[serde(flatten)]
        validation: Validation,
        /// 0.
        seconds: f64,
    },
}

/// Holds a measurement on validation text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Mean loss of a token, in nats.
    #[serde(rename = "validation_loss", alias = "held_out_loss", deserialize_with = "or_nan")]
    pub loss: f64,
    /// `exp` of that.
    #[serde(rename = "validation_perplexity", alias = "held_out_perplexity", deserialize_with = "or_nan")]
    pub perplexity: f64,
    /// Mean divergence from the original, in nats; none for a loss without it.
    #[serde(rename = "validation_kl", alias = "held_out_kl")]
    pub kl: Option<f64>,
}

/// Holds what the fine-tuning's result was measured to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultLine {
    /// The step whose state is the result, the best on validation text.
    pub kept_step: u64,
    /// Training tokens of all steps.
    pub tokens: u64,
    /// MLP parameters that the result stores, recovery parameters, gains and gates among them.
    pub mlp_parameters: u64,
    /// The same of the original.
    pub original_mlp_parameters: u64,
    /// The measurement on each text, by its name.
    pub texts: BTreeMap<String, TextLoss>,
}

/// Holds a measurement on a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TextLoss {
    /// Mean loss of a token, in nats.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// Mean divergence from the original, in nats; none for a loss without it.
    pub kl: Option<f64>,
}

/// Reads `null` as NaN: JSON has no other way to write a number that is not finite.
fn or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl FinetuneLine {
    /// Returns the number of steps taken.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step { step, .. } | Self::Start { step, .. } => *step,
        }
    }

    /// Returns the seconds of training so far.
    pub fn seconds(&self) -> f64 {
        match self {
            Self::Step { seconds, .. } | Self::Start { seconds, .. } => *seconds,
        }
    }

    /// Returns the mean loss of the step's tokens in nats; none before the first step.
    pub fn train_loss(&self) -> Option<f64> {
        match self {
            Self::Step { train_loss, .. } => Some(*train_loss),
            Self::Start { .. } => None,
        }
    }

    /// Returns the measurement on validation text, where one was due.
    pub fn validation(&self) -> Option<Validation> {
        match self {
            Self::Step { validation, .. } => *validation,
            Self::Start { validation, .. } => Some(*validation),
        }
    }
}

/// Reads the warm-up's lines. A line that is cut off, as a kill may leave one, is left out.
pub fn read_warmup(text: &str) -> Vec<WarmupLine> {
    let warmup = |line| match line {
        Line::Warmup(line) => Some(line),
        Line::Finetune(_) | Line::Result(_) => None,
    };
    lines(text).filter_map(warmup).collect()
}

/// Reads the fine-tuning's lines. A line that is cut off, as a kill may leave one, is left out.
pub fn read_finetune(text: &str) -> Vec<FinetuneLine> {
    let finetune = |line| match line {
        Line::Finetune(line) => Some(line),
        Line::Warmup(_) | Line::Result(_) => None,
    };
    lines(text).filter_map(finetune).collect()
}

/// Reads what the fine-tuning's result was measured to be; `None` where it is not there yet.
pub fn read_result(text: &str) -> Option<ResultLine> {
    let result = |line| match line {
        Line::Result(line) => Some(line),
        Line::Warmup(_) | Line::Finetune(_) => None,
    };
    lines(text).filter_map(result).last()
}

fn lines(text: &str) -> impl Iterator<Item = Line> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok())
}
