//! Strategies that follow a fixed pattern, and the explicit list.

use sharp_model::Treatment;
use sharp_schema::StrategyName;

use crate::problem::{Choice, Problem, Strategy};
use crate::{Error, Result};

/// Every second layer of the range uses the MLP of the layer before it: 1<-0, 3<-2, 5<-4 and so on.
///
/// Under a budget the cheapest of these pairs are taken where costs were measured, otherwise the last ones:
/// late layers bear sharing better than early ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pairs;

/// The range is cut into groups of `size` consecutive layers; the first of each is the reference of the
/// others.
///
/// Under a budget: as [`Pairs`].
#[derive(Debug, Clone, Copy)]
pub struct Groups {
    /// Layers in a group, at least 2.
    pub size: usize,
}

/// Groups from the last layer of the range downwards, as many as the budget needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Back {
    /// Layers in a group, at least 2; `None`: the smallest size that meets the budget.
    pub size: Option<usize>,
}

/// Groups from the first layer of the range upwards, as many as the budget needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Front {
    /// Layers in a group, at least 2; `None`: the smallest size that meets the budget.
    pub size: Option<usize>,
}

/// Exactly the given decisions.
#[derive(Debug, Clone, Default)]
pub struct Explicit {
    /// `(target, reference)`; `None`: no sharing, for the baselines.
    pub decisions: Vec<(usize, Option<usize>)>,
}

impl Explicit {
    /// Reads a list such as `11<-10, 13<-12, 5` (a layer alone has no reference: the baselines).
    ///
    /// # Errors
    /// Anything that is not a list of that form.
    pub fn parse(text: &str) -> Result<Self> {
        let number = |part: &str| {
            part.trim().parse::<usize>().map_err(|_| Error::InvalidOption {
                what: "explicit decision",
                value: part.trim().into(),
                expected: "`target<-reference` with layer numbers, separated by commas".into(),
            })
        };
        let decisions = text
            .split([',', '\n'])
            .filter(|part| !part.trim().is_empty())
            .map(|part| match part.split_once("<-") {
                Some((target, reference)) => Ok((number(target)?, Some(number(reference)?))),
                None => Ok((number(part)?, None)),
            })
            .collect::<Result<_>>()?;
        Ok(Self { decisions })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Start,
    End,
}

/// The pattern's `(target, reference)` pairs in layer order: blocks of `size` from one end of the range. A
/// kept layer inside a block becomes the reference of what follows it there.
fn blocks(problem: &Problem<'_>, size: usize, from: From) -> Vec<(usize, usize)> {
    let range = problem.range();
    let size = size.max(1);
    // The incomplete block lies at the far end.
    let offset = match from {
        From::Start => 0,
        From::End => range.len() % size,
    };
    let mut pairs = Vec::new();
    let mut start = range.start;
    let mut stop = if offset == 0 { range.start.saturating_add(size) } else { range.start + offset };
    while start < range.end {
        let mut reference = None;
        for layer in start..stop.min(range.end) {
            match reference {
                Some(r) if problem.may_be_target(layer) => pairs.push((layer, r)),
                _ => reference = Some(layer),
            }
        }
        start = stop;
        stop = stop.saturating_add(size);
    }
    pairs
}

fn check_size(size: usize) -> Result<usize> {
    if size < 2 {
        return Err(Error::InvalidOption {
            what: "group size",
            value: size.to_string(),
            expected: "at least 2 layers".into(),
        });
    }
    Ok(size)
}

fn choice(problem: &Problem<'_>, pattern: &str, (layer, reference): (usize, usize)) -> Result<Choice> {
    let treatment = problem.treatment(reference)?;
    let reason = match (treatment, problem.table().importance(layer)) {
        (Treatment::Share { .. }, _) => {
            format!("{pattern}; {}", problem.table().describe(layer, reference))
        }
        (_, Some(v)) => format!("{pattern}; without its MLP {} {v:.4}", problem.table().metric()),
        (_, None) => pattern.to_owned(),
    };
    Ok(Choice { layer, treatment, reason })
}

/// The cost by which a pattern's pairs are ranked under a budget.
fn measured(problem: &Problem<'_>, (target, reference): (usize, usize)) -> Option<f64> {
    if problem.shares() {
        problem.table().cost(target, reference)
    } else {
        problem.table().importance(target)
    }
}

/// Cuts a regular pattern down to the budget.
fn regular(problem: &Problem<'_>, name: &str, size: usize, advice: &str) -> Result<Vec<Choice>> {
    let pairs = blocks(problem, size, From::Start);
    let asked = problem.targets()?.unwrap_or(pairs.len());
    if asked > pairs.len() {
        return Err(problem.unreachable(name, pairs.len(), asked, advice));
    }
    let total = pairs.len();
    let costs: Option<Vec<f64>> = pairs.iter().map(|&p| measured(problem, p)).collect();
    let (kept, how): (Vec<(usize, usize)>, &str) = match costs {
        _ if asked == total => (pairs, ""),
        Some(costs) => {
            let mut order: Vec<(f64, (usize, usize))> = costs.into_iter().zip(pairs).collect();
            // At equal cost the later layer.
            order.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let mut kept: Vec<_> = order.into_iter().take(asked).map(|(_, p)| p).collect();
            kept.sort_unstable();
            (kept, "among the cheapest")
        }
        None => (pairs.into_iter().skip(total - asked).collect(), "among the last"),
    };
    kept.into_iter()
        .map(|pair| {
            let mut pattern = if size == 2 {
                "every second layer".to_owned()
            } else {
                format!("group of {size} from layer {}", pair.1)
            };
            if asked < total {
                pattern.push_str(&format!(", {how} {asked} of the pattern's {total}"));
            }
            choice(problem, &pattern, pair)
        })
        .collect()
}

fn from_one_end(problem: &Problem<'_>, name: &str, size: Option<usize>, from: From) -> Result<Vec<Choice>> {
    let longest = problem.range().len();
    let (size, mut pairs) = match (size, problem.targets()?) {
        (Some(size), _) => (check_size(size)?, blocks(problem, size, from)),
        (None, None) => return Err(Error::MissingBudget { strategy: name.into() }),
        (None, Some(asked)) => {
            let mut best = (2, blocks(problem, 2, from));
            for size in 3..=longest {
                if best.1.len() >= asked {
                    break;
                }
                let pairs = blocks(problem, size, from);
                if pairs.len() > best.1.len() {
                    best = (size, pairs);
                }
            }
            best
        }
    };
    let asked = problem.targets()?.unwrap_or(pairs.len());
    if asked > pairs.len() {
        return Err(problem.unreachable(
            name,
            pairs.len(),
            asked,
            "allow larger groups, keep fewer layers or lower the budget",
        ));
    }
    let side = match from {
        From::Start => {
            pairs.truncate(asked);
            "first"
        }
        From::End => {
            pairs.drain(..pairs.len() - asked);
            "last"
        }
    };
    let pattern = format!("among the {side} {asked} targets in groups of {size}");
    pairs.into_iter().map(|pair| choice(problem, &pattern, pair)).collect()
}

impl Strategy for Pairs {
    fn name(&self) -> &str {
        StrategyName::Pairs.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        regular(problem, self.name(), 2, "use `groups`, keep fewer layers or lower the budget")
    }
}

impl Strategy for Groups {
    fn name(&self) -> &str {
        StrategyName::Groups.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        let advice = "use larger groups, keep fewer layers or lower the budget";
        regular(problem, self.name(), check_size(self.size)?, advice)
    }
}

impl Strategy for Back {
    fn name(&self) -> &str {
        StrategyName::Back.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        from_one_end(problem, self.name(), self.size, From::End)
    }
}

impl Strategy for Front {
    fn name(&self) -> &str {
        StrategyName::Front.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        from_one_end(problem, self.name(), self.size, From::Start)
    }
}

impl Strategy for Explicit {
    fn name(&self) -> &str {
        StrategyName::Explicit.name()
    }

