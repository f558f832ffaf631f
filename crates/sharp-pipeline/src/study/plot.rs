//! The picture of a study: perplexity against stored MLP parameters, as one SVG file that needs nothing else
//! and follows the reader's light or dark theme.

use std::fmt::Write as _;

use sharp_chart::{Axis, escape, tick};

use super::file::{Study, X};
use super::table::{Mean, Table};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Height of a line of the legend.
const LEGEND: f64 = 18.0;
/// Lines with colours and marks of their own; more of them begin again.
const COLOURS: usize = 8;

const STYLE: &str = "\
svg{--paper:#fff;--ink:#1f2328;--soft:#656d76;--grid:#d8dee4;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b3478b;--c4:#8a6d00;\
--c5:#5b4fb3;--c6:#b00020;--c7:#4b5563;font:12px system-ui,sans-serif}
@media(prefers-color-scheme:dark){svg{--paper:#0d1117;--ink:#e6edf3;--soft:#9198a1;--grid:#30363d;--c0:#56b4e9;--c1:#ff9f5a;\
--c2:#3ed6a3;--c3:#f0a6cf;--c4:#f0e442;--c5:#b8b0f0;--c6:#ff7b8a;--c7:#c9d1d9}}
.paper{fill:var(--paper)}text{fill:var(--ink)}.soft{fill:var(--soft)}.grid{stroke:var(--grid);fill:none}
.original{stroke:var(--soft);stroke-dasharray:5 4;fill:none}.line{fill:none;stroke-width:2}.bar{fill:none;stroke-width:1.5}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}\
.c6{stroke:var(--c6)}.c7{stroke:var(--c7)}
.mark.c0{fill:var(--c0)}.mark.c1{fill:var(--c1)}.mark.c2{fill:var(--c2)}.mark.c3{fill:var(--c3)}.mark.c4{fill:var(--c4)}\
.mark.c5{fill:var(--c5)}.mark.c6{fill:var(--c6)}.mark.c7{fill:var(--c7)}
";

/// One point: a mean over seeds.
struct Point {
    x: f64,
    y: f64,
    deviation: Option<f64>,
    what: String,
}

/// The points of one value of the chosen axis in one row of the evaluation.
type Line = Vec<Point>;

/// Draws the picture; `None` where nothing was measured yet.
pub fn svg(study: &Study, table: &Table) -> Option<String> {
    let axis = study.axes.iter().position(|(name, _)| *name == study.plot.lines)?;
    // A row of panels for each text, a column for each value of the panels' axis of which something was
    // measured.
    let split = study.axes.iter().position(|(name, _)| Some(name) == study.plot.panels.as_ref());
    let columns: Vec<Option<&String>> = match split {
        Some(split) => {
            let measured =
                |value: &&String| table.means.iter().any(|mean| mean.values.get(split) == Some(*value));
            study.axes[split].1.iter().filter(measured).map(Some).collect()
        }
        None => vec![None],
    };
    let chosen = |value: Option<&String>| -> Vec<&Mean> {
        let fits = |mean: &&Mean| match (split, value) {
            (Some(split), Some(value)) => mean.values.get(split) == Some(value),
            _ => true,
        };
        table.means.iter().filter(fits).collect()
    };
    let mut panels: Vec<Vec<Panel>> = Vec::new();
    for text in &table.texts {
        let panel = |&value: &Option<&String>| Panel {
            title: match (&study.plot.panels, value) {
                (Some(axis), Some(value)) => format!("{text}, {axis} {value}"),
                _ => text.clone(),
            },
            text,
            lines: lines(study, &chosen(value), axis, text),
        };
        panels.push(columns.iter().map(panel).collect());
    }
    let names = line_names(study, axis);
    if panels.iter().flatten().all(|panel| panel.lines.iter().all(|line| line.is_empty())) {
        return None;
    }
    let top = 34.0 + LEGEND * names.len().div_ceil(2) as f64;
    // Without an axis of panels the texts stand side by side.
    let panels: Vec<Vec<Panel>> = match split {
        Some(_) => panels,
        None => vec![panels.into_iter().flatten().collect()],
    };
    let width = WIDTH * panels.iter().map(Vec::len).max()? as f64;
    let height = top + HEIGHT * panels.len() as f64;
    let against = study.plot.x.title();
    let mut s = String::new();
    let _ = write!(
        s,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\">\n<title>{}: perplexity against {against}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-weight=\"600\">{0}</text>\n",
        escape(&study.name)
    );
    for (i, name) in names.iter().enumerate() {
        let (x, y) = (LEFT + 200.0 * (i % 2) as f64, 40.0 + LEGEND * (i / 2) as f64);
        let _ = write!(s, "<path class=\"line c{}\" d=\"M{x} {:.1}h26\"/>", i % COLOURS, y - 4.0);
        s.push_str(&mark(i, x + 13.0, y - 4.0, None));
        let _ = writeln!(s, "<text x=\"{}\" y=\"{y}\">{}</text>", x + 34.0, escape(name));
    }
    for (row, panels) in panels.iter().enumerate() {
        for (column, panel) in panels.iter().enumerate() {
            panel.draw(&mut s, table, study.plot.x, WIDTH * column as f64, top + HEIGHT * row as f64);
        }
    }
    s.push_str("</svg>\n");
    Some(s)
}

/// One text's axes, lines and points.
struct Panel<'a> {
    title: String,
    text: &'a str,
    lines: Vec<Line>,
}

