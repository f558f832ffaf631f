//! Draws heat maps of a metric as inline SVG.

use std::fmt::Write as _;

use sharp_chart::escape;

/// Returns the style sheet that [`heat_map_svg`] needs: ten steps of one hue, `.h0` (least) to `.h9`, by
/// theme.
pub fn heat_map_css() -> &'static str {
    HEAT_CSS
}

const HEAT_CSS: &str = "\
:root{--h0:#eef4fb;--h1:#d9e8f6;--h2:#c0daf0;--h3:#a1c9e8;--h4:#7db4dd;--h5:#579dcf;--h6:#3984be;--h7:#226aa8;--h8:#11528d;--h9:#073b6e}\
@media screen and (prefers-color-scheme:dark){:root{--h0:#14202c;--h1:#17304a;--h2:#1b4063;--h3:#20527d;--h4:#296697;--h5:#377db0;--h6:#5295c6;--h7:#77b0d9;--h8:#a3cbe8;--h9:#d5e8f7}}\
.heat .h0{fill:var(--h0)}.heat .h1{fill:var(--h1)}.heat .h2{fill:var(--h2)}.heat .h3{fill:var(--h3)}.heat .h4{fill:var(--h4)}\
.heat .h5{fill:var(--h5)}.heat .h6{fill:var(--h6)}.heat .h7{fill:var(--h7)}.heat .h8{fill:var(--h8)}.heat .h9{fill:var(--h9)}\
.heat text{font:10px system-ui,sans-serif;fill:currentColor}.heat .mark{fill:none;stroke:currentColor;stroke-width:1.5}";

/// Draws one heat map of a metric over directed pairs `(target, reference, value)`.
///
/// Narrow windows are drawn as a band (one column a target layer, one row an offset), wide ones as a square
/// matrix. Colour runs from the least to the greatest value, or between the 5 % quantiles where outliers
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
    let grid = Grid::new(num_layers, &cells);
    let (w, h) = (LEFT + num_layers * CELL + 4, grid.bottom() + 58);
    let mut s = format!(
        "<svg class=\"heat\" role=\"img\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" \
         xmlns=\"http://www.w3.org/2000/svg\"><title>{}</title>",
        escape(title)
    );
    grid.name_rows_and_columns(&mut s);
    for &(t, r, v) in &cells {
        let (x, y) = grid.place(t, r);
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
        let (x, y) = grid.place(t, r);
        let _ = write!(
            s,
            "<rect class=\"mark\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\"/>",
            CELL - 1,
            CELL - 1
        );
    }
    steps.legend(&mut s, grid.bottom() + 14);
    s.push_str("</svg>");
    s
}

/// Width and height of a cell.
const CELL: usize = 20;
/// Where the cells begin.
const LEFT: usize = 64;
const TOP: usize = 16;

/// Where the cells of a heat map lie: a band of offsets, or a square matrix.
struct Grid {
    num_layers: usize,
    /// The greatest distance of a pair.
    width: usize,
    band: bool,
}

impl Grid {
    fn new(num_layers: usize, cells: &[(usize, usize, f64)]) -> Self {
        let width = cells.iter().map(|c| c.0.abs_diff(c.1)).max().unwrap_or(1);
        Self { num_layers, width, band: width <= 4 }
    }

    /// Lists the names of the rows: offsets -width ..= -1, +1 ..= width (a band leaves the diagonal out), or
    /// layers.
    fn rows(&self) -> Vec<String> {
        match self.band {
            true => {
                let below = (1..=self.width).rev().map(|o| format!("-{o}"));
                below.chain((1..=self.width).map(|o| format!("+{o}"))).collect()
            }
            false => (0..self.num_layers).map(|r| r.to_string()).collect(),
        }
    }

    fn bottom(&self) -> usize {
        TOP + self.rows().len() * CELL
    }

    /// Returns the upper left corner of a pair's cell.
    fn place(&self, target: usize, reference: usize) -> (usize, usize) {
        let row = match (self.band, reference < target) {
            (true, true) => self.width - (target - reference),
            (true, false) => self.width + (reference - target) - 1,
            (false, _) => reference,
        };
        (LEFT + target * CELL, TOP + row * CELL)
    }

    fn name_rows_and_columns(&self, s: &mut String) {
        let few = self.num_layers <= 40;
        for layer in (0..self.num_layers).filter(|l| few || l % 2 == 0) {
            let x = LEFT + layer * CELL + CELL / 2;
            let _ = write!(s, "<text x=\"{x}\" y=\"11\" text-anchor=\"middle\">{layer}</text>");
        }
        for (row, label) in self.rows().iter().enumerate().filter(|(i, _)| self.band || few || i % 2 == 0) {
            let y = TOP + row * CELL + CELL / 2 + 3;
            let _ = write!(s, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{label}</text>", LEFT - 6);
        }
        let reference = if self.band { "its ref." } else { "ref." };
        let y = TOP + 13;
        let _ = write!(s, "<text x=\"0\" y=\"11\">target</text><text x=\"0\" y=\"{y}\">{reference}</text>");
    }
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
        // A few outliers must not flatten all the rest: clip where the outer twentieth takes up most of the
        // range.
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

    /// Draws the colours, and the values at both ends below them.
    fn legend(&self, s: &mut String, y: usize) {
        for step in 0..10 {
            let x = LEFT + step * 24;
            let _ = write!(s, "<rect class=\"h{step}\" x=\"{x}\" y=\"{y}\" width=\"24\" height=\"12\"/>");
        }
        let _ = write!(
            s,
            "<text x=\"{LEFT}\" y=\"{0}\">{1}</text><text x=\"{2}\" y=\"{0}\" text-anchor=\"end\">{3}</text>",
            y + 26,
            self.label(false),
            LEFT + 240,
            self.label(true)
        );
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

/// Writes a number to four significant figures.
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
