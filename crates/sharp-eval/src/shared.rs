//! Several models over the same tokens, doing once what they share.

use std::collections::BTreeMap;

use sharp_infer::{LayerView, Model, Observer, Segment};

use crate::error::{Error, Result};

/// Models that are run over the same tokens. Layers that a later model shares with the first one, from the
/// embedding on, are run once for both.
pub(crate) struct Group<'a> {
    models: &'a [&'a Model],
    /// For each model the layer at which it takes over from the first; `None`: it starts from its own
    /// embedding.
    from: Vec<Option<usize>>,
}

/// Keeps what enters some layers.
struct Keep {
    entering: BTreeMap<usize, Vec<f32>>,
}

impl Observer for Keep {
    fn layer(&mut self, view: LayerView<'_>) {
        if let Some(kept) = self.entering.get_mut(&view.layer) {
            *kept = view.residual_in.to_vec();
        }
    }

    fn wants(&self, layer: usize) -> bool {
        self.entering.contains_key(&layer)
    }
}

impl<'a> Group<'a> {
    pub(crate) fn new(models: &'a [&'a Model]) -> Result<Self> {
        let Some(first) = models.first() else {
            return Err(Error::argument("there is no model to evaluate"));
        };
        let expected = first.config().vocab_size;
        for (model, m) in models.iter().enumerate() {
            let found = m.config().vocab_size;
            if found != expected {
                return Err(Error::Vocabulary { model, expected, found });
            }
        }
        let from = models.iter().skip(1).map(|m| first.shared_prefix(m).filter(|&n| n > 0)).collect();
        Ok(Group { models, from })
    }

    pub(crate) fn models(&self) -> &'a [&'a Model] {
        self.models
    }

    /// Returns what leaves the last layer of each model, (n, d), given tokens (n) and how they follow one
    /// another.
    pub(crate) fn run(&self, tokens: &[u32], segments: &[Segment]) -> Result<Vec<Vec<f32>>> {
        let Some((first, rest)) = self.models.split_first() else { return Ok(Vec::new()) };
        let layers = first.layers().len();
        let entering =
            self.from.iter().flatten().filter(|&&n| n < layers).map(|&n| (n, Vec::new())).collect();
        let mut keep = Keep { entering };
        let mut all = vec![first.hidden_segments(0, first.embed_tokens(tokens)?, segments, &mut keep)?];
        for (model, from) in rest.iter().zip(&self.from) {
            let hidden = match from.map(|n| (n, keep.entering.get(&n))) {
                Some((n, Some(kept))) => model.hidden_segments(n, kept.clone(), segments, &mut ())?,
                // All layers are the first one's; the head may still be another.
                Some((_, None)) => all[0].clone(),
                None => model.hidden_segments(0, model.embed_tokens(tokens)?, segments, &mut ())?,
            };
            all.push(hidden);
        }
        Ok(all)
    }
}
