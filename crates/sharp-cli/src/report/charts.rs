//! Pictures as inline SVG: the plan, curves, bars. Colours are classes of the page's style sheet, so that
//! light, dark and print each have their own.

use std::fmt::Write as _;

use sharp_chart::{Axis, escape, tick, ticks};
use sharp_model::{Plan, Treatment};
use sharp_similarity::number;

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

// Narrow, so that a phone shows the text of a picture hardly smaller than it is written.
const WIDTH: f64 = 420.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
/// Names over a picture, in a line.
const NAMES: usize = 2;

/// Layers from left to right; those that keep their MLP stand on the upper line as boxes, filled as far as
/// they keep their `whole` neurons, those that use another's hang below it, joined to their reference.
pub(super) fn plan(plan: &Plan, layers: usize, whole: usize) -> String {
    // A hand-made plan may name any layer; the picture shows those of the model.
    let layers = layers.clamp(1, 512);
    let cell = if layers > 64 { 14.0 } else { 20.0 };
    let (w, h) = (cell * layers as f64 + 24.0, 112.0);
    let x = |layer: usize| 12.0 + cell * layer as f64;
    let mut s = String::new();
    let _ = write!(
        s,
        "<svg class=\"plan\" role=\"img\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>how each layer's MLP is changed</title>"
    );
    for layer in 0..layers {
        let treatment = plan.treatment(layer);
        let (class, y) = match treatment {
            None => ("own", 22.0),
            Some(Treatment::Share { .. }) => ("uses", 76.0),
            Some(Treatment::Prune { .. }) => ("cut", 22.0),
            Some(Treatment::LowRank { .. } | Treatment::Drop) => ("none", 76.0),
        };
        let what = treatment.map_or_else(|| "its own MLP".to_owned(), |t| t.describe());
        if let Some(r) = treatment.and_then(|t| t.reference()).filter(|&r| r < layers) {
            let (from, to) = (x(r) + (cell - 3.0) / 2.0, x(layer) + (cell - 3.0) / 2.0);
            let _ =
                write!(s, "<path class=\"link\" d=\"M{from:.1} 42C{from:.1} 60 {to:.1} 56 {to:.1} 76\"/>");
        }
        let _ = write!(
            s,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"20\" rx=\"3\"><title>{}</title></rect>",
            x(layer),
            cell - 3.0,
            escape(&format!("layer {layer}: {what}"))
        );
        let neurons = treatment.map_or(0, |t| t.neurons());
        if neurons > 0 {
            let filled = 20.0 * neurons.min(whole) as f64 / whole.max(1) as f64;
            let _ = write!(
                s,
                "<rect class=\"own\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{filled:.1}\"/>",
                x(layer),
                y + 20.0 - filled,
                cell - 3.0
            );
        }
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

/// The beginning of a picture.
fn begin(title: &str, height: f64) -> String {
    format!(
        "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{}</title>",
        escape(title)
    )
}

/// Where the name of the `i`-th thing in a picture stands.
fn name_place(i: usize) -> (f64, f64) {
    (8.0 + (WIDTH - 16.0) / NAMES as f64 * (i % NAMES) as f64, 14.0 + 16.0 * (i / NAMES) as f64)
}

/// Marks, lines and names of both axes.
fn frame(s: &mut String, (x_name, x): (&str, &Axis), (y_name, y): (&str, &Axis), (top, height): (f64, f64)) {
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
    let scale = |axis: &Axis| if axis.is_log() { " (log scale)" } else { "" };
    let _ = write!(
        s,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}{}</text><text x=\"4\" y=\"{:.1}\">{}{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 4.0,
        escape(x_name),
        scale(x),
        top - 8.0,
        escape(y_name),
        scale(y)
    );
}

/// A point with a name.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) name: String,
    pub(super) at: (f64, f64),
    /// Drawn as a ring: what the others are compared with.
    pub(super) ring: bool,
}

