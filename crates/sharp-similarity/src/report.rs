//! What an analysis found, as JSON, and the costs that strategies decide by.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The report version this crate reads and writes.
pub const REPORT_VERSION: u32 = 1;

/// One measure of a directed pair "layer `target` runs with layer `reference`'s MLP".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// `||MLP_r(x_t) - MLP_t(x_t)|| / ||MLP_t(x_t)||` over all tokens, `x_t` the target's MLP input: the
    /// square root of what single-layer warm-up starts from.
    RelativeError,
    /// The median over tokens of the same ratio token by token: not ruled by a few massive activations.
    TokenError,
    /// The relative error after the best scale of every output channel; at most 1, which is the MLP left out.
    ScaledError,
    /// Mean over tokens of `||MLP_r(x_t) - MLP_t(x_t)||` relative to the residual stream after the layer: the
    /// relative error weighted by the layer's share of the stream.
    ResidualError,
    /// Mean over tokens of the cosine of `MLP_r(x_t)` and `MLP_t(x_t)`.
    Cosine,
    /// Mean over tokens of the cosine of the two layers' own outputs `MLP_r(x_r)` and `MLP_t(x_t)`.
    OutputCosine,
    /// Linear CKA of the two layers' own outputs, unbiased minibatch estimate.
    Cka,
    /// `||W_r - W_t|| / ||W_t||` (Frobenius) over the three projections.
    WeightDistance,
    /// The model's mean loss with the target running the reference's MLP, less its own, in nats per token.
    DeltaNll,
    /// An estimate of what recovery leaves: the lesser of delta NLL and the loss with the MLP left out times
    /// the squared error that is left after the best scale of every output channel. Never negative.
    PredictedNll,
}

impl Metric {
    /// All metrics, the most telling first.
    pub const ALL: [Self; 10] = [
        Self::PredictedNll,
        Self::DeltaNll,
        Self::ResidualError,
        Self::RelativeError,
        Self::TokenError,
        Self::ScaledError,
        Self::Cosine,
        Self::OutputCosine,
        Self::Cka,
        Self::WeightDistance,
    ];

    /// Returns the name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::RelativeError => "relative_error",
            Self::TokenError => "token_error",
            Self::ScaledError => "scaled_error",
            Self::ResidualError => "residual_error",
            Self::Cosine => "cosine",
            Self::OutputCosine => "output_cosine",
            Self::Cka => "cka",
            Self::WeightDistance => "weight_distance",
            Self::DeltaNll => "delta_nll",
            Self::PredictedNll => "predicted_nll",
        }
    }

    /// Returns the value for a pair, where it was measured.
    pub fn of(self, pair: &PairReport) -> Option<f64> {
        match self {
            Self::RelativeError => Some(pair.relative_error),
            Self::TokenError => Some(pair.token_error),
            Self::ScaledError => Some(pair.scaled_error),
            Self::ResidualError => Some(pair.residual_error),
            Self::Cosine => Some(pair.cosine),
            Self::OutputCosine => Some(pair.output_cosine),
            Self::Cka => pair.cka,
            Self::WeightDistance => pair.weight_distance,
            Self::DeltaNll => pair.delta_nll,
            Self::PredictedNll => pair.predicted_nll,
        }
    }

    /// Returns the value as a cost: smaller is better.
    fn cost(self, pair: &PairReport) -> Option<f64> {
        let value = self.of(pair)?;
        Some(match self {
            Self::Cosine | Self::OutputCosine | Self::Cka => 1.0 - value,
            _ => value,
        })
    }

    /// Returns what it is called in tables and over pictures.
    pub fn title(self) -> &'static str {
        match self {
            Self::RelativeError => "Relative L2 error",
            Self::TokenError => "Relative L2 error, median token",
            Self::ScaledError => "Relative L2 error after channel scales",
            Self::ResidualError => "Error in the residual stream",
            Self::Cosine => "Cosine on the same input",
            Self::OutputCosine => "Cosine of own outputs",
            Self::Cka => "Linear CKA of own outputs",
            Self::WeightDistance => "Weight distance",
            Self::DeltaNll => "Delta NLL",
            Self::PredictedNll => "Predicted NLL after recovery",
        }
    }

    /// Returns what it means, in a sentence or two.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::RelativeError => {
                "Norm of the difference between the reference's and the target's MLP on the target's input, relative to \
                 the target's output. 1 is as bad as no MLP. What single-layer warm-up starts from; a poor guide to what \
                 remains after it."
            }
            Self::TokenError => {
                "The same, token by token, the median: massive activations of a few tokens do not rule it."
            }
            Self::ScaledError => {
                "The same after the best scale of every output channel; 1 is the MLP left out."
            }
            Self::ResidualError => {
                "The difference relative to the residual stream after the layer, mean over tokens: an MLP that adds little \
                 is cheap to replace."
            }
            Self::Cosine => "Mean cosine of the two MLPs' outputs on the target's input.",
            Self::OutputCosine => "Mean cosine of what the two layers' MLPs put out in place.",
            Self::Cka => {
                "Linear centred kernel alignment of the layers' own MLP outputs (unbiased minibatch estimate, so it may \
                 fall slightly outside 0 to 1)."
            }
            Self::WeightDistance => {
                "Frobenius norm of the weights' difference relative to the target's weights; the square root of 2 for \
                 unrelated matrices of one size."
            }
            Self::DeltaNll => {
                "The whole model's loss with this one replacement and no recovery, less its own: nats per token."
            }
            Self::PredictedNll => {
                "An estimate of what recovery leaves: the lesser of delta NLL and the loss with the MLP left out times the squared \
                 error after channel scales. Bare replacement is often worse than no MLP at all, which recovery mends first."
            }
        }
    }
}

