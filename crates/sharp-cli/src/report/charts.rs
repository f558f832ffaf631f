//! Pictures as inline SVG: the plan, curves, bars. Colours are classes of the page's style sheet, so that light, dark
//! and print each have their own.

use std::fmt::Write as _;

use sharp_model::SharingPlan;
use sharp_similarity::{escape, number};

/// A curve.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Classes of curves; more curves than that begin again.
const COLOURS: usize = 6;
/// Points drawn of one curve.
const MAX_POINTS: usize = 400;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;

/// Layers from left to right; those that keep their MLP stand on the upper line as filled boxes, those that use another's
/// hang below it, joined to their reference.
pub(super) fn plan(plan: &SharingPlan, layers: usize) -> String {
    // A hand-made plan may name any layer; the picture shows those of the model.
    let layers = layers.clamp(1, 512);
    let cell = if layers > 64 { 14.0 } else { 20.0 };
    let (w, h) = (cell * layers as f64 + 24.0, 112.0);
    let x = |layer: usize| 12.0 + cell * layer as f64;
    let mut s = String::new();
    let _ = write!(
        s,
        "<svg class=\"plan\" role=\"img\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>which layer uses whose MLP</title>"
    );
    for layer in 0..layers {
        let target = plan.target(layer);
        let (class, y, what) = match target {
            None => ("own", 22.0, format!("layer {layer}: its own MLP")),
            Some(t) => match t.reference {
                Some(r) => ("uses", 76.0, format!("layer {layer}: the MLP of layer {r}, {}", t.form)),
                None if t.dropped => ("none", 76.0, format!("layer {layer}: no MLP")),
                None if t.is_pruned() => {
                    ("own", 22.0, format!("layer {layer}: its own MLP with {} neurons", t.neurons))
                }
                None => ("none", 76.0, format!("layer {layer}: low rank alone, nothing shared")),
            },
        };
        if let Some(r) = target.and_then(|t| t.reference).filter(|&r| r < layers) {
            let (from, to) = (x(r) + (cell - 3.0) / 2.0, x(layer) + (cell - 3.0) / 2.0);
            let _ =
                write!(s, "<path class=\"link\" d=\"M{from:.1} 42C{from:.1} 60 {to:.1} 56 {to:.1} 76\"/>");
        }
        let _ = write!(
            s,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"20\" rx=\"3\"><title>{}</title></rect>",
            x(layer),
            cell - 3.0,
            escape(&what)
        );
        if layers <= 64 || layer % 4 == 0 {
            let _ = write!(
                s,
                "<text x=\"{:.1}\" y=\"14\" text-anchor=\"middle\">{layer}</text>",
                x(layer) + (cell - 3.0) / 2.0
            );
        }
    }
    s.push_str("</svg>");
    s
}

