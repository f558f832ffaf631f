#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

/// The part of an axis that stays free beyond the least and the greatest value.
const PAD: f64 = 0.04;

/// An axis, linear or logarithmic, from values to places on the page.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    /// Makes an axis that holds all `values`, with some room beyond them, between the places `from` and `to`.
    ///
    /// It is logarithmic where `log` asks for that and every value is above 0.
    pub fn new(values: impl Iterator<Item = f64> + Clone, log: bool, from: f64, to: f64) -> Self {
        let log = log && values.clone().all(|v| v > 0.0);
        let scaled = values.map(|v| if log { v.log10() } else { v });
        let (mut low, mut high) =
            scaled.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let pad = if high > low { PAD * (high - low) } else { (0.1 * low.abs()).max(0.1) };
        Self { low: low - pad, high: high + pad, log, from, to }
    }

    /// Makes a linear axis from 0 at `from` to `high` at `to`.
    pub fn from_zero(high: f64, from: f64, to: f64) -> Self {
        Self { low: 0.0, high, log: false, from, to }
    }

    /// Returns whether the axis is logarithmic.
    pub fn is_log(&self) -> bool {
        self.log
    }

    /// Returns the place of a value.
    pub fn at(&self, value: f64) -> f64 {
        let value = if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Lists the values to mark.
    pub fn marks(&self) -> Vec<f64> {
        if !self.log {
            return ticks(self.low, self.high);
        }
        let span = self.high - self.low;
        let within: &[f64] = match span {
            s if s > 4.0 => &[1.0],
            s if s > 1.0 => &[1.0, 3.0],
            s if s > 0.4 => &[1.0, 2.0, 3.0, 5.0, 7.0],
            _ => return ticks(10f64.powf(self.low), 10f64.powf(self.high)),
        };
        let skip = (span / 6.0).ceil().max(1.0) as i32;
        (self.low.floor() as i32..=self.high.ceil() as i32)
            .filter(|e| e.rem_euclid(skip) == 0)
            .flat_map(|e| within.iter().map(move |m| m * 10f64.powi(e)))
            .filter(|v| (self.low..=self.high).contains(&v.log10()))
            .collect()
    }
}

/// Lists round values between two values, about five.
pub fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = high - low;
    if !(span > 0.0 && span.is_finite()) {
        return vec![low];
    }
    let rough = span / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(power);
    (0..)
        .map(|i| (low / step).ceil() * step + step * f64::from(i))
        .take_while(|v| *v <= high + step * 1e-6)
        .take(12)
        .map(|v| if v.abs() < step * 1e-9 { 0.0 } else { v })
        .collect()
}

/// Writes a value beside an axis, without noise in its last digits.
pub fn tick(value: f64) -> String {
    if value != 0.0 && (value.abs() >= 1e6 || value.abs() < 1e-4) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Makes a text safe for the content and the quoted attributes of HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters have no place in HTML.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_inside() {
        assert_eq!(Axis::new([0.0, 10.0].into_iter(), false, 0.0, 1.0).marks(), [0.0, 5.0, 10.0]);
        let axis = Axis::new([21.0, 190.0].into_iter(), true, 0.0, 1.0);
        assert!(axis.marks().iter().all(|m| (0.0..=1.0).contains(&axis.at(*m))), "{:?}", axis.marks());
        assert_eq!(axis.marks(), [30.0, 100.0]);
        assert_eq!(ticks(1.0, 1.0), [1.0]);
        assert_eq!(ticks(f64::NAN, 1.0).len(), 1);
    }

    #[test]
    fn an_axis_runs_from_place_to_place() {
        let axis = Axis::from_zero(4.0, 100.0, 20.0);
        assert_eq!([axis.at(0.0), axis.at(1.0), axis.at(4.0)], [100.0, 80.0, 20.0]);
        let one = Axis::new([3.0].into_iter(), false, 0.0, 10.0);
        assert!((one.at(3.0) - 5.0).abs() < 1e-9, "one value lies in the middle");
        assert!(!Axis::new([0.0, 1.0].into_iter(), true, 0.0, 1.0).is_log(), "0 has no logarithm");
        assert!(Axis::new(std::iter::empty(), false, 0.0, 1.0).at(0.5).is_finite());
    }

    #[test]
    fn ticks_are_short() {
        assert_eq!(tick(0.30000000000000004), "0.3");
        assert_eq!(tick(2000.0), "2000");
        assert_eq!(tick(2e7), "2e7");
        assert_eq!(tick(0.0), "0");
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<a href='x'>\"&\u{7}"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;\u{fffd}");
    }
}
