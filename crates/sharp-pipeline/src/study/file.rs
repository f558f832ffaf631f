//! A study's file: a base configuration, axes of named values, seeds; and the cells that they make.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Config, Row, assignments, check_keys, dotted_keys, lay_over, read_layers};
use crate::error::{Context as _, Result, bail};
use crate::workspace::Workspace;
use sharp_schema::suggest;

/// The file as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StudyFile {
    base: PathBuf,
    #[serde(default = "one_seed")]
    seeds: Vec<u64>,
    #[serde(default)]
    until: Until,
    #[serde(default)]
    set: toml::Table,
    #[serde(default)]
    axes: Vec<Axis>,
    #[serde(default)]
    when: Vec<When>,
    #[serde(default)]
    plot: Plot,
}

fn one_seed() -> Vec<u64> {
    vec![1]
}

/// How far every cell goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The rows of the evaluation are measured.
    #[default]
    Evaluate,
    /// Fine-tuning measures its own result; nothing is exported.
    Finetune,
}

/// One thing that differs between cells.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Axis {
    name: String,
    values: Vec<Value>,
}

/// One of the values of an axis: a name, and the configuration keys that make it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Value {
    name: String,
    #[serde(default)]
    set: toml::Table,
}

/// Keys for the cells that have these values: what a combination needs, laid over what its values say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    is: BTreeMap<String, String>,
    set: toml::Table,
}

/// What the picture shows.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plot {
    /// The axis with a line for each of its values; the first by default.
    pub lines: String,
    /// The axis with a panel for each of its values; all cells are in one panel by default.
    pub panels: Option<String>,
    /// What the points are placed by.
    pub x: X,
    /// Rows of the evaluation that are drawn; `slw_sft` by default.
    pub rows: Vec<Row>,
}

/// What a picture's points are placed by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum X {
    /// Stored MLP parameters.
    #[default]
    Parameters,
    /// Tokens of the fine-tuning.
    Tokens,
}

/// A checked study.
#[derive(Debug)]
pub struct Study {
    /// Its name: that of the file.
    pub name: String,
    /// The file, as a person names it.
    pub file: PathBuf,
    /// The base configuration's file, likewise.
    pub base: PathBuf,
    /// Names of the axes and of their values, in the order of the file.
    pub axes: Vec<(String, Vec<String>)>,
    /// Seeds of the training.
    pub seeds: Vec<u64>,
    /// How far every cell goes.
    pub until: Until,
    /// What the picture shows.
    pub plot: Plot,
    /// All cells: the last axis changes fastest, then the seed.
    pub cells: Vec<Cell>,
}

/// One run of a study.
#[derive(Debug)]
pub struct Cell {
    /// Name of its folder: the values and the seed.
    pub name: String,
    /// Its value on each axis.
    pub values: Vec<String>,
    /// Its seed.
    pub seed: u64,
    /// Its whole configuration.
    pub config: Config,
}