/// Points, numbered where they lie and named above, and lines between or above them.
pub(super) fn marks(
    title: &str,
    (x_name, log_x): (&str, bool),
    (y_name, log_y): (&str, bool),
    marks: &[Mark],
    lines: &[Vec<(f64, f64)>],
) -> String {
    let good = |p: &(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let marks: Vec<&Mark> = marks.iter().filter(|m| good(&m.at)).collect();
    if marks.is_empty() {
        return String::new();
    }
    let lines: Vec<&Vec<(f64, f64)>> = lines.iter().filter(|l| l.iter().all(good)).collect();
    let top = 30.0 + 16.0 * marks.len().div_ceil(NAMES) as f64;
    let height = top + 220.0;
    let points: Vec<(f64, f64)> =
        marks.iter().map(|m| m.at).chain(lines.iter().flat_map(|l| l.iter().copied())).collect();
    let x = Axis::new(points.iter().map(|p| p.0), log_x, LEFT, WIDTH - RIGHT);
    let y = Axis::new(points.iter().map(|p| p.1), log_y, height - 36.0, top);
    let mut s = begin(title, height);
    for (i, mark) in marks.iter().enumerate() {
        let (cx, cy) = name_place(i);
        let _ = write!(s, "<text x=\"{cx}\" y=\"{cy}\">{} {}</text>", i + 1, escape(&mark.name));
    }
    frame(&mut s, (x_name, &x), (y_name, &y), (top, height));
    for line in lines {
        let mut path = String::new();
        for (k, &(px, py)) in line.iter().enumerate() {
            let _ = write!(path, "{}{:.1} {:.1}", if k == 0 { 'M' } else { 'L' }, x.at(px), y.at(py));
        }
        let _ = write!(s, "<path class=\"between\" d=\"{path}\"/>");
    }
    // A number stands right of its point; below where another number stands there already.
    let mut taken: Vec<(f64, f64)> = Vec::new();
    for (i, mark) in marks.iter().enumerate() {
        let (px, py) = (x.at(mark.at.0), y.at(mark.at.1));
        let side = if px > WIDTH - RIGHT - 22.0 { -16.0 } else { 7.0 };
        let (tx, mut ty) = (px + side, py + 4.0);
        while taken.iter().any(|t| (t.0 - tx).abs() < 10.0 && (t.1 - ty).abs() < 10.0) {
            ty += 10.0;
        }
        taken.push((tx, ty));
        let class = if mark.ring { "ring" } else { "d0" };
        let _ = write!(
            s,
            "<circle class=\"{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\"><title>{}: {}, {}</title></circle>\
             <text x=\"{tx:.1}\" y=\"{ty:.1}\">{}</text>",
            escape(&mark.name),
            number(mark.at.0),
            number(mark.at.1),
            i + 1
        );
    }
    s.push_str("</svg>");
    s
}

/// How many of its `whole` neurons each layer's own MLP keeps: a bar a layer in an outline of the whole.
/// Layers without an MLP of their own have the outline alone.
pub(super) fn neurons(plan: &Plan, layers: usize, whole: usize) -> String {
    let (layers, whole) = (layers.clamp(1, 512), whole.max(1));
    let (top, height) = (26.0, 200.0);
    let bottom = height - 36.0;
    let x = |layer: usize| LEFT + (WIDTH - RIGHT - LEFT) * layer as f64 / layers as f64;
    let y = Axis::from_zero(whole as f64, bottom, top);
    let wide = ((x(1) - x(0)) * 0.8).max(0.5);
    let mut s = begin("neurons that each layer keeps", height);
    for mark in ticks(0.0, whole as f64)
        .into_iter()
        .filter(|m| m + 0.1 * (whole as f64) < whole as f64)
        .chain([whole as f64])
    {
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
    let step = [1, 2, 5, 10, 20, 50, 100].into_iter().find(|s| layers / s <= 12).unwrap_or(200);
    for layer in 0..layers {
        let kept = match plan.treatment(layer) {
            None => whole,
            Some(treatment) => treatment.neurons().min(whole),
        };
        let at = y.at(kept as f64);
        let _ = write!(
            s,
            "<g><title>layer {layer}: {kept} of {whole} neurons of its own</title>\
             <rect class=\"whole\" x=\"{0:.1}\" y=\"{top}\" width=\"{wide:.1}\" height=\"{1:.1}\"/>\
             <rect class=\"{2}\" x=\"{0:.1}\" y=\"{at:.1}\" width=\"{wide:.1}\" height=\"{3:.1}\"/></g>",
            x(layer),
            bottom - top,
            if kept == whole { "all" } else { "part" },
            bottom - at
        );
        if layer % step == 0 {
            let _ = write!(
                s,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{layer}</text>",
                x(layer) + wide / 2.0,
                height - 20.0
            );
        }
    }
    let _ = write!(
        s,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">layer</text><text x=\"4\" y=\"14\">neurons kept</text></svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        height - 4.0
    );
    s
}

/// Curves over a common axis, with their names above.
pub(super) fn curves(title: &str, x_name: &str, y_name: &str, curves: &[Curve], log_y: bool) -> String {
    let drawn: Vec<&Curve> = curves.iter().filter(|c| !c.points.is_empty()).collect();
    if drawn.is_empty() {
        return String::new();
    }
    let top = 26.0 + 16.0 * drawn.len().div_ceil(NAMES) as f64;
    let height = top + 220.0;
    let points = || drawn.iter().flat_map(|c| c.points.iter().copied());
    let x = Axis::new(points().map(|p| p.0).collect::<Vec<_>>().into_iter(), false, LEFT, WIDTH - RIGHT);
    let y = Axis::new(points().map(|p| p.1).collect::<Vec<_>>().into_iter(), log_y, height - 36.0, top);
    let mut s = begin(title, height);
    for (i, curve) in drawn.iter().enumerate() {
        let (cx, cy) = name_place(i);
        let _ = write!(s, "<path class=\"c{}\" d=\"M{cx} {}h18\"/>", i % COLOURS, cy - 4.0);
        let _ = write!(s, "<text x=\"{}\" y=\"{cy}\">{}</text>", cx + 24.0, escape(&curve.name));
    }
    frame(&mut s, (x_name, &x), (y_name, &y), (top, height));
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
    let x = Axis::new(values.into_iter(), false, 86.0, WIDTH - RIGHT);
    let mut s = begin(title, height);
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
            "<text x=\"78\" y=\"{:.1}\" text-anchor=\"end\">{}</text><path class=\"c0\" d=\"M{a:.1} {cy}H{b:.1}\"/>\
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
        (86.0 + WIDTH - RIGHT) / 2.0,
        height - 5.0,
        escape(x_name)
    );
    s
}

#[cfg(test)]
mod tests {
    use sharp_model::{LayerChange, Repair};

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
        let plan_of =
            |layer, reference| Plan::new("x", vec![LayerChange::share(layer, reference, Repair::None)]);
        assert!(plan(&plan_of(1, 0), 2, 8).contains("the MLP of layer 0"));
        assert!(!plan(&plan_of(1, 99), 2, 8).contains("class=\"link\""));
        assert_eq!(from_to("t", "x", &[("a".into(), f64::NAN, 1.0)]), "");
    }

    #[test]
    fn a_pruned_layer_is_drawn_as_high_as_what_it_keeps() {
        let plan_of = |neurons| Plan::new("x", vec![LayerChange::prune(1, neurons)]);
        let heights = |svg: &str, class: &str| -> Vec<f64> {
            let of = format!("<rect class=\"{class}\"");
            let height = |part: &str| part.split("height=\"").nth(1)?.split('"').next()?.parse().ok();
            svg.split(of.as_str()).skip(1).filter_map(height).collect()
        };
        let half = neurons(&plan_of(50), 3, 100);
        let (whole, part) = (heights(&half, "whole"), heights(&half, "part"));
        assert_eq!((whole.len(), part.len(), heights(&half, "all").len()), (3, 1, 2));
        assert!((part[0] / whole[0] - 0.5).abs() < 1e-3, "{half}");
        assert!(half.contains("layer 1: 50 of 100 neurons"));
        let mut boxes = heights(&plan(&plan_of(50), 3, 100), "own");
        boxes.sort_by(f64::total_cmp);
        assert_eq!(boxes, [10.0, 20.0, 20.0]);
        // A hand-made plan may keep more than there is.
        assert!(heights(&neurons(&plan_of(900), 3, 100), "part").is_empty());
    }

    #[test]
    fn points_are_numbered_and_named_and_what_is_no_number_is_left_out() {
        let mark = |name: &str, at| Mark { name: name.into(), at, ring: false };
        let found = [mark("a<b", (1.0, 10.0)), mark("c", (2.0, f64::NAN)), mark("d", (4.0, 1000.0))];
        let svg = marks("t", ("x", true), ("y", true), &found, &[vec![(1.0, 10.0), (4.0, 1000.0)]]);
        assert!(svg.contains("1 a&lt;b") && svg.contains("2 d") && !svg.contains("NaN"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(marks("t", ("x", false), ("y", false), &[mark("c", (f64::INFINITY, 1.0))], &[]), "");
    }
}
