#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod analyze;
mod cka;
mod delta;
mod error;
mod heat_map;
mod html;
mod options;
mod report;
mod stats;

pub use analyze::analyze;
pub use error::{Error, Result};
pub use heat_map::{heat_map_css, heat_map_svg, number};
pub use html::{heat_map, html_page};
pub use options::Options;
pub use report::{Costs, LayerReport, Metric, PairCost, PairReport, REPORT_VERSION, Report};