impl Study {
    /// Reads a study's file, lays `--set` values over every cell and checks every configuration that results.
    ///
    /// # Errors
    /// Where the study or one of its cells cannot be read or used.
    pub fn load(workspace: &Workspace, file: &Path, overrides: &[String]) -> Result<Self> {
        let path = workspace.find(file);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "reading the study {} (there are: {})",
                file.display(),
                workspace.listed("configs/studies").join(", ")
            )
        })?;
        let shown = || format!("in the study {}", file.display());
        let read = toml::from_str::<StudyFile>(&text).with_context(shown)?;
        let base = workspace.find(&read.base);
        let base = read_layers(workspace, &base).context("base").with_context(shown)?;
        let name = path.file_stem().context("the study's file has no name")?.to_string_lossy().into_owned();
        Self::new(workspace, name, file, read, &base, &assignments(overrides)?).with_context(shown)
    }

    fn new(
        workspace: &Workspace,
        name: String,
        file: &Path,
        read: StudyFile,
        base: &toml::Table,
        overrides: &toml::Table,
    ) -> Result<Self> {
        check(&read)?;
        let mut plot = read.plot.clone();
        if plot.lines.is_empty() {
            plot.lines = read.axes.first().map(|axis| axis.name.clone()).unwrap_or_default();
        }
        if plot.rows.is_empty() {
            plot.rows.push(Row::SlwSft);
        }
        let mut cells: Vec<Cell> = Vec::new();
        for values in grid(&read.axes) {
            for &seed in &read.seeds {
                let cell = cell(workspace, &read, base, &values, seed, overrides)?;
                if cells.iter().any(|other| other.name == cell.name) {
                    bail!("two cells would be called {}: rename a value of an axis", cell.name);
                }
                cells.push(cell);
            }
        }
        let axes = read
            .axes
            .iter()
            .map(|axis| (axis.name.clone(), axis.values.iter().map(|value| value.name.clone()).collect()))
            .collect();
        let (base, seeds, until) = (read.base, read.seeds, read.until);
        Ok(Self { name, file: file.to_path_buf(), base, axes, seeds, until, plot, cells })
    }

    /// Returns the cells of these names; all where none is named.
    ///
    /// # Errors
    /// Where there is no such cell.
    pub fn chosen(&self, only: &[String]) -> Result<Vec<&Cell>> {
        let names: Vec<&str> = self.cells.iter().map(|cell| cell.name.as_str()).collect();
        if let Some(wrong) = only.iter().find(|name| !names.contains(&name.as_str())) {
            bail!("--only {wrong}: there is no such cell in {}{}", self.name, suggest::hint(wrong, &names));
        }
        Ok(self.cells.iter().filter(|cell| only.is_empty() || only.contains(&cell.name)).collect())
    }
}

/// Lists every combination of the axes' values; the last axis changes fastest.
fn grid(axes: &[Axis]) -> Vec<Vec<&Value>> {
    let mut grid: Vec<Vec<&Value>> = vec![Vec::new()];
    for axis in axes {
        grid = grid
            .into_iter()
            .flat_map(|cell| axis.values.iter().map(move |value| [&cell[..], &[value]].concat()))
            .collect();
    }
    grid
}

/// Makes the cell of these values: over the base lie the study's keys, the values', what their combination
/// needs, the seed and `--set`.
fn cell(
    workspace: &Workspace,
    read: &StudyFile,
    base: &toml::Table,
    values: &[&Value],
    seed: u64,
    overrides: &toml::Table,
) -> Result<Cell> {
    let names: Vec<String> = values.iter().map(|value| value.name.clone()).collect();
    let name = [&names[..], &[format!("s{seed}")]].concat().join("-");
    let mut table = base.clone();
    lay_over(&mut table, read.set.clone());
    for value in values {
        lay_over(&mut table, value.set.clone());
    }
    for when in &read.when {
        let holds = |(axis, value): (&String, &String)| {
            read.axes.iter().zip(&names).any(|(a, name)| a.name == *axis && name == value)
        };
        if when.is.iter().all(holds) {
            lay_over(&mut table, when.set.clone());
        }
    }
    lay_over(&mut table, assignments(&[format!("training.seed={seed}")])?);
    lay_over(&mut table, overrides.clone());
    let place = || format!("the cell {name}");
    let config = Config::from_table(workspace, table).with_context(place)?;
    if config.evaluate.texts.is_empty() {
        bail!("the cell {name}: evaluate.texts: a study needs a text");
    }
    if read.until == Until::Finetune {
        return Ok(Cell { name, values: names, seed, config });
    }
    if config.finetune.reuses_weights() {
        bail!(
            "the cell {name}: finetune.pool and finetune.run_twice are measured by the fine-tuning alone: until = \"finetune\""
        );
    }
    let rows = config.rows().0;
    if rows.first() != Some(&Row::Original) {
        bail!("the cell {name}: evaluate.rows: begin with \"original\", which the others are compared with");
    }
    if rows.len() < 2 {
        bail!("the cell {name}: evaluate.rows: a study needs a row beside the original");
    }
    Ok(Cell { name, values: names, seed, config })
}

