//! Courses of figures over the steps of a training.

use std::collections::BTreeMap;

use sharp_schema::metrics::{FinetuneLine, WarmupLine};

/// Points `(step, figure)`.
pub(super) type Course = Vec<(f64, f64)>;

/// Returns the error on validation text of each layer that was warmed up.
pub(super) fn warmup_errors(lines: &[WarmupLine]) -> BTreeMap<usize, Course> {
    let mut found: BTreeMap<usize, Course> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.validation_error.is_finite()) {
        push(found.entry(line.layer).or_default(), line.step, line.validation_error);
    }
    found
}

/// Returns the course of a figure that some lines of a fine-tuning have.
pub(super) fn finetune_course(
    lines: &[FinetuneLine],
    figure: impl Fn(&FinetuneLine) -> Option<f64>,
) -> Course {
    let mut course = Course::new();
    for line in lines {
        if let Some(value) = figure(line).filter(|value| value.is_finite()) {
            push(&mut course, line.step(), value);
        }
    }
    course
}

/// Adds a point. A resumed run repeats the steps after its last saved state: the later line counts.
fn push(course: &mut Course, step: u64, value: f64) {
    let step = step as f64;
    while course.last().is_some_and(|&(last, _)| last >= step) {
        course.pop();
    }
    course.push((step, value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_a_resumed_run_repeats_count_once() {
        let line = |step, train_loss| FinetuneLine::Step {
            step,
            train_loss,
            train_kl: None,
            lr: 0.0,
            grad_norm: 0.0,
            tokens_per_second: 0.0,
            seconds: 0.0,
            validation: None,
        };
        let lines = [line(1, 4.0), line(2, 3.0), line(3, 2.0), line(2, 2.5), line(3, f64::NAN)];
        assert_eq!(finetune_course(&lines, FinetuneLine::train_loss), [(1.0, 4.0), (2.0, 2.5)]);
        let validation = |line: &FinetuneLine| line.validation().map(|validation| validation.perplexity);
        assert!(finetune_course(&lines, validation).is_empty());
    }
}
