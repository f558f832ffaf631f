//! The streaming pass: every sequence goes through the model once, and every layer's MLP input also goes
//! through the neighbours' MLPs.

use std::collections::{BTreeMap, VecDeque};

use sharp_infer::{LayerView, Model, Observer};
use sharp_progress::{Progress, Task};

use crate::cka::{Gram, MINIBATCH, cka};
use crate::options::Options;
use crate::report::{LayerReport, PairReport, REPORT_VERSION, Report};
use crate::stats::{self, Mean, Substitution};
use crate::{Error, Result, delta};

/// Measures how alike the layers of `model` are on `sequences` of tokens.
///
/// Memory grows with one sequence and one layer (times the window), not with the number of tokens.
///
/// # Errors
/// [`Error::InvalidOption`] for a window of 0, [`Error::NoText`] where no sequence has two tokens,
/// [`Error::NotFinite`] where a layer's activations are not finite, and whatever the forward pass refuses
/// (tokens outside the vocabulary).
pub fn analyze(
    model: &Model,
    sequences: &[Vec<u32>],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Report> {
    let layers = model.config().num_hidden_layers;
    if options.window == 0 {
        return Err(Error::InvalidOption {
            what: "window",
            value: "0".into(),
            expected: "the greatest distance between the layers of a pair, at least 1".into(),
        });
    }
    if layers < 2 {
        return Err(Error::InvalidOption {
            what: "model",
            value: format!("{layers} layers"),
            expected: "at least two, to compare one with another".into(),
        });
    }
    let window = options.window.min(layers - 1);
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).filter(|s| s.len() > 1).collect();
    let tokens: u64 = sequences.iter().map(|s| s.len() as u64).sum();
    if tokens == 0 {
        return Err(Error::NoText("no sequence has two tokens".into()));
    }
    let task = progress.task("comparing layers", tokens.saturating_mul(layers as u64), "token layers");
    let mut pass = Pass::new(model, window, options.cka, &*task);
    for tokens in &sequences {
        pass.begin();
        model.hidden(tokens, &mut pass)?;
        if let Some(error) = pass.error.take() {
            return Err(error);
        }
    }
    let mut report = pass.report(options, window, tokens, sequences.len() as u64);
    drop(task);
    if options.weights {
        weight_distances(model, &mut report, progress)?;
    }
    if options.delta_nll_tokens > 0 {
        delta::measure(model, &sequences, options, &mut report, progress)?;
    }
    report.round();
    Ok(report)
}

/// Two layers' own outputs, whichever way round.
#[derive(Debug, Default)]
struct Between {
    cosine: Mean,
    hsic: f64,
}

/// What a layer put out on the current sequence.
struct Output {
    layer: usize,
    /// `(n, d)`
    values: Vec<f32>,
    /// One a minibatch.
    grams: Vec<Gram>,
}

struct Pass<'a> {
    model: &'a Model,
    window: usize,
    hidden: usize,
    cka: bool,
    task: &'a dyn Task,
    layers: Vec<stats::Layer>,
    /// HSIC of each layer with itself, `(layers)`.
    own: Vec<f64>,
    /// By target and reference.
    replacements: BTreeMap<(usize, usize), Substitution>,
    /// By the lower and the upper layer.
    between: BTreeMap<(usize, usize), Between>,
    /// Outputs of the last `window` layers.
    recent: VecDeque<Output>,
    error: Option<Error>,
}

impl<'a> Pass<'a> {
    fn new(model: &'a Model, window: usize, cka: bool, task: &'a dyn Task) -> Self {
        let layers = model.config().num_hidden_layers;
        let hidden = model.config().hidden_size;
        let mut replacements = BTreeMap::new();
        let mut between = BTreeMap::new();
        for t in 0..layers {
            for r in neighbours(t, window, layers) {
                replacements.insert((t, r), Substitution::new(hidden));
                between.insert((t.min(r), t.max(r)), Between::default());
            }
        }
        Self {
            model,
            window,
            hidden,
            cka,
            task,
            layers: vec![stats::Layer::default(); layers],
            own: vec![0.0; layers],
            replacements,
            between,
            recent: VecDeque::new(),
            error: None,
        }
    }

    fn begin(&mut self) {
        self.recent.clear();
    }

    fn look(&mut self, view: LayerView<'_>) -> Result<()> {
        let (t, d) = (view.layer, self.hidden);
        let count = self.layers.len();
        let Some(layer) = self.layers.get_mut(t) else { return Ok(()) };
        let not_finite = |what| Error::NotFinite { layer: t, what };
        let norms = layer.add(d, view.residual_in, view.mlp_output, view.residual_out);
        if norms.iter().any(|n| !n.is_finite()) {
            return Err(not_finite("the residual stream"));
        }
        for r in neighbours(t, self.window, count) {
            let other = self.model.mlp(r, view.mlp_input)?;
            if other.iter().any(|v| !v.is_finite()) {
                return Err(Error::NotFinite { layer: r, what: "the MLP's output on a neighbour's input" });
            }
            if let Some(sums) = self.replacements.get_mut(&(t, r)) {
                sums.add(view.mlp_output, &other, &norms);
            }
        }
        let grams: Vec<Gram> = if self.cka {
            let team = self.model.team();
            view.mlp_output.chunks(MINIBATCH * d).filter_map(|part| Gram::new(team, part, d)).collect()
        } else {
            Vec::new()
        };
        if let Some(own) = self.own.get_mut(t) {
            *own += grams.iter().map(|g| g.hsic(g)).sum::<f64>();
        }
        for earlier in &self.recent {
            if let Some(between) = self.between.get_mut(&(earlier.layer, t)) {
                stats::add_cosines(&mut between.cosine, d, &earlier.values, view.mlp_output);
                between.hsic += earlier.grams.iter().zip(&grams).map(|(a, b)| a.hsic(b)).sum::<f64>();
            }
        }
        self.recent.push_back(Output { layer: t, values: view.mlp_output.to_vec(), grams });
        if self.recent.len() > self.window {
            self.recent.pop_front();
        }
        self.task.advance((view.mlp_output.len() / d.max(1)) as u64);
        Ok(())
    }