impl Cell {
    /// Says what the cell is asked to save, for a person.
    pub fn size(&self) -> String {
        let plan = &self.config.plan;
        match (&plan.explicit, plan.targets) {
            (Some(layers), _) => format!("layers {layers}"),
            (None, Some(targets)) => format!("replaces {targets} MLPs"),
            (None, None) => format!("saves {:.1} % or more", 100.0 * plan.remove),
        }
    }

    /// Returns the number of steps of its fine-tuning.
    pub fn finetune_steps(&self) -> usize {
        self.config.finetune.steps.get()
    }
}

/// Refuses what cannot be meant, naming the place.
fn check(read: &StudyFile) -> Result<()> {
    check_keys(&read.set).context("[set]")?;
    if read.axes.is_empty() {
        bail!("axes: there are none; an [[axes]] with a name and [[axes.values]] says what is compared");
    }
    if read.seeds.is_empty() || read.seeds.contains(&0) {
        bail!("seeds: a list of numbers from 1, for example [1, 2]");
    }
    distinct("seeds", &read.seeds)?;
    let axes: Vec<&str> = read.axes.iter().map(|axis| axis.name.as_str()).collect();
    distinct("axes", &axes)?;
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for axis in &read.axes {
        check_name("axes", &axis.name)?;
        let place = format!("the axis {:?}", axis.name);
        if axis.values.is_empty() {
            bail!("{place}: it has no [[axes.values]]");
        }
        distinct(&place, &axis.values.iter().map(|value| value.name.as_str()).collect::<Vec<_>>())?;
        for value in &axis.values {
            check_name(&place, &value.name)?;
            check_keys(&value.set).with_context(|| format!("{place}, value {:?}", value.name))?;
            for key in dotted_keys(&value.set) {
                let owner = owners.entry(key.clone()).or_insert(&axis.name);
                if *owner != axis.name {
                    bail!(
                        "{place}: {key} is set by the axis {owner:?} too, and one would hide the other; a [[when]] sets \
                         what a combination needs"
                    );
                }
            }
        }
    }
    for when in &read.when {
        check_keys(&when.set).context("[[when]]")?;
        for (name, value) in &when.is {
            let Some(axis) = read.axes.iter().find(|axis| axis.name == *name) else {
                bail!("[[when]]: there is no axis {name:?}{}", suggest::hint(name, &axes))
            };
            let values: Vec<&str> = axis.values.iter().map(|value| value.name.as_str()).collect();
            if !values.contains(&value.as_str()) {
                bail!("[[when]]: the axis {name:?} has no value {value:?}{}", suggest::hint(value, &values));
            }
        }
    }
    let mut everywhere = vec![&read.set];
    everywhere.extend(read.axes.iter().flat_map(|axis| axis.values.iter().map(|value| &value.set)));
    everywhere.extend(read.when.iter().map(|when| &when.set));
    if everywhere.iter().any(|set| dotted_keys(set).iter().any(|key| key == "training.seed")) {
        bail!("training.seed: the study sets it for each cell; write seeds = [1, 2] instead");
    }
    if !read.plot.lines.is_empty() && !axes.contains(&read.plot.lines.as_str()) {
        bail!("plot.lines: there is no axis {:?}{}", read.plot.lines, suggest::hint(&read.plot.lines, &axes));
    }
    if let Some(panels) = read.plot.panels.as_deref().filter(|panels| !axes.contains(panels)) {
        bail!("plot.panels: there is no axis {panels:?}{}", suggest::hint(panels, &axes));
    }
    Ok(())
}

/// Insists on a name that can be part of a folder's.
fn check_name(place: &str, name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        bail!("{place}: {name:?} is not a name (letters, digits, -, _ and ., and no . at its beginning)");
    }
    Ok(())
}

