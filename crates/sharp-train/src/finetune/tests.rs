//! The hand-written gradient of the whole model against the loss itself.

use std::path::Path;

use sharp_model::{ModelSource, Ranks, RecoveryForm, SharingPlan, Target};
use tch::{Kind, Tensor};

use super::student::{Sequence, Student};
use super::{FinetuneOptions, TrainMlps};
use crate::device::Compute;
use crate::head::Loss;
use crate::tensors::scalar;

/// Along a random direction and along every parameter's own: the slope of the loss between two points near each other.
fn check(case: &str, form: RecoveryForm, loss: Loss, extras: bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama");
    let source = ModelSource::open(folder.join(case)).unwrap();
    let target = match form {
        RecoveryForm::LowRankOnly => Target::low_rank_only(1, Ranks::uniform(3)),
        RecoveryForm::Pruned => Target::pruned(1, 7),
        RecoveryForm::None => Target::dropped(1),
        _ => Target::sharing(1, 0, form, Ranks::uniform(3)),
    };
    let plan = SharingPlan::new("explicit", vec![target]);
    let options = FinetuneOptions {
        loss,
        train_norms: extras,
        train_mlps: if extras { TrainMlps::All } else { TrainMlps::None },
        ..FinetuneOptions::default()
    };
    let compute = Compute::cpu(2);
    let mut student = Student::new(&source, &plan, None, 12, &compute, &options).unwrap();
    // Away from B = 0, where half of the gradients vanish.
    tch::manual_seed(5);
    let noise = Tensor::randn(student.params.flat.size(), (Kind::Float, tch::Device::Cpu)) * 0.05;
    let _ = student.params.flat.f_add_(&noise).unwrap();
    student.merge().unwrap();
    let vocab = source.config().vocab_size as u32;
    let batch: Vec<Sequence> = (0..3u32)
        .map(|s| {
            let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + s * 5 + i * i) % vocab).collect();
            let positions: Vec<i64> = (0..11).filter(|i| i % 3 != 1).collect();
            let labels = positions.iter().map(|&p| i64::from(tokens[p as usize + 1])).collect();
            Sequence { tokens, positions, labels }
        })
        .collect();
    let (grad, sums) = student.gradient(batch.clone()).unwrap();
    let value = |student: &Student| student.measure(&batch).unwrap().mean(loss);
    student.merge().unwrap();
    assert!((sums.mean(loss) - value(&student)).abs() < 1e-5, "{case} {form}");

    let origin = student.params.flat.copy();
    let mut directions =
        vec![("everything".to_owned(), Tensor::randn(grad.size(), (Kind::Float, tch::Device::Cpu)))];
    for spec in student.params.layout.specs() {
        let range = spec.range();
        let mask = grad.zeros_like();
        let mut part = mask.narrow(0, range.start as i64, range.len() as i64);
        part.copy_(&grad.narrow(0, range.start as i64, range.len() as i64));
        directions.push((spec.name.clone(), mask));
    }
    for (name, direction) in directions {
        let norm = scalar(&direction.norm()).unwrap();
        assert!(norm > 1e-7, "{case} {form}: no gradient at all for {name}");
        let step = 4e-3;
        let unit = direction / norm;
        let mut at = |t: f64| {
            student.params.flat.copy_(&(&origin + &unit * t));
            student.merge().unwrap();
            value(&student)
        };
        // Fourth order, so that the step can be large enough for float32.
        let slope = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
        let expected = scalar(&(&grad * &unit).sum(Kind::Double)).unwrap();
        let size = scalar(&grad.norm()).unwrap();
        assert!(
            (slope - expected).abs() < 0.02 * expected.abs() + 2e-4 * (1.0 + size),
            "{case} {form} {loss:?} {name}: slope {slope}, gradient {expected}"
        );
    }
}

#[test]
fn gradients_are_slopes_of_the_loss() {
    let mixed = Loss::Mixed { weight: 0.4, temperature: 2.0 };
    check("gqa_untied", RecoveryForm::LowRank, Loss::Completion, false);
    check("biases", RecoveryForm::ScaledLowRank, Loss::Distill { temperature: 1.0 }, false);
    check("rope_llama3", RecoveryForm::RowColumnScaledLowRank, mixed, true);
    check("biases", RecoveryForm::RowColumnScaledLowRank, Loss::Completion, false);
    check("tied", RecoveryForm::LowRankOnly, mixed, false);
    check("tied", RecoveryForm::LowRankOnly, mixed, true);
    check("tied", RecoveryForm::Pruned, mixed, false);
    check("gqa_untied", RecoveryForm::Pruned, Loss::Completion, true);
    check("tied", RecoveryForm::None, mixed, true);
    check("biases", RecoveryForm::ScaledLowRank, mixed, true);
}