    fn report(&self, options: &Options, window: usize, tokens: u64, sequences: u64) -> Report {
        let layers = self
            .layers
            .iter()
            .enumerate()
            .map(|(layer, l)| LayerReport {
                layer,
                block_influence: l.block_influence(),
                mlp_share: l.share(),
                mlp_output_rms: l.output_rms(),
                removal_nll: None,
            })
            .collect();
        let own = |layer: usize| self.own.get(layer).copied().unwrap_or(0.0);
        let pairs = self
            .replacements
            .iter()
            .map(|(&(target, reference), sums)| {
                let between = self.between.get(&(target.min(reference), target.max(reference)));
                let hsic = between.map_or(0.0, |b| b.hsic);
                let measured = self.cka && own(target) > 0.0 && own(reference) > 0.0;
                PairReport {
                    target,
                    reference,
                    relative_error: sums.relative_error(),
                    token_error: sums.token_error(),
                    scaled_error: sums.scaled_error(),
                    residual_error: sums.residual_error(),
                    cosine: sums.cosine(),
                    output_cosine: between.map_or(0.0, |b| b.cosine.get()),
                    cka: measured.then(|| cka(hsic, own(target), own(reference))),
                    weight_distance: None,
                    delta_nll: None,
                    predicted_nll: None,
                    delta_nll_stderr: None,
                }
            })
            .collect();
        Report {
            version: REPORT_VERSION,
            model: options.model.clone(),
            num_layers: self.layers.len(),
            window,
            tokens,
            sequences,
            delta_nll_tokens: 0,
            nll: None,
            layers,
            pairs,
        }
    }
}

impl Observer for Pass<'_> {
    fn layer(&mut self, view: LayerView<'_>) {
        // An observer cannot end the pass; after a first error it only stops working.
        if self.error.is_none()
            && let Err(error) = self.look(view)
        {
            self.error = Some(error);
        }
    }
}

/// Returns the layers within `window` of `layer`, without itself.
fn neighbours(layer: usize, window: usize, layers: usize) -> impl Iterator<Item = usize> {
    (layer.saturating_sub(window)..=(layer + window).min(layers - 1)).filter(move |&r| r != layer)
}

/// Fills in the weights' distances. Layers whose weights are not simply stored (recovery parameters, scales,
/// dropped ones) have none.
fn weight_distances(model: &Model, report: &mut Report, progress: &dyn Progress) -> Result<()> {
    let layers = model.layers();
    let task = progress.task("comparing weights", layers.len() as u64, "layers");
    // Squared distances by lower and upper layer; squared norms by layer.
    let mut distances: BTreeMap<(usize, usize), f64> = BTreeMap::new();
    let mut norms: BTreeMap<usize, f64> = BTreeMap::new();
    let (mut row_a, mut row_b) = (Vec::new(), Vec::new());
    for (a, layer_a) in layers.iter().enumerate() {
        let plain = |l: &sharp_infer::Layer| {
            l.mlp().projections().iter().all(|p| p.base().is_some() && p.rank() == 0)
        };
        if !plain(layer_a) {
            continue;
        }
        let upper = (a + report.window).min(layers.len() - 1);
        let others: Vec<usize> = (a + 1..=upper).filter(|&b| layers.get(b).is_some_and(plain)).collect();
        for (k, projection) in layer_a.mlp().projections().into_iter().enumerate() {
            let Some(weight_a) = projection.base() else { continue };
            row_a.resize(weight_a.cols(), 0.0);
            row_b.resize(weight_a.cols(), 0.0);
            for row in 0..weight_a.rows() {
                weight_a.row(row, &mut row_a)?;
                *norms.entry(a).or_default() += stats::dots(&row_a, &row_a).0;
                for &b in &others {
                    let other = layers.get(b).and_then(|l| l.mlp().projections()[k].base());
                    let Some(weight_b) = other else { continue };
                    weight_b.row(row, &mut row_b)?;
                    *distances.entry((a, b)).or_default() += stats::error_sq(&row_a, &row_b);
                }
            }
        }
        task.advance(1);
    }
    for pair in &mut report.pairs {
        let key = (pair.target.min(pair.reference), pair.target.max(pair.reference));
        if let (Some(distance), Some(norm)) = (distances.get(&key), norms.get(&pair.target)) {
            pair.weight_distance = Some(stats::ratio(*distance, *norm).sqrt());
        }
    }
    Ok(())
}