impl Panel<'_> {
    fn draw(&self, s: &mut String, table: &Table, by: X, left: f64, top: f64) {
        let Self { title, text, lines } = self;
        let original = table
            .means
            .iter()
            .find(|m| m.row == "original")
            .and_then(|m| m.perplexity.get(*text))
            .map(|p| p.mean);
        let points = || lines.iter().flatten();
        let xs: Vec<f64> = points().map(|p| p.x).collect();
        let x = Axis::new(xs.into_iter(), by == X::Tokens, left + LEFT, left + WIDTH - RIGHT);
        let ends = |p: &Point| {
            let d = p.deviation.unwrap_or(0.0);
            // A bar that would reach below nothing ends at a tenth of its mean.
            [(p.y - d).max(0.1 * p.y), p.y + d]
        };
        let ys: Vec<f64> = points().flat_map(ends).chain(original).collect();
        let y = Axis::new(ys.into_iter(), true, top + HEIGHT - BOTTOM, top + 24.0);
        for value in y.marks() {
            let at = y.at(value);
            let _ = writeln!(
                s,
                "<path class=\"grid\" d=\"M{:.1} {at:.1}H{:.1}\"/><text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left + LEFT,
                left + WIDTH - RIGHT,
                left + LEFT - 6.0,
                at + 4.0,
                tick(value)
            );
        }
        for value in x.marks() {
            let _ = writeln!(
                s,
                "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                x.at(value),
                top + HEIGHT - BOTTOM + 16.0,
                tick(value)
            );
        }
        let _ = writeln!(
            s,
            "<text x=\"{:.1}\" y=\"{:.1}\">perplexity, {} (log scale)</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            left + LEFT,
            top + 14.0,
            escape(title),
            left + (LEFT + WIDTH - RIGHT) / 2.0,
            top + HEIGHT - 8.0,
            by.title()
        );
        if let Some(original) = original {
            let at = y.at(original);
            let _ = writeln!(
                s,
                "<path class=\"original\" d=\"M{:.1} {at:.1}H{:.1}\"/><text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">\
                 original {original:.2}</text>",
                left + LEFT,
                left + WIDTH - RIGHT,
                left + WIDTH - RIGHT,
                at - 5.0
            );
        }
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
            let at = |p: &Point| (x.at(p.x), y.at(p.y));
            let path: Vec<String> = line.iter().map(at).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let _ = writeln!(s, "<path class=\"line c{}\" d=\"M{}\"/>", i % COLOURS, path.join("L"));
            for p in line {
                let (cx, cy) = at(p);
                if p.deviation.is_some() {
                    let [low, high] = ends(p).map(|v| y.at(v));
                    let _ = writeln!(
                        s,
                        "<path class=\"bar c{}\" d=\"M{cx:.1} {low:.1}V{high:.1}M{:.1} {low:.1}h8M{:.1} {high:.1}h8\"/>",
                        i % COLOURS,
                        cx - 4.0,
                        cx - 4.0
                    );
                }
                let spread = p.deviation.map_or(String::new(), |d| format!(" ± {d:.2}"));
                let words = format!("{}: {}, perplexity {:.2}{spread}", p.what, by.shown(p.x), p.y);
                s.push_str(&mark(i, cx, cy, Some(&words)));
                s.push('\n');
            }
        }
    }
}

/// Names the lines, in the order of their colours.
fn line_names(study: &Study, axis: usize) -> Vec<String> {
    let rows = study.plot.rows.iter();
    rows.flat_map(|row| study.axes[axis].1.iter().map(move |value| line_name(study, *row, value))).collect()
}

fn line_name(study: &Study, row: crate::config::Row, value: &str) -> String {
    match study.plot.rows.len() {
        0 | 1 => value.to_owned(),
        _ => format!("{value}, {}", row.result_name("q4")),
    }
}

