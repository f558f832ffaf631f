//! The layers that an interrupted warm-up has finished.

use std::path::Path;

use sharp_model::Recovery;
use sharp_schema::run::UNFINISHED_PREFIX;

use super::options::WarmupOptions;
use crate::digests::{self, Digests, file_digest, remove};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::job::Job;
use crate::metrics;

/// Says which layers in a folder are finished, and records new ones.
pub(super) struct Finished<'a> {
    out: &'a Path,
    digests: Digests,
}

impl<'a> Finished<'a> {
    /// Reads what the folder says of itself. Where that is damaged or not there, no layer counts as finished.
    ///
    /// # Errors
    /// [`Error::State`] for a folder with the layers of another warm-up.
    pub(super) fn open(job: &Job<'a>, options: &WarmupOptions) -> Result<Self> {
        let print = fingerprint(job, options)?;
        let digests = match Digests::read(job.out)? {
            Ok(digests) if digests.fingerprint == print => digests,
            Ok(_) => {
                let what = "holds the layers of a warm-up with another model, plan, data or settings; remove the folder or choose another --out";
                return Err(Error::state(job.out, what));
            }
            Err(what) => {
                if job.out.join(digests::FILE).symlink_metadata().is_ok() {
                    tracing::warn!(folder = %job.out.display(), "every layer is fitted again: {what}");
                    remove(&job.out.join(digests::FILE))?;
                }
                Digests::new(&print)
            }
        };
        Ok(Self { out: job.out, digests })
    }

    /// True where a layer's file and its lines of metrics are as they were written. What is not is removed,
    /// with a warning.
    pub(super) fn has(&mut self, layer: usize) -> Result<bool> {
        let name = Recovery::layer_file(layer);
        let path = self.out.join(&name);
        let listed = self.digests.compare_file(self.out, &name)?;
        let lines = metrics::layer_digest(&self.out.join(metrics::FILE), layer)?;
        let Err(what) = listed.and_then(|()| self.digests.compare(&lines_of(layer), &lines)) else {
            return Ok(true);
        };
        // Nothing is wrong where the layer's turn has not come yet.
        if path.symlink_metadata().is_ok() || self.digests.lists(&name) {
            tracing::warn!(layer, "the layer is fitted again: {what}");
            remove(&path)?;
            self.digests.forget(&name);
        }
        Ok(false)
    }

    /// Writes a layer's file and records it; its lines of metrics are written already. The file appears when
    /// its record is there, so that a kill never leaves a file that has to be made again.
    pub(super) fn save(&mut self, layer: usize, recovery: &Recovery) -> Result<()> {
        let name = Recovery::layer_file(layer);
        let aside = self.out.join(format!("{UNFINISHED_PREFIX}{name}"));
        recovery.save(&aside)?;
        self.digests.add(name.clone(), file_digest(&aside).map_err(Error::io(&aside))?);
        let lines = metrics::layer_digest(&self.out.join(metrics::FILE), layer)?;
        self.digests.add(lines_of(layer), lines);
        self.digests.write(self.out)?;
        let path = self.out.join(name);
        std::fs::rename(&aside, &path).map_err(Error::io(&path))
    }
}

/// Names the part of the record that is a layer's lines of metrics.
fn lines_of(layer: usize) -> String {
    format!("{}, layer {layer}", metrics::FILE)
}

/// Computes a digest of all that decides the fitted values. Threads and the place of activations do not.
fn fingerprint(job: &Job<'_>, options: &WarmupOptions) -> Result<String> {
    let mut print = Fingerprint::of(job)?;
    let o = options;
    let settings = format!(
        "{} {} {} {} {} {} {} {} {}",
        o.start.name(),
        o.steps,
        o.batch_tokens,
        o.lr,
        o.weight_decay,
        o.weighting.name(),
        o.eval_every,
        o.patience,
        o.seed
    );
    print.add(settings.as_bytes());
    Ok(print.finish())
}