impl std::str::FromStr for Metric {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| Error::UnknownMetric {
            message: sharp_schema::suggest::unknown("metric", name, &Self::ALL.map(Self::name)),
        })
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What was measured of one directed pair; see [`Metric`] for each measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// The layer that would give up its own MLP.
    pub target: usize,
    /// The layer whose MLP it would use.
    pub reference: usize,
    /// [`Metric::RelativeError`].
    pub relative_error: f64,
    /// [`Metric::TokenError`].
    pub token_error: f64,
    /// [`Metric::ScaledError`].
    pub scaled_error: f64,
    /// [`Metric::ResidualError`].
    pub residual_error: f64,
    /// [`Metric::Cosine`].
    pub cosine: f64,
    /// [`Metric::OutputCosine`].
    pub output_cosine: f64,
    /// [`Metric::Cka`]; none where no sequence had four tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cka: Option<f64>,
    /// [`Metric::WeightDistance`]; none where the weights are not at hand as such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_distance: Option<f64>,
    /// [`Metric::DeltaNll`]; none where it was not asked for, or where the loss was not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_nll: Option<f64>,
    /// [`Metric::PredictedNll`]; none where delta NLL or the loss without the target's MLP was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted_nll: Option<f64>,
    /// Standard error of `delta_nll` over tokens, taken as independent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_nll_stderr: Option<f64>,
}

/// What was measured of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer, from 0.
    pub layer: usize,
    /// 1 - mean cosine of the residual stream before and after the layer (ShortGPT, arXiv 2403.03853).
    pub block_influence: f64,
    /// Mean over tokens of the norm of the MLP's output relative to the residual stream after the layer.
    pub mlp_share: f64,
    /// Root mean square of the MLP's output values.
    pub mlp_output_rms: f64,
    /// The model's mean loss with this MLP left out, less its own, in nats per token; none where not asked
    /// for, or where the loss was not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removal_nll: Option<f64>,
}

/// How alike the layers of a model are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// What the model was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How many layers the model has.
    pub num_layers: usize,
    /// The greatest distance between the layers of a pair.
    pub window: usize,
    /// Tokens of calibration text.
    pub tokens: u64,
    /// Sequences they came in.
    pub sequences: u64,
    /// Tokens on which delta NLL was measured; 0 where it was not.
    #[serde(default)]
    pub delta_nll_tokens: u64,
    /// The model's own mean loss on those tokens, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nll: Option<f64>,
    /// One entry a layer, in order.
    pub layers: Vec<LayerReport>,
    /// All directed pairs within the window, by target, then reference.
    pub pairs: Vec<PairReport>,
}

/// One directed cost; see [`Report::costs`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairCost {
    /// The layer that would give up its own MLP.
    pub target: usize,
    /// The layer whose MLP it would use.
    pub reference: usize,
    /// Smaller is better.
    pub cost: f64,
}

/// Costs for a strategy to decide by.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// What they are.
    pub metric: Metric,
    /// All pairs for which the metric was measured.
    pub pairs: Vec<PairCost>,
    /// Per layer, the cost of its MLP falling away, `(num_layers)`, in the metric's unit; empty where not
    /// measured.
    pub importance: Vec<f64>,
}

