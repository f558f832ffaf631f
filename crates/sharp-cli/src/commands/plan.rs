//! `sharp plan`: from a similarity report and a budget to a sharing plan.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use sharp_model::{DType, Estimate, Plan, Ranks, Stored};
use sharp_similarity::{Metric, Report};
use sharp_strategy::{Budget, Cost, Explicit, Form, LayerCosts, Options, Strategy, StrategyName};

use crate::Global;
use crate::model::ModelArg;
use crate::output::{self, Output};

/// Choose what each layer has in place of its MLP.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sharp plan --model original --similarity similarity.json --strategy optimal --remove 0.2 --out plan.toml"
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// What `sharp analyze` measured; the patterns (pairs, back, front, groups) and explicit can do without
    /// it.
    #[arg(long, value_name = "FILE")]
    similarity: Option<PathBuf>,
    /// pairs, back, front, groups, greedy, optimal, explicit with --explicit, or even, which takes a part of
    /// every layer's own MLP (--form pruned or low_rank_only), or none, which changes no layer.
    #[arg(long, default_value = "optimal")]
    strategy: String,
    /// The pairs of the explicit strategy: target<-reference, as in 27<-26,29<-28.
    #[arg(long, value_name = "PAIRS", required_if_eq("strategy", "explicit"))]
    explicit: Option<String>,
    /// Group size of groups, back and front.
    #[arg(long, value_name = "N")]
    group: Option<usize>,
    /// The fraction of MLP parameters to remove, recovery parameters counted against it.
    #[arg(long, value_name = "FRACTION", conflicts_with = "targets")]
    remove: Option<f64>,
    /// The number of layers to replace.
    #[arg(long, value_name = "N")]
    targets: Option<usize>,
    /// Layers that keep their own MLP.
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    keep: Vec<usize>,
    /// The first layer the strategy looks at.
    #[arg(long, value_name = "LAYER", default_value_t = 0)]
    first: usize,
    /// One past the last layer the strategy looks at.
    #[arg(long, value_name = "LAYER")]
    end: Option<usize>,
    /// The greatest distance between a layer and its reference.
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// The metric of the report that decides, delta_nll for example; the most telling one measured by
    /// default.
    #[arg(long, value_name = "METRIC", value_parser = metric)]
    cost: Option<Metric>,
    /// Recovery parameters of a target as a fraction of one MLP.
    #[arg(long, default_value_t = 0.134)]
    rho: f64,
    /// Rank of all three projections, instead of --rho.
    #[arg(long, value_name = "RANK", conflicts_with = "rho")]
    rank: Option<usize>,
    /// Recovery form: none, low_rank, scaled_low_rank, row_column_scaled_low_rank, neurons; sharing nothing:
    /// low_rank_only, pruned.
    #[arg(long, default_value = "low_rank")]
    form: String,
    /// The baseline that drops the chosen MLPs instead of sharing.
    #[arg(long)]
    drop: bool,
    /// Where the plan is written.
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    /// Say what the plan would be and store nothing.
    #[arg(long)]
    dry_run: bool,
}

fn metric(name: &str) -> Result<Metric, String> {
    Metric::ALL.into_iter().find(|metric| metric.name() == name).ok_or_else(|| {
        format!("there is no such metric; there are {}", Metric::ALL.map(Metric::name).join(", "))
    })
}

#[derive(Serialize)]
struct Summary<'a> {
    plan: &'a Plan,
    estimate: Estimate,
}

pub(crate) fn run(args: Args, _global: &Global, output: &Output) -> Result<()> {
    let config = Stored::at(args.model.path())?.config()?;
    let costs = match &args.similarity {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            let report = Report::from_json(&text).with_context(|| format!("{}", path.display()))?;
            costs(&report, args.cost).with_context(|| format!("{}", path.display()))?
        }
        None => LayerCosts::unmeasured(config.num_hidden_layers),
    };
    let strategy: Box<dyn Strategy> = match (args.strategy.parse()?, &args.explicit) {
        (StrategyName::Explicit, Some(pairs)) => Box::new(Explicit::parse(pairs)?),
        (name, _) => sharp_strategy::by_name(name, args.group)?,
    };
    let budget = match (args.remove, args.targets) {
        (Some(fraction), _) => Budget::MlpFractionRemoved(fraction),
        (None, Some(n)) => Budget::Targets(n),
        (None, None) => Budget::Pattern,
    };
    let form = args.form.parse().with_context(|| format!("--form {}", args.form))?;
    let options = Options {
        keep: args.keep,
        first: args.first,
        end: args.end,
        window: args.window,
        form: if args.drop { Form::Drop } else { form },
        ranks: args.rank.map(Ranks::uniform),
        rho: args.rho,
    };
    let plan = sharp_strategy::make_plan(&config, strategy.as_ref(), &costs, budget, &options)?;
    if plan.changes.is_empty() && plan.strategy != StrategyName::None.name() {
        bail!("the plan replaces no layer; ask for more with --remove or --targets");
    }
    if let (Some(out), false) = (&args.out, args.dry_run) {
        plan.save(out)?;
    }
    let estimate = plan.estimate(&config, DType::F16)?;
    output.result(&Summary { plan: &plan, estimate }, || describe(&plan, &estimate))
}

/// The report's numbers as costs, by the metric asked for or the best that was measured.
fn costs(report: &Report, metric: Option<Metric>) -> Result<LayerCosts> {
    let measured = report.costs(metric)?;
    let costs = measured
        .pairs
        .into_iter()
        .map(|pair| Cost { target: pair.target, reference: pair.reference, cost: pair.cost })
        .collect();
    Ok(LayerCosts {
        num_layers: report.num_layers,
        metric: measured.metric.name().to_owned(),
        costs,
        importance: measured.importance,
    })
}

fn describe(plan: &Plan, estimate: &Estimate) -> String {
    let mut rows = vec![vec!["layer".to_string(), "in place of its MLP".into(), "  why".into()]];
    for change in &plan.changes {
        rows.push(vec![
            change.layer.to_string(),
            change.treatment.describe(),
            format!("  {}", change.reason),
        ]);
    }
    format!(
        "{}\n{} of the MLP parameters are saved ({:.1} M stored of {:.1} M); in 16 bits {} instead of {}\n",
        output::table(&rows),
        format_args!("{:.1} %", 100.0 * estimate.saved_fraction),
        estimate.stored_mlp_parameters as f64 / 1e6,
        estimate.original_mlp_parameters as f64 / 1e6,
        output::bytes(estimate.stored_bytes),
        output::bytes(estimate.original_bytes),
    )
}