/// Makes a line of each name, with the points that there are.
fn lines(study: &Study, means: &[&Mean], axis: usize, text: &str) -> Vec<Line> {
    let mut all = Vec::new();
    for (&row, value) in
        study.plot.rows.iter().flat_map(|row| study.axes[axis].1.iter().map(move |value| (row, value)))
    {
        // A packed row ends with its precision in the results: `slw_sft_q4` may be `slw_sft_q8`.
        let (name, beginning) = (row.result_name("q4"), row.result_name(""));
        let wanted = |mean: &&&Mean| {
            mean.values.get(axis) == Some(value)
                && (mean.row == name || (beginning != name && mean.row.starts_with(&beginning)))
        };
        let mut points: Vec<Point> = means
            .iter()
            .filter(wanted)
            .filter_map(|mean| {
                let spread = mean.perplexity.get(text)?;
                Some(Point {
                    x: study.plot.x.of(mean),
                    y: spread.mean,
                    deviation: spread.deviation,
                    what: format!("{}, {}", mean.values.join(", "), mean.row),
                })
            })
            .filter(|point| point.y.is_finite() && point.y > 0.0)
            .collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        all.push(points);
    }
    all
}

impl X {
    fn title(self) -> &'static str {
        match self {
            Self::Parameters => "stored MLP parameters, millions",
            Self::Tokens => "tokens of fine-tuning, thousands",
        }
    }

    fn of(self, mean: &Mean) -> f64 {
        match self {
            Self::Parameters => mean.mlp_parameters / 1e6,
            Self::Tokens => mean.finetune_tokens as f64 / 1e3,
        }
    }

    fn shown(self, x: f64) -> String {
        match self {
            Self::Parameters => format!("{x:.2} M"),
            Self::Tokens => format!("{x:.0} thousand tokens"),
        }
    }
}

/// Draws a mark whose shape tells the line as its colour does.
fn mark(line: usize, x: f64, y: f64, words: Option<&str>) -> String {
    let shape = match line % 4 {
        0 => format!("M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z", x - 4.0),
        1 => format!("M{:.1} {:.1}h7v7h-7Z", x - 3.5, y - 3.5),
        2 => format!("M{x:.1} {:.1}l4.5 8h-9Z", y - 5.0),
        _ => format!("M{x:.1} {:.1}l5 5l-5 5l-5 -5Z", y - 5.0),
    };
    let title = words.map_or(String::new(), |words| format!("<title>{}</title>", escape(words)));
    format!("<path class=\"mark c{}\" d=\"{shape}\">{title}</path>", line % COLOURS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::{file, table};

    #[test]
    fn a_line_for_each_method_with_a_bar_for_each_deviation() {
        let text = svg(&file::tests::grid(), &table::tests::table()).unwrap();
        assert_eq!(text.matches("class=\"line ").count(), 2 + 2, "two in the legend, two drawn: {text}");
        assert_eq!(text.matches("class=\"bar ").count(), 3);
        assert!(text.contains("<title>ours, 20, slw_sft: 0.00 M, perplexity 21.50 ± 0.71</title>"), "{text}");
        assert!(text.contains("original 15.00") && text.contains("prefers-color-scheme:dark"));
        for outside in ["href", "url(", "@import", "<script", "NaN", "inf"] {
            assert!(!text.contains(outside), "{outside} in {text}");
        }
    }

    #[test]
    fn panels_by_an_axis_and_tokens_along_a_logarithmic_axis() {
        let mut study = file::tests::grid();
        study.plot.panels = Some("size".into());
        study.plot.x = X::Tokens;
        let text = svg(&study, &table::tests::table()).unwrap();
        assert!(text.contains("perplexity against tokens of fine-tuning, thousands"), "{text}");
        assert!(text.contains("prose, size 20 (log scale)") && text.contains("prose, size 10 (log scale)"));
        assert!(text.contains("<title>ours, 20, slw_sft: 100 thousand tokens, perplexity 21.50"), "{text}");
        assert_eq!(
            text.matches("class=\"line ").count(),
            2 + 3,
            "two in the legend; paper at 10 was not run"
        );
        let mut part = table::tests::table();
        part.means.retain(|mean| mean.values.get(1).is_none_or(|size| size == "20"));
        let text = svg(&study, &part).unwrap();
        assert!(text.contains("size 20") && !text.contains("size 10"), "an empty panel: {text}");
    }

    #[test]
    fn nothing_measured_is_no_picture() {
        let mut empty = table::tests::table();
        empty.means.clear();
        empty.texts.clear();
        assert!(svg(&file::tests::grid(), &empty).is_none());
    }
}
