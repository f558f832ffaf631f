//! Report: the page for a person.

use sharp_schema::run::{
    ANALYZE, BENCHMARK, EVALUATE, EXPORT, FINETUNE, FINETUNE_COLD, IMPORT, METRICS_FILE, QUANTIZE, REPORT,
    REPORT_MARKDOWN, REPORT_PAGE, RESULTS_FILE, WARMUP,
};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{Input, PLAN_INPUT, Step};
use crate::error::Result;
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Result<Step> {
    let config = &run.config;
    let mut line = CommandLine::sharp("report")
        .flag("--run", run.folder.clone())
        .flag("--out", run.path(REPORT_PAGE))
        .value("--sample-tokens", config.report.sample_tokens);
    for prompt in &config.report.prompts {
        line = line.flag("--prompt", prompt.as_str());
    }
    let mut inputs = vec![
        Input::From(IMPORT, &["config.json"]),
        Input::From(ANALYZE, &[]),
        PLAN_INPUT,
        Input::From(WARMUP, &[METRICS_FILE]),
        Input::From(FINETUNE, &[METRICS_FILE]),
        Input::From(EXPORT, &["compact/config.json"]),
        Input::From(QUANTIZE, &[]),
        Input::From(EVALUATE, &[RESULTS_FILE]),
        Input::From(BENCHMARK, &[]),
    ];
    if config.trains_cold() {
        inputs.push(Input::From(FINETUNE_COLD, &[METRICS_FILE]));
    }
    for (name, folder) in config.report.compared()? {
        let folder = run.workspace.root().join(folder);
        line = line.flag("--beside", format!("{name}={}", folder.display()));
        let results = folder.join(EVALUATE).join(RESULTS_FILE);
        if results.exists() {
            inputs.push(Input::Outside(results));
        }
    }
    Ok(Step {
        inputs,
        command_lines: vec![line.threads(run)],
        outputs_in_run: vec![REPORT_PAGE, REPORT_MARKDOWN],
        ..Step::new(Stage::Report, REPORT, Settings::default().section("report", &config.report))
    })
}