    fn choose(&self, problem: &Problem<'_>) -> Result<Vec<Choice>> {
        let invalid = |layer: usize, problem: String| Err(Error::InvalidDecision { layer, problem });
        for (i, &(target, reference)) in self.decisions.iter().enumerate() {
            for layer in [Some(target), reference].into_iter().flatten() {
                if layer >= problem.layers() {
                    let last = problem.layers().saturating_sub(1);
                    return invalid(layer, format!("the model has layers 0 to {last}"));
                }
            }
            if problem.keeps(target) {
                return invalid(target, "is to keep its MLP and to give it up at once".into());
            }
            if self.decisions.iter().take(i).any(|&(t, _)| t == target) {
                return invalid(target, "is a target twice".into());
            }
            if reference == Some(target) {
                return invalid(target, "cannot use its own MLP as a reference".into());
            }
            if let Some(r) = reference
                && self.decisions.iter().any(|&(t, _)| t == r)
            {
                return invalid(target, format!("uses the MLP of layer {r}, which gives up its own"));
            }
            if reference.is_none() && problem.shares() {
                return invalid(target, "has no reference; write `target<-reference`".into());
            }
        }
        if let Some(asked) = problem.targets()?.filter(|&asked| asked > self.decisions.len()) {
            return Err(problem.unreachable(
                self.name(),
                self.decisions.len(),
                asked,
                "list more layers or lower the budget",
            ));
        }
        self.decisions
            .iter()
            .map(|&(layer, reference)| match reference {
                Some(r) => choice(problem, "as listed", (layer, r)),
                // Refused above where layers share; so it is the same for any reference.
                None => {
                    Ok(Choice { layer, treatment: problem.treatment(layer)?, reason: "as listed".into() })
                }
            })
            .collect()
    }
}