/// Round marks between two values, about five.
fn ticks(low: f64, high: f64) -> Vec<f64> {
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

/// An axis, linear or logarithmic.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64> + Clone, log: bool, from: f64, to: f64) -> Self {
        let log = log && values.clone().all(|v| v > 0.0);
        let scaled = values.map(|v| if log { v.log10() } else { v });
        let (mut low, mut high) =
            scaled.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let pad = if high > low { 0.04 * (high - low) } else { (0.1 * low.abs()).max(0.1) };
        Self { low: low - pad, high: high + pad, log, from, to }
    }

    fn at(&self, v: f64) -> f64 {
        let v = if self.log { v.max(f64::MIN_POSITIVE).log10() } else { v };
        self.from + (v - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Values to mark.
    fn marks(&self) -> Vec<f64> {
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

/// Curves over a common axis, with their names above.
pub(super) fn curves(title: &str, x_name: &str, y_name: &str, curves: &[Curve], log_y: bool) -> String {
    let drawn: Vec<&Curve> = curves.iter().filter(|c| !c.points.is_empty()).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let per_row = 3usize;
    let top = 26.0 + 16.0 * drawn.len().div_ceil(per_row) as f64;
    let height = top + 220.0;
    let points = || drawn.iter().flat_map(|c| c.points.iter().copied());
    let x = Axis::new(points().map(|p| p.0).collect::<Vec<_>>().into_iter(), false, LEFT, WIDTH - RIGHT);
    let y = Axis::new(points().map(|p| p.1).collect::<Vec<_>>().into_iter(), log_y, height - 36.0, top);
    let mut s = String::new();
    let _ = write!(
        s,
        "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{}</title>",
        escape(title)
    );
    for (i, curve) in drawn.iter().enumerate() {
        let (cx, cy) = (LEFT + 190.0 * (i % per_row) as f64, 14.0 + 16.0 * (i / per_row) as f64);
        let _ = write!(
            s,
            "<path class=\"c{0}\" d=\"M{cx} {1}h18\"/><text x=\"{2}\" y=\"{3}\">{4}</text>",
            i % COLOURS,
            cy - 4.0,
            cx + 24.0,
            cy,
            escape(&curve.name)
        );
    }
    for mark in y.marks() {
        let at = y.at(mark);
        let _ = write!(
            s,
            "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            tick(mark)
        );
    }
    for mark in x.marks() {
        let at = x.at(mark);
        let _ = write!(
            s,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 20.0,
            tick(mark)
        );
    }
    let _ = write!(
        s,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text x=\"4\" y=\"{:.1}\">{}{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 4.0,
        escape(x_name),
        top - 8.0,
        escape(y_name),
        if y.log { " (log scale)" } else { "" }
    );
    for (i, curve) in drawn.iter().enumerate() {
        let skip = curve.points.len().div_ceil(MAX_POINTS).max(1);
        let last = curve.points.len() - 1;
        let mut path = String::new();
        for (k, &(px, py)) in curve.points.iter().enumerate().filter(|(k, _)| k % skip == 0 || *k == last) {
            let _ = write!(path, "{}{:.1} {:.1}", if k == 0 { 'M' } else { 'L' }, x.at(px), y.at(py));
        }
        let colour = i % COLOURS;
        let _ =
            write!(s, "<path class=\"c{colour}\" d=\"{path}\"><title>{}</title></path>", escape(&curve.name));
        if let [(px, py)] = curve.points[..] {
            let _ = write!(
                s,
                "<circle class=\"d{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                x.at(px),
                y.at(py)
            );
        }
    }
    s.push_str("</svg>");
    s
}

/// From where to where: one line a row, a ring at its start and a dot at its end.
pub(super) fn from_to(title: &str, x_name: &str, rows: &[(String, f64, f64)]) -> String {
    let rows: Vec<_> = rows.iter().filter(|(_, a, b)| a.is_finite() && b.is_finite()).collect();
    if rows.is_empty() {
        return String::new();
    }
    let height = 22.0 * rows.len() as f64 + 52.0;
    let values: Vec<f64> = rows.iter().flat_map(|(_, a, b)| [*a, *b]).chain([0.0]).collect();
    let x = Axis::new(values.into_iter(), false, 120.0, WIDTH - RIGHT);
    let mut s = String::new();
    let _ = write!(
        s,
        "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{}</title>",
        escape(title)
    );
    for mark in x.marks() {
        let at = x.at(mark);
        let _ = write!(
            s,
            "<path class=\"grid\" d=\"M{at:.1} 6V{:.1}\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 38.0,
            height - 22.0,
            tick(mark)
        );
    }
    for (i, (name, from, to)) in rows.iter().enumerate() {
        let cy = 18.0 + 22.0 * i as f64;
        let (a, b) = (x.at(*from), x.at(*to));
        let _ = write!(
            s,
            "<text x=\"112\" y=\"{:.1}\" text-anchor=\"end\">{}</text><path class=\"c0\" d=\"M{a:.1} {cy}H{b:.1}\"/>\
             <circle class=\"ring\" cx=\"{a:.1}\" cy=\"{cy}\" r=\"4\"><title>start {}</title></circle>\
             <circle class=\"d0\" cx=\"{b:.1}\" cy=\"{cy}\" r=\"4\"><title>end {}</title></circle>",
            cy + 4.0,
            escape(name),
            number(*from),
            number(*to)
        );
    }
    let _ = write!(
        s,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></svg>",
        (120.0 + WIDTH - RIGHT) / 2.0,
        height - 5.0,
        escape(x_name)
    );
    s
}

/// A value on an axis, without noise in its last digits.
fn tick(v: f64) -> String {
    if v != 0.0 && (v.abs() >= 1e6 || v.abs() < 1e-4) {
        return format!("{v:.0e}");
    }
    let text = format!("{v:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_mark_round_values() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(3.0, 103.0), [50.0, 100.0]);
        assert_eq!(ticks(2.0, 2.0), [2.0]);
        let axis = Axis::new([20.0, 1.2e6].into_iter(), true, 0.0, 1.0);
        assert!(axis.marks().contains(&100.0) && axis.marks().len() < 8, "{:?}", axis.marks());
        assert_eq!(tick(0.30000000000000004), "0.3");
    }

    #[test]
    fn hostile_numbers_and_names_make_a_picture_all_the_same() {
        let curve = |points: Vec<(f64, f64)>| Curve { name: "<b>&".into(), points };
        for points in [vec![], vec![(1.0, 1.0)], vec![(0.0, 0.0); 3], vec![(0.0, 1e300), (1.0, -1e300)]] {
            let svg = curves("t", "x", "y", &[curve(points)], true);
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<b>"), "{svg}");
        }
        let plan_of = |layer, reference| {
            SharingPlan::new(
                "x",
                vec![sharp_model::Target::sharing(
                    layer,
                    reference,
                    sharp_model::RecoveryForm::None,
                    sharp_model::Ranks::default(),
                )],
            )
        };
        assert!(plan(&plan_of(1, 0), 2).contains("the MLP of layer 0"));
        assert!(!plan(&plan_of(1, 99), 2).contains("class=\"link\""));
        assert_eq!(from_to("t", "x", &[("a".into(), f64::NAN, 1.0)]), "");
    }
}
