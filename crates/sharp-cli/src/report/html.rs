//! The report as one self-contained HTML page: no scripts, nothing loaded.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use sharp_chart::escape;
use sharp_similarity::heat_map_css;

use super::blocks::{Block, Document};

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--fg:#1a1f24;--soft:#5a6570;--line:#d5dae0;--box:#f4f6f8;--warn:#8a4b00;\
--c0:#0b62a8;--c1:#c2410c;--c2:#0f7a55;--c3:#8b3fa8;--c4:#8a6a00;--c5:#5a6570}\
@media screen and (prefers-color-scheme:dark){:root{--bg:#0f1418;--fg:#dde3e8;--soft:#97a3ad;--line:#2c353d;--box:#182027;--warn:#f0b060;\
--c0:#6cb6ee;--c1:#f2905c;--c2:#52c79a;--c3:#cf94e6;--c4:#d9b84a;--c5:#97a3ad}}\
*{box-sizing:border-box}body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem 1rem 4rem;background:var(--bg);color:var(--fg)}\
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .5rem;border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:1.2rem 0 .3rem}\
p{margin:.4rem 0}.note{color:var(--soft);font-size:.9rem}.missing{color:var(--warn)}\
.scroll{overflow-x:auto;margin:.6rem 0}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}\
td,th{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;white-space:nowrap}\
th{font-weight:600;color:var(--soft)}td:first-child,th:first-child{text-align:left}td.wide,th.wide{text-align:left;white-space:normal;min-width:16rem}\
pre{background:var(--box);padding:.7rem;overflow-x:auto;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem;border-radius:4px}\
summary{cursor:pointer}svg{color:var(--fg);display:block}svg text{font:11.5px system-ui,sans-serif;fill:currentColor}\
.chart{width:100%;max-width:34rem;height:auto}.chart path{fill:none;stroke-width:1.6}.chart path.grid{stroke:var(--line);stroke-width:1}\
.c0{stroke:var(--c0)}.c1{stroke:var(--c1);stroke-dasharray:7 3}.c2{stroke:var(--c2);stroke-dasharray:2 2}.c3{stroke:var(--c3);stroke-dasharray:9 3 2 3}\
.c4{stroke:var(--c4);stroke-dasharray:4 4}.c5{stroke:var(--c5)}\
.d0{fill:var(--c0)}.d1{fill:var(--c1)}.d2{fill:var(--c2)}.d3{fill:var(--c3)}.d4{fill:var(--c4)}.d5{fill:var(--c5)}.ring{fill:var(--bg);stroke:var(--c0);stroke-width:1.6}\
.plan .own{fill:var(--c0)}.plan .uses{fill:none;stroke:var(--c0);stroke-width:1.6}.plan .none{fill:none;stroke:var(--c1);stroke-dasharray:3 2}\
.plan .cut{fill:none;stroke:var(--c0);stroke-width:1.2}.plan .link{fill:none;stroke:var(--soft);stroke-width:1.4}\
.chart .whole{fill:var(--box);stroke:var(--line)}.chart .part,.chart .all{fill:var(--c0)}.chart .all{opacity:.55}.chart path.between{stroke:var(--soft);stroke-dasharray:4 3}\
@media print{body{max-width:none;padding:0;font-size:11pt}.scroll{overflow:visible}h2{break-after:avoid}svg,table,pre{break-inside:avoid}.scroll svg{max-width:100%;height:auto}\
table{font-size:8pt}td,th{white-space:normal;padding:.15rem .4rem}td.wide,th.wide{min-width:0}details>*{display:block}details::details-content{display:block;content-visibility:visible}}";

/// Makes the page.
pub(super) fn page(document: &Document) -> String {
    let page = html! {
        (DOCTYPE) "\n"
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                title { (text(&document.title)) }
                style { (PreEscaped(STYLE)) (PreEscaped(heat_map_css())) }
            }
            body {
                h1 { (text(&document.title)) }
                @for part in &document.blocks {
                    "\n" (block(part))
                }
                "\n"
            }
        }
        "\n"
    };
    page.into_string()
}

/// Escapes a text, and replaces control characters, which have no place in HTML.
fn text(text: &str) -> PreEscaped<String> {
    PreEscaped(escape(text))
}

fn block(block: &Block) -> Markup {
    match block {
        Block::Heading(words) => html! { h2 { (text(words)) } },
        Block::Subheading(words) => html! { h3 { (text(words)) } },
        Block::Text(words) => html! { p { (text(words)) } },
        Block::Note(words) => html! { p.note { (text(words)) } },
        Block::Missing(words) => html! { p.missing { (text(words)) } },
        // Pictures are made by our own code, which escapes what it is given.
        Block::Picture(svg) => html! { div.scroll tabindex="0" { (PreEscaped(svg)) } },
        Block::Quote(words) => html! { pre { (text(words)) } },
        Block::Folded { summary, text: long } => {
            html! { details { summary { (text(summary)) } pre { (text(long)) } } }
        }
        Block::Table { head, rows, wide } => table(head, rows, *wide),
    }
}

/// Makes a table; the column `wide` holds sentences.
fn table(head: &[String], rows: &[Vec<String>], wide: Option<usize>) -> Markup {
    let class = |column: usize| (wide == Some(column)).then_some("wide");
    html! {
        div.scroll tabindex="0" {
            table {
                thead {
                    tr {
                        @for (i, cell) in head.iter().enumerate() {
                            th scope="col" class=[class(i)] { (text(cell)) }
                        }
                    }
                }
                tbody {
                    @for row in rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                td class=[class(i)] { (text(cell)) }
                            }
                        }
                    }
                }
            }
        }
    }
}
