//! The last norm, the output head and the losses, for the positions that count only, a few rows of logits at
//! a time.

use sharp_model::names;
use tch::{Device, Kind, Tensor};

use crate::device::Compute;
use crate::error::{Error, Result};
use crate::gradients::Sink;
use crate::linear::Linear;
use crate::norm;
use crate::params::ParamId;
use crate::tensors::{scalar, size};
use crate::weights::Weights;

/// Chooses how many rows of logits are held at once: enough for the product with the head to run at full
/// speed, few enough that they are a small part of the memory whatever the sequence length.
pub(crate) fn rows_at_once(device: Device) -> i64 {
    if device.is_cuda() { 1024 } else { 128 }
}

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// Cross entropy of the counted tokens.
    Completion,
    /// `T² KL(original ‖ compressed)` of the next-token distributions at temperature `T`.
    Distill {
        /// `T`
        temperature: f64,
    },
    /// `weight * Completion + (1 - weight) * Distill`.
    Mixed {
        /// Share of the cross entropy, from 0 to 1.
        weight: f64,
        /// Of the distillation part.
        temperature: f64,
    },
}

impl Loss {
    /// Whether the original model's predictions are needed.
    pub fn needs_teacher(self) -> bool {
        !matches!(self, Self::Completion)
    }

    /// Returns the weight of the cross entropy, the weight of the KL, and the temperature.
    fn weights(self) -> (f64, f64, f64) {
        match self {
            Self::Completion => (1.0, 0.0, 1.0),
            Self::Distill { temperature } => (0.0, 1.0, temperature),
            Self::Mixed { weight, temperature } => (weight, 1.0 - weight, temperature),
        }
    }
}

/// Sums over the counted positions of some sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct LossSums {
    /// Positions.
    pub(crate) tokens: u64,
    /// Negative log likelihood, in nats.
    pub(crate) nll: f64,
    /// `T² KL(original ‖ compressed)`, in nats; 0 where the loss has no teacher.
    pub(crate) kl: f64,
}

impl LossSums {
    /// Adds another's sums.
    pub(crate) fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.nll += other.nll;
        self.kl += other.kl;
    }

    /// Computes the mean negative log likelihood in nats a token; NaN without tokens.
    pub(crate) fn mean_nll(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    /// Computes the mean of what is minimised, in nats a token.
    pub(crate) fn mean(&self, loss: Loss) -> f64 {
        let (ce, kl, _) = loss.weights();
        (ce * self.nll + kl * self.kl) / self.tokens as f64
    }
}

/// The positions of a batch that count, and the tokens after them.
#[derive(Debug)]
pub(crate) struct Targets {
    /// Rows of the hidden states, `(m)` int64.
    pub(crate) positions: Tensor,
    /// The token after each, `(m)` int64.
    pub(crate) labels: Tensor,
}

/// The last norm and the output head.
#[derive(Debug)]
pub(crate) struct Head {
    /// `(d)`
    pub(crate) norm: Tensor,
    /// `(vocab, d)`
    pub(crate) output: Linear,
    eps: f64,
}

impl Head {
    pub(crate) fn load(all: Weights<'_>, compute: &Compute) -> Result<Self> {
        let weight = all.head(compute.device)?;
        Ok(Self {
            norm: all.tensor(names::FINAL_NORM, compute.device)?,
            output: Linear::new(weight, None, compute.precision)?,
            eps: all.source.config().rms_norm_eps,
        })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { norm: self.norm.shallow_clone(), output: self.output.shallow_clone(), eps: self.eps }
    }

