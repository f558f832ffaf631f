//! Writes the report as one self-contained HTML page: heat maps as inline SVG, tables with every number
//! beneath.
//!
//! No scripts, nothing loaded; light and dark follow the reader's setting; wide figures scroll inside their
//! frame.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::heat_map::{heat_map_css, heat_map_svg, number};
use crate::report::{LayerReport, Metric, PairReport, Report};

const PAGE_CSS: &str = "\
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;background:#fff;color:#1a1f24}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}\
td,th{padding:.2rem .5rem;border-bottom:1px solid #d5dae0;text-align:right}th{font-weight:600}p.note{color:#5a6570;font-size:.9rem}summary{cursor:pointer}\
@media screen and (prefers-color-scheme:dark){body{background:#0f1418;color:#dde3e8}td,th{border-color:#2c353d}p.note{color:#97a3ad}}\
@media print{.scroll{overflow:visible}}";

/// Draws one metric of a report as a heat map (inline SVG, styled by [`heat_map_css`]); `marked` pairs
/// `(target, reference)` get a frame.
pub fn heat_map(report: &Report, metric: Metric, marked: &[(usize, usize)]) -> String {
    let cells: Vec<_> =
        report.pairs.iter().filter_map(|p| metric.of(p).map(|v| (p.target, p.reference, v))).collect();
    heat_map_svg(metric.title(), report.num_layers, &cells, marked)
}

/// Makes the page of a report.
pub fn html_page(report: &Report) -> String {
    let title = format!("Layer similarity: {}", report.model.as_deref().unwrap_or("model"));
    let measured = Metric::ALL.into_iter().filter(|m| report.pairs.iter().any(|p| m.of(p).is_some()));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (title) }
                style { (PreEscaped(PAGE_CSS)) (PreEscaped(heat_map_css())) }
            }
            body {
                h1 { (title) }
                p {
                    (report.num_layers) " layers, " (report.tokens) " tokens in " (report.sequences)
                    " sequences, pairs of layers up to " (report.window)
                    " apart. Each column is a target layer, each row the layer whose MLP it would use (its reference, "
                    "as an offset in narrow maps). Touch or point at a cell for its value; every number is in the "
                    "tables below."
                }
                @for metric in measured {
                    h2 { (metric.title()) }
                    p.note { (metric.explanation()) }
                    div.scroll { (PreEscaped(heat_map(report, metric, &[]))) }
                }
                (layers(&report.layers))
                (pairs(&report.pairs))
            }
        }
        "\n"
    };
    page.into_string()
}

fn layers(layers: &[LayerReport]) -> Markup {
    html! {
        h2 { "Layers" }
        p.note {
            "Block influence: 1 - mean cosine of the residual stream before and after the layer. Share: mean norm of "
            "the MLP's output relative to the residual stream after the layer. Removal: the model's loss with this MLP "
            "left out, less its own loss, in nats per token."
        }
        div.scroll {
            table {
                tr {
                    @for name in ["layer", "block influence", "MLP share", "MLP output RMS", "removal"] {
                        th { (name) }
                    }
                }
                @for l in layers {
                    tr {
                        td { (l.layer) }
                        td { (number(l.block_influence)) }
                        td { (number(l.mlp_share)) }
                        td { (number(l.mlp_output_rms)) }
                        td { (l.removal_nll.map_or("-".into(), number)) }
                    }
                }
            }
        }
    }
}

fn pairs(pairs: &[PairReport]) -> Markup {
    html! {
        h2 { "Pairs" }
        details {
            summary { "all numbers" }
            div.scroll {
                table {
                    tr {
                        th { "target" }
                        th { "reference" }
                        @for metric in Metric::ALL { th { (metric.title()) } }
                    }
                    @for p in pairs {
                        tr {
                            td { (p.target) }
                            td { (p.reference) }
                            @for metric in Metric::ALL { td { (metric.of(p).map_or("-".into(), number)) } }
                        }
                    }
                }
            }
        }
    }
}
