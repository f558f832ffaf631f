//! The report as one self-contained HTML page: heat maps as inline SVG, tables with every number beneath.
//!
//! No scripts, nothing loaded; light and dark follow the reader's setting; wide figures scroll inside their frame.

use std::fmt::Write as _;

use crate::report::{Metric, PairReport, Report};

/// Text made safe for HTML content and quoted attributes.
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

/// The style sheet that [`heat_map_svg`] needs: ten steps of one hue, `.h0` (least) to `.h9`, by theme.
pub fn heat_map_css() -> &'static str {
    HEAT_CSS
}

const HEAT_CSS: &str = "\
:root{--h0:#eef4fb;--h1:#d9e8f6;--h2:#c0daf0;--h3:#a1c9e8;--h4:#7db4dd;--h5:#579dcf;--h6:#3984be;--h7:#226aa8;--h8:#11528d;--h9:#073b6e}\
@media screen and (prefers-color-scheme:dark){:root{--h0:#14202c;--h1:#17304a;--h2:#1b4063;--h3:#20527d;--h4:#296697;--h5:#377db0;--h6:#5295c6;--h7:#77b0d9;--h8:#a3cbe8;--h9:#d5e8f7}}\
.heat .h0{fill:var(--h0)}.heat .h1{fill:var(--h1)}.heat .h2{fill:var(--h2)}.heat .h3{fill:var(--h3)}.heat .h4{fill:var(--h4)}\
.heat .h5{fill:var(--h5)}.heat .h6{fill:var(--h6)}.heat .h7{fill:var(--h7)}.heat .h8{fill:var(--h8)}.heat .h9{fill:var(--h9)}\
.heat text{font:10px system-ui,sans-serif;fill:currentColor}.heat .mark{fill:none;stroke:currentColor;stroke-width:1.5}";

const PAGE_CSS: &str = "\
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;background:#fff;color:#1a1f24}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}\
td,th{padding:.2rem .5rem;border-bottom:1px solid #d5dae0;text-align:right}th{font-weight:600}p.note{color:#5a6570;font-size:.9rem}summary{cursor:pointer}\
@media screen and (prefers-color-scheme:dark){body{background:#0f1418;color:#dde3e8}td,th{border-color:#2c353d}p.note{color:#97a3ad}}\
@media print{.scroll{overflow:visible}}";