fn distinct<T: PartialEq + std::fmt::Debug>(place: &str, names: &[T]) -> Result<()> {
    match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        Some((_, twice)) => bail!("{place}: {twice:?} is there twice"),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::num::NonZeroU64;

    use sharp_schema::Form;

    use super::*;
    use crate::error::chain;
    use crate::workspace::tests::workspace;

    const BASE: &str = "model = \"synth:tiny\"\ndata = { calibration = \"data/tiny.txt\", train = [\"data/tiny.txt\"] }\n\
                        evaluate = { texts = [\"tiny=data/tiny.txt\"], rows = [\"original\", \"slw_sft\"] }\n";

    const GRID: &str = "base = \"configs/tiny.toml\"\nseeds = [1, 2]\nset = { finetune.steps = 3 }\n\
        [[axes]]\nname = \"method\"\n[[axes.values]]\nname = \"ours\"\n[[axes.values]]\nname = \"paper\"\nset = { plan.form = \"low_rank\", plan.rho = 0.2 }\n\
        [[axes]]\nname = \"size\"\n[[axes.values]]\nname = \"20\"\nset = { plan.remove = 0.2 }\n[[axes.values]]\nname = \"10\"\nset = { plan.remove = 0.1 }\n";

    pub(in crate::study) fn study(text: &str) -> Result<Study> {
        let read = toml::from_str::<StudyFile>(text).context("the study")?;
        Study::new(
            &workspace(),
            "mine".into(),
            Path::new("mine.toml"),
            read,
            &BASE.parse().unwrap(),
            &toml::Table::new(),
        )
    }

    pub(in crate::study) fn grid() -> Study {
        study(GRID).unwrap()
    }

    fn refused(text: &str) -> String {
        chain(&study(text).unwrap_err())
    }

    #[test]
    fn a_grid_is_every_combination_in_the_order_of_the_file() {
        let study = grid();
        let names: Vec<&str> = study.cells.iter().map(|cell| cell.name.as_str()).collect();
        let expected = [
            "ours-20-s1",
            "ours-20-s2",
            "ours-10-s1",
            "ours-10-s2",
            "paper-20-s1",
            "paper-20-s2",
            "paper-10-s1",
            "paper-10-s2",
        ];
        assert_eq!(names, expected);
        let cell = &study.cells[7];
        assert_eq!(
            (cell.config.plan.form, cell.config.plan.remove, cell.config.plan.rho),
            (Form::LowRank, 0.1, 0.2)
        );
        assert_eq!(
            (cell.finetune_steps(), cell.config.training.seed, cell.config.seed),
            (3, NonZeroU64::new(2), 1)
        );
        assert_eq!(
            study.cells[0].config.plan.rho,
            Config::default().plan.rho,
            "what no axis sets is the base's"
        );
        assert_eq!((study.plot.lines.as_str(), &study.plot.rows[..]), ("method", &[Row::SlwSft][..]));
    }

    #[test]
    fn a_combination_may_need_keys_of_its_own_and_the_command_line_has_the_last_word() {
        let text = format!(
            "{GRID}[[when]]\nis = {{ method = \"paper\", size = \"10\" }}\nset = {{ plan.rho = 0.3, finetune.steps = 4 }}\n"
        );
        let found = study(&text).unwrap();
        let of = |name: &str| {
            let cell = found.cells.iter().find(|cell| cell.name == name).unwrap();
            (cell.config.plan.rho, cell.finetune_steps())
        };
        assert_eq!(of("paper-10-s1"), (0.3, 4));
        assert_eq!(of("paper-20-s1"), (0.2, 3));
        let read: StudyFile = toml::from_str(&text).unwrap();
        let overrides = assignments(&["finetune.steps=9".into()]).unwrap();
        let longer = Study::new(
            &workspace(),
            "mine".into(),
            Path::new("mine.toml"),
            read,
            &BASE.parse().unwrap(),
            &overrides,
        )
        .unwrap();
        assert!(longer.cells.iter().all(|cell| cell.finetune_steps() == 9));
    }

    #[test]
    fn typing_errors_are_named_with_their_place_and_a_suggestion() {
        for (from, to, expected) in [
            ("seeds =", "seedz =", "unknown field `seedz`"),
            (
                "plan.form =",
                "plan.fromm =",
                "the axis \"method\", value \"paper\": there is no key \"fromm\" in [plan]; did you mean `form`?",
            ),
            (
                "finetune.steps",
                "finetune.step",
                "[set]: there is no key \"step\" in [finetune]; did you mean `steps`?",
            ),
            (
                "\"low_rank\"",
                "\"lowrank\"",
                "the cell paper-20-s1: plan.form: unknown form `lowrank`; did you mean `low_rank`?",
            ),
            ("plan.remove = 0.1", "plan.remove = 1.5", "the cell ours-10-s1: plan.remove: 1.5"),
            ("plan.remove = 0.1", "plan.rho = 0.1", "plan.rho is set by the axis \"method\" too"),
            ("name = \"paper\"", "name = \"ours\"", "the axis \"method\": \"ours\" is there twice"),
            ("name = \"paper\"", "name = \"../paper\"", "\"../paper\" is not a name"),
            ("name = \"size\"", "name = \"method\"", "axes: \"method\" is there twice"),
            ("[1, 2]", "[1, 1]", "seeds: 1 is there twice"),
            ("[1, 2]", "[0]", "seeds: a list of numbers from 1"),
            (
                "{ finetune.steps = 3 }",
                "{ evaluate.rows = [\"slw_sft\", \"original\"] }",
                "evaluate.rows: begin with \"original\"",
            ),
            ("{ finetune.steps = 3 }", "{ evaluate.texts = [] }", "a text"),
            ("{ finetune.steps = 3 }", "{ training.seed = 3 }", "training.seed: the study sets it"),
        ] {
            assert!(GRID.contains(from), "{from}");
            let error = refused(&GRID.replacen(from, to, 1));
            assert!(error.contains(expected), "{to}: {error}");
        }
        let when = |is: &str| refused(&format!("{GRID}[[when]]\nis = {{ {is} }}\nset = {{}}\n"));
        assert!(when("metod = \"ours\"").contains("there is no axis \"metod\"; did you mean `method`?"));
        assert!(when("method = \"our\"").contains("did you mean `ours`?"));
        let plot = |text: &str| refused(&format!("{GRID}[plot]\n{text}\n"));
        assert!(plot("lines = \"methods\"").contains("did you mean `method`?"));
        assert!(plot("rows = [\"slwsft\"]").contains("did you mean `slw_sft`?"));
        assert!(
            plot("panels = \"sizes\"")
                .contains("plot.panels: there is no axis \"sizes\"; did you mean `size`?")
        );
        assert!(refused("base = \"x\"").contains("axes: there are none"));
    }

    #[test]
    fn what_no_file_can_hold_is_measured_by_the_fine_tuning_alone() {
        let twice = GRID.replace("finetune.steps = 3", "finetune.steps = 3, finetune.run_twice = [1]");
        assert!(refused(&twice).contains("until = \"finetune\""), "{}", refused(&twice));
        let found = study(&format!("until = \"finetune\"\n{twice}")).unwrap();
        assert_eq!(found.until, Until::Finetune);
        assert_eq!(found.cells[0].config.finetune.run_twice, [1]);
    }

    #[test]
    fn a_cell_is_chosen_by_name() {
        let study = grid();
        assert_eq!(study.chosen(&[]).unwrap().len(), 8);
        assert_eq!(study.chosen(&["ours-10-s2".into()]).unwrap()[0].name, "ours-10-s2");
        let error = study.chosen(&["ours-10-s3".into()]).unwrap_err().to_string();
        assert!(error.contains("did you mean `ours-10-s"), "{error}");
    }

    #[test]
    fn the_shipped_studies_load() {
        let names = workspace().listed("configs/studies");
        assert!(names.len() >= 3, "{names:?}");
        for name in names {
            let study = Study::load(&workspace(), Path::new(&name), &[])
                .unwrap_or_else(|e| panic!("{name}: {}", chain(&e)));
            let text = std::fs::read_to_string(workspace().root().join(&name)).unwrap();
            assert!(text.starts_with(&format!("# cargo xtask study {name}\n")), "{name}");
            assert!(study.cells.len() > 1);
        }
    }
}
