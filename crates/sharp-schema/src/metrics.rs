//! The lines of `metrics.jsonl`: what warm-up and fine-tuning measure while they train, one JSON object a line.

use serde::{Deserialize, Serialize};

use crate::Start;

/// A line of the warm-up: the errors of one layer after some steps.
///
/// Errors are relative: the squared error of the layer's MLP output over the squared output of the original's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WarmupLine {
    /// Always `warmup`.
    pub stage: WarmupStage,
    /// The layer.
    pub layer: usize,
    /// The layer whose MLP it runs with.
    pub reference: Option<usize>,
    /// Where its parameters began.
    pub start: Start,
    /// Steps done; 0: the start.
    pub step: u64,
    /// Error over all held-out tokens together.
    pub held_out_error: f64,
    /// Mean over held-out tokens of each token's own error.
    pub held_out_token_error: f64,
    /// Error over held-out tokens, weighted as in training.
    pub held_out_weighted_error: f64,
    /// Weighted error of the training batches since the line before; none at the start.
    pub train_weighted_error: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Seconds since the layer was begun.
    pub seconds: f64,
}

/// The tag of [`WarmupLine`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmupStage {
    /// `warmup`.
    #[default]
    Warmup,
}

/// A line of the fine-tuning: what a step did, what held-out text was measured at, or both.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinetuneLine {
    /// Always `finetune`.
    pub stage: FinetuneStage,
    /// Steps done; 0: the start.
    pub step: u64,
    /// What the step did; absent at the start.
    #[serde(flatten)]
    pub training: Option<StepFigures>,
    /// What held-out text was measured at, where it was.
    #[serde(flatten)]
    pub held_out: Option<HeldOutFigures>,
    /// Seconds since training began, earlier sittings included.
    pub seconds: f64,
}

/// The tag of [`FinetuneLine`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinetuneStage {
    /// `finetune`.
    #[default]
    Finetune,
}

/// Figures of one training step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// Mean negative log likelihood of the step's tokens, in nats.
    pub train_loss: f64,
    /// Mean divergence from the teacher, in nats; none without a teacher.
    pub train_kl: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before it was clipped.
    pub grad_norm: f64,
    /// Training tokens a second so far, measurements left out.
    pub tokens_per_second: f64,
}

/// Figures of held-out text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutFigures {
    /// Mean negative log likelihood of a token, in nats.
    pub held_out_loss: f64,
    /// `exp` of the loss.
    pub held_out_perplexity: f64,
    /// Mean divergence from the teacher, in nats; none without a teacher.
    pub held_out_kl: Option<f64>,
}

/// Reads the lines of a file's text; a line cut off by a kill, or of another stage, is left out.
pub fn lines<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_as_they_were_always_written_are_read() {
        let text = concat!(
            r#"{"stage":"warmup","layer":3,"reference":2,"start":"whitened","step":0,"held_out_error":0.95,"#,
            r#""held_out_token_error":1.06,"held_out_weighted_error":1.0,"train_weighted_error":null,"lr":0.0,"#,
            r#""seconds":0.03}"#,
            "\n",
            r#"{"stage":"warmup","layer":3,"reference":null,"start":"zero","step":20,"held_out_er"#
        );
        let read: Vec<WarmupLine> = lines(text);
        assert_eq!(read.len(), 1, "the line that was cut off is left out");
        assert_eq!((read[0].layer, read[0].reference, read[0].start), (3, Some(2), Start::Whitened));
        assert_eq!(serde_json::to_string(&read[0]).unwrap(), text.lines().next().unwrap());
    }

    #[test]
    fn a_fine_tuning_has_lines_of_three_kinds() {
        let text = [
            r#"{"stage":"finetune","step":0,"held_out_loss":6.0,"held_out_perplexity":403.4,"held_out_kl":null,"seconds":0.0}"#,
            r#"{"stage":"finetune","step":1,"train_loss":6.1,"train_kl":0.5,"lr":0.001,"grad_norm":0.8,"tokens_per_second":69.0,"seconds":0.1}"#,
            r#"{"stage":"finetune","step":2,"train_loss":6.1,"train_kl":null,"lr":0.001,"grad_norm":0.8,"tokens_per_second":69.0,"seconds":0.2,"held_out_loss":5.0,"held_out_perplexity":148.4,"held_out_kl":0.1}"#,
        ]
        .join("\n");
        let read: Vec<FinetuneLine> = lines(&text);
        assert_eq!(read.len(), 3);
        assert!(read[0].training.is_none() && read[0].held_out.as_ref().unwrap().held_out_kl.is_none());
        assert!(read[1].held_out.is_none() && read[1].training.as_ref().unwrap().train_kl == Some(0.5));
        assert_eq!(read[2].held_out.as_ref().unwrap().held_out_loss, 5.0);
        for line in read {
            let again: FinetuneLine = serde_json::from_str(&serde_json::to_string(&line).unwrap()).unwrap();
            assert_eq!(again, line);
        }
        assert!(lines::<WarmupLine>(&text).is_empty(), "lines of another stage are left out");
    }
}