impl Report {
    /// Reads a report.
    ///
    /// # Errors
    /// [`Error::Json`] for anything that is no report, [`Error::Report`] where its numbers contradict each
    /// other.
    pub fn from_json(text: &str) -> Result<Self> {
        let report: Self = serde_json::from_str(text)?;
        report.check()?;
        Ok(report)
    }

    /// Returns the report as indented JSON.
    ///
    /// # Errors
    /// [`Error::Json`] if a number is not finite.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// Returns the measures that say most in a summary, of those that were taken.
    pub fn telling_metrics(&self) -> Vec<Metric> {
        [Metric::PredictedNll, Metric::DeltaNll, Metric::ResidualError, Metric::RelativeError]
            .into_iter()
            .filter(|m| self.pairs.iter().any(|p| m.of(p).is_some()))
            .collect()
    }

    /// Returns the metric to decide by where nobody chose one: the predicted NLL or else delta NLL if they
    /// were measured, else the error in the residual stream.
    pub fn default_metric(&self) -> Metric {
        [Metric::PredictedNll, Metric::DeltaNll]
            .into_iter()
            .find(|m| self.pairs.iter().any(|p| m.of(p).is_some()))
            .unwrap_or(Metric::ResidualError)
    }

    /// Returns the costs by a metric; `None`: by [`Report::default_metric`].
    ///
    /// # Errors
    /// [`Error::NotMeasured`] where no pair has the metric.
    pub fn costs(&self, metric: Option<Metric>) -> Result<Costs> {
        let metric = metric.unwrap_or_else(|| self.default_metric());
        let pairs: Vec<PairCost> = self
            .pairs
            .iter()
            .filter_map(|p| {
                metric.cost(p).map(|cost| PairCost { target: p.target, reference: p.reference, cost })
            })
            .collect();
        if pairs.is_empty() {
            return Err(Error::NotMeasured { metric: metric.name() });
        }
        let importance: Option<Vec<f64>> = self
            .layers
            .iter()
            .map(|l| match metric {
                Metric::DeltaNll | Metric::PredictedNll => l.removal_nll,
                Metric::ResidualError => Some(l.mlp_share),
                _ => None,
            })
            .collect();
        Ok(Costs { metric, pairs, importance: importance.unwrap_or_default() })
    }

    /// Rounds every measure to what float32 activations can say, so that the file reads back as it was
    /// written.
    pub(crate) fn round(&mut self) {
        let optional = |v: &mut Option<f64>| *v = v.map(rounded);
        optional(&mut self.nll);
        for l in &mut self.layers {
            for v in [&mut l.block_influence, &mut l.mlp_share, &mut l.mlp_output_rms] {
                *v = rounded(*v);
            }
            optional(&mut l.removal_nll);
        }
        for p in &mut self.pairs {
            for v in [
                &mut p.relative_error,
                &mut p.token_error,
                &mut p.scaled_error,
                &mut p.residual_error,
                &mut p.cosine,
                &mut p.output_cosine,
            ] {
                *v = rounded(*v);
            }
            for v in [
                &mut p.cka,
                &mut p.weight_distance,
                &mut p.delta_nll,
                &mut p.delta_nll_stderr,
                &mut p.predicted_nll,
            ] {
                optional(v);
            }
        }
    }

    fn check(&self) -> Result<()> {
        let fault = |what: String| Err(Error::Report { what });
        if self.version != REPORT_VERSION {
            return fault(format!("version {}; this program reads version {REPORT_VERSION}", self.version));
        }
        if self.layers.len() != self.num_layers {
            return fault(format!("{} layers listed of {}", self.layers.len(), self.num_layers));
        }
        if let Some((i, l)) = self.layers.iter().enumerate().find(|(i, l)| *i != l.layer) {
            return fault(format!("layer {} listed in place {i}", l.layer));
        }
        for p in &self.pairs {
            if p.target >= self.num_layers || p.reference >= self.num_layers || p.target == p.reference {
                return fault(format!(
                    "pair {} with {} in a model of {} layers",
                    p.target, p.reference, self.num_layers
                ));
            }
        }
        Ok(())
    }
}

/// Rounds to eight significant figures.
fn rounded(v: f64) -> f64 {
    format!("{v:.7e}").parse().unwrap_or(v)
}