/// One heat map of a metric over directed pairs.
///
/// Narrow windows are drawn as a band (one column a target layer, one row an offset), wide ones as a square matrix.
/// Colour runs from the least to the greatest value on a scale of `scale`, or between the 5 % quantiles where outliers
/// would flatten everything. `marked` pairs get a frame (the chosen ones of a plan, for example).
pub fn heat_map_svg(
    title: &str,
    num_layers: usize,
    cells: &[(usize, usize, f64)],
    marked: &[(usize, usize)],
) -> String {
    let cells: Vec<_> = cells
        .iter()
        .copied()
        .filter(|&(t, r, v)| t < num_layers && r < num_layers && v.is_finite())
        .collect();
    let Some(steps) = Steps::new(cells.iter().map(|c| c.2)) else {
        return "<p class=\"note\">nothing measured</p>".into();
    };
    let width = cells.iter().map(|c| c.0.abs_diff(c.1)).max().unwrap_or(1);
    let band = width <= 4;
    const CELL: usize = 20;
    const LEFT: usize = 64;
    const TOP: usize = 16;
    // Offsets -width ..= -1, +1 ..= width as rows; the diagonal is left out of the band.
    let rows: Vec<(usize, String)> = if band {
        (1..=width)
            .rev()
            .map(|o| format!("-{o}"))
            .chain((1..=width).map(|o| format!("+{o}")))
            .enumerate()
            .collect()
    } else {
        (0..num_layers).map(|r| (r, r.to_string())).collect()
    };
    let row_of = |t: usize, r: usize| match (band, r < t) {
        (true, true) => width - (t - r),
        (true, false) => width + (r - t) - 1,
        (false, _) => r,
    };
    let w = LEFT + num_layers * CELL + 4;
    let grid = TOP + rows.len() * CELL;
    let h = grid + 58;
    let mut s = String::new();
    let _ = write!(
        s,
        "<svg class=\"heat\" role=\"img\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{}</title>",
        escape(title)
    );
    for layer in (0..num_layers).filter(|l| num_layers <= 40 || l % 2 == 0) {
        let x = LEFT + layer * CELL + CELL / 2;
        let _ = write!(s, "<text x=\"{x}\" y=\"11\" text-anchor=\"middle\">{layer}</text>");
    }
    for (row, label) in rows.iter().filter(|(i, _)| band || num_layers <= 40 || i % 2 == 0) {
        let y = TOP + row * CELL + CELL / 2 + 3;
        let _ = write!(s, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{label}</text>", LEFT - 6);
    }
    let _ = write!(
        s,
        "<text x=\"0\" y=\"11\">target</text><text x=\"0\" y=\"{}\">{}</text>",
        TOP + 13,
        if band { "its ref." } else { "ref." }
    );
    for &(t, r, v) in &cells {
        let (x, y) = (LEFT + t * CELL, TOP + row_of(t, r) * CELL);
        let _ = write!(
            s,
            "<rect class=\"h{}\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\"><title>layer {t} with the MLP of \
             layer {r}: {}</title></rect>",
            steps.of(v),
            CELL - 1,
            CELL - 1,
            number(v)
        );
    }
    for &(t, r) in marked.iter().filter(|&&(t, r)| cells.iter().any(|c| (c.0, c.1) == (t, r))) {
        let (x, y) = (LEFT + t * CELL, TOP + row_of(t, r) * CELL);
        let _ = write!(
            s,
            "<rect class=\"mark\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\"/>",
            CELL - 1,
            CELL - 1
        );
    }
    let y = grid + 14;
    for step in 0..10 {
        let _ = write!(
            s,
            "<rect class=\"h{step}\" x=\"{}\" y=\"{y}\" width=\"24\" height=\"12\"/>",
            LEFT + step * 24
        );
    }
    let _ = write!(
        s,
        "<text x=\"{LEFT}\" y=\"{0}\">{1}</text><text x=\"{2}\" y=\"{0}\" text-anchor=\"end\">{3}</text>",
        y + 26,
        steps.label(false),
        LEFT + 240,
        steps.label(true)
    );
    s.push_str("</svg>");
    s
}

/// The colour scale of one map.
struct Steps {
    low: f64,
    high: f64,
    clipped: (bool, bool),
    log: bool,
}

impl Steps {
    fn new(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut v: Vec<f64> = values.collect();
        v.sort_by(f64::total_cmp);
        let (&least, &most) = (v.first()?, v.last()?);
        let at = |q: f64| v.get((q * (v.len() - 1) as f64).round() as usize).copied().unwrap_or(least);
        // A few outliers must not flatten all the rest: clip where the outer twentieth takes up most of the range.
        let (q05, q95) = (at(0.05), at(0.95));
        let wide = most - least > 3.0 * (q95 - q05) && q95 > q05;
        let (low, high) = if wide { (q05, q95) } else { (least, most) };
        let log = low > 0.0 && high / low > 50.0;
        Some(Self { low, high, clipped: (low > least, high < most), log })
    }

    fn of(&self, v: f64) -> usize {
        let (low, high, v) = if self.log {
            (self.low.ln(), self.high.ln(), v.max(self.low).ln())
        } else {
            (self.low, self.high, v)
        };
        if high > low { (((v - low) / (high - low)).clamp(0.0, 1.0) * 9.999) as usize } else { 4 }
    }

    fn label(&self, upper: bool) -> String {
        let (value, clipped, sign) = if upper {
            (self.high, self.clipped.1, "and above")
        } else {
            (self.low, self.clipped.0, "and below")
        };
        let log = if upper && self.log { ", log scale" } else { "" };
        if clipped { format!("{} {sign}{log}", number(value)) } else { format!("{}{log}", number(value)) }
    }
}

/// A number to four significant figures.
pub fn number(v: f64) -> String {
    if !v.is_finite() {
        return "-".into();
    }
    if v == 0.0 {
        return "0".into();
    }
    let digits = 3 - (v.abs().log10().floor() as i32);
    match digits {
        ..0 if v.abs() < 1e7 => format!("{v:.0}"),
        0..=7 => format!("{v:.*}", digits.clamp(0, 7) as usize),
        _ => format!("{v:.3e}"),
    }
}

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut s = String::new();
    let name = report.model.as_deref().unwrap_or("model");
    let _ = write!(
        s,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>Layer similarity: {0}</title>\
         <style>{PAGE_CSS}{HEAT_CSS}</style></head><body><h1>Layer similarity: {0}</h1><p>{1} layers, {2} tokens in {3} \
         sequences, pairs of layers up to {4} apart. Each column is a target layer, each row the layer whose MLP it \
         would use (its reference, as an offset in narrow maps). Touch or point at a cell for its value; every number is \
         in the tables below.</p>",
        escape(name),
        report.num_layers,
        report.tokens,
        report.sequences,
        report.window
    );
    for metric in Metric::ALL {
        if report.pairs.iter().all(|p| metric.of(p).is_none()) {
            continue;
        }
        let _ = write!(
            s,
            "<h2>{}</h2><p class=\"note\">{}</p><div class=\"scroll\">{}</div>",
            metric.title(),
            metric.explanation(),
            report.heat_map(metric, &[])
        );
    }
    layers(&mut s, report);
    pairs(&mut s, &report.pairs);
    s.push_str("</body></html>\n");
    s
}

fn layers(s: &mut String, report: &Report) {
    s.push_str(
        "<h2>Layers</h2><p class=\"note\">Block influence: 1 - mean cosine of the residual stream before and after the \
         layer. Share: mean norm of the MLP's output relative to the residual stream after the layer. Removal: the model's \
         loss with this MLP left out, less its own loss, in nats per token.</p><div class=\"scroll\"><table><tr>\
         <th>layer</th><th>block influence</th><th>MLP share</th><th>MLP output RMS</th><th>removal</th></tr>",
    );
    for l in &report.layers {
        let _ = write!(
            s,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            l.layer,
            number(l.block_influence),
            number(l.mlp_share),
            number(l.mlp_output_rms),
            l.removal_nll.map_or("-".into(), number)
        );
    }
    s.push_str("</table></div>");
}

fn pairs(s: &mut String, pairs: &[PairReport]) {
    s.push_str("<h2>Pairs</h2><details><summary>all numbers</summary><div class=\"scroll\"><table><tr><th>target</th><th>reference</th>");
    for metric in Metric::ALL {
        let _ = write!(s, "<th>{}</th>", metric.title());
    }
    s.push_str("</tr>");
    for p in pairs {
        let _ = write!(s, "<tr><td>{}</td><td>{}</td>", p.target, p.reference);
        for metric in Metric::ALL {
            let _ = write!(s, "<td>{}</td>", metric.of(p).map_or("-".into(), number));
        }
        s.push_str("</tr>");
    }
    s.push_str("</table></div></details>");
}