    /// Computes logits `(n, vocab)` of all rows of `hidden (n, d)`.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.scores(&norm::forward(hidden, &self.norm, self.eps)?.0)
    }

    /// Computes logits `(n, vocab)`, float32, of normed rows.
    fn scores(&self, normed: &Tensor) -> Result<Tensor> {
        Ok(self.output.forward(normed)?.f_to_kind(Kind::Float)?)
    }

    /// Returns the normed rows of `hidden` at `positions`, `(m, d)`.
    fn picked(&self, hidden: &Tensor, positions: &Tensor) -> Result<Tensor> {
        Ok(norm::forward(&hidden.f_index_select(0, positions)?, &self.norm, self.eps)?.0)
    }

    /// Sums the losses over the counted positions of `hidden (n, d)`. `teacher`: the original's head and
    /// hidden states `(n, d)`.
    pub(crate) fn measure(
        &self,
        hidden: &Tensor,
        targets: &Targets,
        loss: Loss,
        teacher: Option<(&Head, &Tensor)>,
    ) -> Result<LossSums> {
        let normed = self.picked(hidden, &targets.positions)?;
        let teacher = self.teacher_rows(targets, loss, teacher)?;
        let mut sums = LossSums::default();
        self.chunks(&normed, targets, teacher, loss, |part, _, _| {
            sums.add(&part);
            Ok(())
        })?;
        Ok(sums)
    }

    /// Sums the losses as [`Head::measure`] does and computes the gradient `(n, d)` of `scale` times their
    /// sum. The norm's own gradient goes to its sink.
    pub(crate) fn differentiate(
        &self,
        hidden: &Tensor,
        targets: &Targets,
        loss: Loss,
        teacher: Option<(&Head, &Tensor)>,
        scale: f64,
        train_norm: Option<(ParamId, &Sink<'_>)>,
    ) -> Result<(LossSums, Tensor)> {
        let rows = hidden.f_index_select(0, &targets.positions)?;
        let (normed, inv) = norm::forward(&rows, &self.norm, self.eps)?;
        let teacher = self.teacher_rows(targets, loss, teacher)?;
        let d_normed = normed.f_empty_like()?;
        let mut sums = LossSums::default();
        self.chunks(&normed, targets, teacher, loss, |part, start, mut d_logits| {
            sums.add(&part);
            let _ = d_logits.f_mul_scalar_(scale)?;
            let d = self.output.input_grad(&d_logits)?;
            d_normed.f_narrow(0, start, d.size2()?.0)?.f_copy_(&d)?;
            Ok(())
        })?;
        if let Some((id, sink)) = train_norm {
            sink.add(id, &norm::weight_grad(&d_normed, &rows, &inv)?)?;
        }
        let mut d_rows = rows.f_zeros_like()?;
        norm::backward_onto(&mut d_rows, &d_normed, &rows, &inv, &self.norm)?;
        let mut d_hidden = hidden.f_zeros_like()?;
        let _ = d_hidden.f_index_copy_(0, &targets.positions, &d_rows)?;
        Ok((sums, d_hidden))
    }

    fn teacher_rows<'a>(
        &self,
        targets: &Targets,
        loss: Loss,
        teacher: Option<(&'a Head, &Tensor)>,
    ) -> Result<Option<(&'a Head, Tensor)>> {
        if !loss.needs_teacher() {
            return Ok(None);
        }
        let (head, hidden) =
            teacher.ok_or_else(|| Error::invalid("distillation needs the original's hidden states"))?;
        Ok(Some((head, head.picked(hidden, &targets.positions)?)))
    }

    /// Goes through the rows a chunk at a time; `each` gets the chunk's sums, its first row, and the gradient
    /// with respect to its logits.
    fn chunks(
        &self,
        normed: &Tensor,
        targets: &Targets,
        teacher: Option<(&Head, Tensor)>,
        loss: Loss,
        mut each: impl FnMut(LossSums, i64, Tensor) -> Result<()>,
    ) -> Result<()> {
        let (ce_weight, kl_weight, temperature) = loss.weights();
        let total = targets.positions.size1()?;
        let chunk = rows_at_once(normed.device());
        let mut start = 0;
        while start < total {
            let n = chunk.min(total - start);
            let labels = targets.labels.f_narrow(0, start, n)?.f_unsqueeze(1)?;
            let mut logits = self.scores(&normed.f_narrow(0, start, n)?)?;
            let mut sums = LossSums { tokens: size(n) as u64, ..LossSums::default() };
            let mut gradient = None;
            // Even a loss without cross entropy reports it; its gradient is taken where it has a weight.
            if ce_weight != 0.0 || temperature == 1.0 {
                let mut log_p = logits.f_internal_log_softmax(-1, false)?;
                sums.nll = -scalar(&log_p.f_gather(1, &labels, false)?.f_sum(Kind::Double)?)?;
                if kl_weight == 0.0 {
                    drop(std::mem::replace(&mut logits, Tensor::new()));
                    let mut p = log_p.f_exp_()?;
                    let _ = p.f_scatter_add_(1, &labels, &minus_one(&labels)?)?;
                    each(sums, start, p)?;
                    start += n;
                    continue;
                }
                if ce_weight != 0.0 {
                    let mut p = log_p.f_exp()?;
                    let _ = p.f_scatter_add_(1, &labels, &minus_one(&labels)?)?.f_mul_scalar_(ce_weight)?;
                    gradient = Some(p);
                }
                if temperature == 1.0 {
                    logits = log_p;
                }
            } else {
                let log_sum = logits.f_logsumexp([1i64].as_slice(), true)?;
                let picked = logits.f_gather(1, &labels, false)?;
                sums.nll = scalar(&log_sum.f_sub(&picked)?.f_sum(Kind::Double)?)?;
            }
            if let Some((head, rows)) = &teacher {
                let theirs = head.scores(&rows.f_narrow(0, start, n)?)?;
                let log_q = if temperature == 1.0 {
                    logits
                } else {
                    logits.f_mul_scalar_(1.0 / temperature)?.f_internal_log_softmax(-1, false)?
                };
                let log_p = theirs.f_mul_scalar(1.0 / temperature)?.f_internal_log_softmax(-1, false)?;
                drop(theirs);
                let p = log_p.f_exp()?;
                let apart = log_p.f_sub(&log_q)?.f_mul_(&p)?.f_sum(Kind::Double)?;
                sums.kl = scalar(&apart)? * temperature * temperature;
                drop(log_p);
                let mut q = log_q;
                let _ = q.f_exp_()?.f_sub_(&p)?.f_mul_scalar_(kl_weight * temperature)?;
                gradient = Some(match gradient {
                    None => q,
                    Some(mut g) => g.f_add_(&q)?,
                });
            }
            let gradient = gradient.ok_or_else(|| Error::invalid("a loss without parts"))?;
            each(sums, start, gradient)?;
            start += n;
        }
        Ok(())
    }
}

fn minus_one(labels: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_full(labels.size(), -1.0, (Kind::Float, labels.device()))?)
}
