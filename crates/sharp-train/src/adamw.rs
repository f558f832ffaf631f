//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) with moments that can be saved: libtorch's C++ optimisers,
//! as tch binds them, cannot.

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::params::{Layout, Segment};
use crate::tensors::{dim, from_f32, scalar};

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AdamWConfig {
    /// Decay of the first moment.
    pub(crate) beta1: f64,
    /// Decay of the second moment.
    pub(crate) beta2: f64,
    /// Added to the root of the second moment.
    pub(crate) eps: f64,
    /// Decoupled weight decay, times the learning rate, on matrices only.
    pub(crate) weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimiser's state for one flat vector of parameters.
#[derive(Debug)]
pub(crate) struct AdamW {
    config: AdamWConfig,
    segments: Vec<Segment>,
    first: Tensor,
    second: Tensor,
    step: u64,
}

impl AdamW {
    /// Makes an optimiser with zero moments for the parameters of `layout`.
    ///
    /// # Errors
    /// From libtorch.
    pub(crate) fn new(config: AdamWConfig, layout: &Layout, device: Device) -> Result<Self> {
        Ok(Self {
            config,
            segments: layout.segments(),
            first: layout.zeros(device)?,
            second: layout.zeros(device)?,
            step: 0,
        })
    }

    /// Returns the number of steps taken since it was made or reset.
    pub(crate) fn step_count(&self) -> u64 {
        self.step
    }

    /// Takes one step at the rate `lr`, times each parameter's own factor: moves `flat` (n) against the
    /// gradient `grad` (n), both of the layout given to [`AdamW::new`].
    ///
    /// # Errors
    /// From libtorch, if the sizes differ.
    pub(crate) fn step(&mut self, flat: &mut Tensor, grad: &Tensor, lr: f64) -> Result<()> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        self.step += 1;
        let exponent = i32::try_from(self.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(exponent);
        let correction2 = 1.0 - beta2.powi(exponent);
        for Segment { range, decays, rate } in pieces(&self.segments, flat.device()) {
            let lr = lr * rate;
            let (start, len) = (dim(range.start)?, dim(range.len())?);
            let part = |t: &Tensor| t.f_narrow(0, start, len);
            let (mut flat, grad) = (part(flat)?, part(grad)?);
            let (mut first, mut second) = (part(&self.first)?, part(&self.second)?);
            let _ = first.f_lerp_(&grad, 1.0 - beta1)?;
            let scaled = grad.f_mul_scalar((1.0 - beta2).sqrt())?;
            let _ = second.f_mul_scalar_(beta2)?.f_addcmul_(&scaled, &scaled)?;
            if weight_decay != 0.0 && decays {
                let _ = flat.f_mul_scalar_(1.0 - lr * weight_decay)?;
            }
            let mut denominator = second.f_sqrt()?;
            let _ = denominator.f_mul_scalar_(1.0 / correction2.sqrt())?.f_add_scalar_(eps)?;
            let update = first.f_mul_scalar(-lr / correction1)?;
            let _ = flat.f_addcdiv_(&update, &denominator)?;
        }
        Ok(())
    }

    /// Forgets the moments, as if no step had been taken.
    ///
    /// # Errors
    /// From libtorch.
    pub(crate) fn reset(&mut self) -> Result<()> {
        let _ = self.first.f_zero_()?;
        let _ = self.second.f_zero_()?;
        self.step = 0;
        Ok(())
    }

    /// Returns the first and second moments, `(n)` each, sharing memory.
    pub(crate) fn moments(&self) -> [&Tensor; 2] {
        [&self.first, &self.second]
    }

    /// Restores a state read from a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is of another number of parameters.
    pub(crate) fn restore(&mut self, step: u64, first: &[f32], second: &[f32]) -> Result<()> {
        let n = self.first.numel();
        if first.len() != n || second.len() != n {
            return Err(Error::invalid(format!(
                "saved moments of {} and {} values for {n} parameters",
                first.len(),
                second.len()
            )));
        }
        let device = self.first.device();
        self.first = from_f32(first, &[n], device)?;
        self.second = from_f32(second, &[n], device)?;
        self.step = step;
        Ok(())
    }
}

/// Chooses how many elements are worked on at a time. On a CPU few enough that a piece of everything stays in
/// a core's cache between one operation and the next; on a GPU, where each operation costs its launch, only
/// so few that temporaries stay small.
fn piece(device: Device) -> usize {
    if device.is_cuda() { 1 << 26 } else { 1 << 16 }
}

/// Cuts segments to pieces of at most [`piece`] elements.
fn pieces(segments: &[Segment], device: Device) -> impl Iterator<Item = Segment> {
    let piece = piece(device);
    segments.iter().flat_map(move |segment| {
        let Segment { ref range, decays, rate } = *segment;
        let end = range.end;
        let part = move |start| Segment { range: start..end.min(start + piece), decays, rate };
        range.clone().step_by(piece).map(part)
    })
}

/// Scales `grad` down to L2 norm `limit` if it is above it; returns the norm before.
///
/// # Errors
/// From libtorch.
pub(crate) fn clip(grad: &mut Tensor, limit: f64) -> Result<f64> {
    // In float64: a float32 sum of millions of squares loses digits that depend on the order.
    let mut squares = 0.0;
    let whole = Segment { range: 0..grad.numel(), decays: false, rate: 1.0 };
    for Segment { range, .. } in pieces(&[whole], grad.device()) {
        let part = grad.f_narrow(0, dim(range.start)?, dim(range.len())?)?;
        squares += scalar(&part.f_square()?.f_sum(Kind::Double)?)?;
    }
    let norm = squares.sqrt();
    if limit > 0.0 && norm > limit {
        let _ = grad.f_mul_scalar_(limit / norm)?;
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Group, Params};
    use crate::tensors::to_vec;

    /// The textbook loop, in f64.
    fn reference(config: AdamWConfig, p: &mut [f64], decays: &[bool], grads: &[Vec<f64>], lr: f64) {
        let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
        for (t, g) in grads.iter().enumerate() {
            let t = t as i32 + 1;
            for i in 0..p.len() {
                m[i] = config.beta1 * m[i] + (1.0 - config.beta1) * g[i];
                v[i] = config.beta2 * v[i] + (1.0 - config.beta2) * g[i] * g[i];
                let (mh, vh) = (m[i] / (1.0 - config.beta1.powi(t)), v[i] / (1.0 - config.beta2.powi(t)));
                if decays[i] {
                    p[i] -= lr * config.weight_decay * p[i];
                }
                p[i] -= lr * mh / (vh.sqrt() + config.eps);
            }
        }
    }

    #[test]
    fn matches_the_textbook_and_resumes_bit_equal() {
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let mut layout = Layout::default();
        let a = layout.add("a", &[3], Group::Factor).unwrap();
        layout.add("s", &[2], Group::Scale).unwrap();
        let mut params = Params::zeros(layout.clone(), Device::Cpu).unwrap();
        params.set(a, &[1.0, -2.0, 0.5]).unwrap();
        let grads: Vec<Vec<f64>> =
            (0..20).map(|t| (0..5).map(|i| ((t * 5 + i) as f64 * 0.7).sin()).collect()).collect();
        let tensor = |g: &Vec<f64>| {
            from_f32(&g.iter().map(|&x| x as f32).collect::<Vec<_>>(), &[5], Device::Cpu).unwrap()
        };
        let mut want = vec![1.0, -2.0, 0.5, 0.0, 0.0];
        reference(config, &mut want, &[true, true, true, false, false], &grads, 0.01);

        let mut opt = AdamW::new(config, &layout, Device::Cpu).unwrap();
        let mut saved = None;
        for (t, g) in grads.iter().enumerate() {
            if t == 8 {
                let [m, v] = opt.moments().map(|t| to_vec(t).unwrap());
                saved = Some(((opt.step_count(), m, v), to_vec(&params.flat).unwrap()));
            }
            opt.step(&mut params.flat, &tensor(g), 0.01).unwrap();
        }
        let got = to_vec(&params.flat).unwrap();
        for (g, w) in got.iter().zip(&want) {
            assert!((f64::from(*g) - w).abs() < 1e-5, "{got:?} {want:?}");
        }
        let ((step, m, v), flat) = saved.unwrap();
        let mut resumed = AdamW::new(config, &layout, Device::Cpu).unwrap();
        resumed.restore(step, &m, &v).unwrap();
        let mut flat = from_f32(&flat, &[5], Device::Cpu).unwrap();
        for g in &grads[8..] {
            resumed.step(&mut flat, &tensor(g), 0.01).unwrap();
        }
        assert_eq!(to_vec(&flat).unwrap(), got);
        assert!(resumed.restore(1, &[0.0; 4], &[0.0; 5]).is_err());
    }

    #[test]
    fn a_parameter_with_a_rate_of_its_own_moves_by_so_much_less() {
        let step = |rate: f64| {
            let mut layout = Layout::default();
            layout.add("a", &[2], Group::Scale).unwrap();
            let b = layout.add("b", &[3], Group::Scale).unwrap();
            layout.set_rate(b, rate);
            let mut params = Params::zeros(layout.clone(), Device::Cpu).unwrap();
            let grad = Tensor::from_slice(&[0.5f32, -2.0, 1.0, -0.25, 3.0]);
            let mut adamw = AdamW::new(AdamWConfig::default(), &layout, Device::Cpu).unwrap();
            adamw.step(&mut params.flat, &grad, 1e-2).unwrap();
            to_vec(&params.flat).unwrap()
        };
        let (whole, part) = (step(1.0), step(0.125));
        assert_eq!(part[..2], whole[..2]);
        assert!(whole.iter().all(|moved| moved.abs() > 9e-3));
        for (part, whole) in part[2..].iter().zip(&whole[2..]) {
            assert!((part * 8.0 / whole - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut g = from_f32(&[3.0, 4.0], &[2], Device::Cpu).unwrap();
        assert!((clip(&mut g, 10.0).unwrap() - 5.0).abs() < 1e-9);
        assert_eq!(to_vec(&g).unwrap(), [3.0, 4.0]);
        assert!((clip(&mut g, 1.0).unwrap() - 5.0).abs() < 1e-9);
        assert!((to_vec(&g).unwrap()[1] - 0.8).abs() < 1e-6);
    }
}
