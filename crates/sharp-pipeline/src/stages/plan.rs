//! Plan: what each layer of the compressed model runs with.

use sharp_schema::run::{ANALYZE, IMPORT, PLAN, PLAN_FILE, SIMILARITY_FILE};
use sharp_schema::{Form, StrategyName};

use super::command_line::CommandLine;
use super::settings::Settings;
use super::stage::Stage;
use super::step::{Input, Step, in_folder};
use crate::run_folder::Run;

pub(super) fn step(run: &Run) -> Step {
    let plan = &run.config.plan;
    let window = run.config.analyze.window;
    let budgeted = !matches!(plan.strategy, StrategyName::Explicit | StrategyName::None);
    let keep: Vec<String> = plan.keep.iter().map(ToString::to_string).collect();
    let line = CommandLine::sharp("plan")
        .flag("--model", run.path(IMPORT))
        .flag("--similarity", in_folder(run, ANALYZE, SIMILARITY_FILE))
        .value("--strategy", plan.strategy)
        .option("--explicit", plan.explicit.as_ref())
        .option("--group", plan.group)
        .option("--cost", plan.cost.as_ref())
        .option("--targets", plan.targets)
        .when(plan.targets.is_none() && budgeted, |line| line.value("--remove", plan.remove))
        .when(!keep.is_empty(), |line| line.flag("--keep", keep.join(",")))
        .value("--window", window)
        .value("--rho", plan.rho)
        .when(plan.form == Form::Drop, |line| line.arg("--drop"))
        .when(plan.form != Form::Drop, |line| line.value("--form", plan.form))
        .flag("--out", in_folder(run, PLAN, PLAN_FILE));
    let settings = Settings::default().section("plan", plan).key("analyze.window", &window);
    Step {
        inputs: vec![Input::From(IMPORT, &["config.json"]), Input::From(ANALYZE, &[SIMILARITY_FILE])],
        command_lines: vec![line],
        must_write: vec![PLAN_FILE],
        editable: true,
        ..Step::new(Stage::Plan, PLAN, settings)
    }
}
