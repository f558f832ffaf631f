//! The mathematics of the closed-form start.

use sharp_model::{PerProjection, Projection, Ranks, Repair, Scales, Treatment};
use tch::{Device, Kind, Tensor};

use super::StartInput;
use super::align::permuted;
use super::moments::Second;
use super::neurons;
use super::pruned::{Explained, fitted, largest, select};
use super::whitened::{regression, truncated, whitened};
use crate::activations::Activations;
use crate::device::Compute;
use crate::forms::form;
use crate::mlp::Mlp;
use crate::pool::Pool;
use crate::tensors::scalar;
use crate::testing::seeded;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Double, Device::Cpu))
}

fn mlp(d: i64, f: i64) -> Mlp {
    let w = |o: i64, i: i64| (random(&[o, i]) / (i as f64).sqrt()).to_kind(Kind::Float);
    from_weights(w(f, d), w(f, d), w(d, f))
}

fn from_weights(gate: Tensor, up: Tensor, down: Tensor) -> Mlp {
    Mlp::from_parts(PerProjection { gate, up, down }, None, &Compute::cpu(1)).unwrap()
}

fn error(found: &Tensor, wanted: &Tensor) -> f64 {
    scalar(&(found - wanted).square().sum(Kind::Double)).unwrap()
        / scalar(&wanted.square().sum(Kind::Double)).unwrap()
}

/// `‖diag(rows) (W − M) C^½‖²`
fn objective(weight: &Tensor, other: &Tensor, metric: &Tensor, rows: &Tensor) -> f64 {
    let off = (weight - other) * rows.unsqueeze(1);
    scalar(&(off.matmul(metric) * &off).sum(Kind::Double)).unwrap()
}

#[test]
fn whitened_truncation_beats_alternating_least_squares_from_many_starts() {
    let _generator = seeded(3);
    for (out, input, rank) in [(7, 5, 2), (4, 9, 3), (6, 6, 1)] {
        let weight = random(&[out, input]);
        let x = random(&[40, input]).matmul(&random(&[input, input]));
        let metric = x.tr().matmul(&x) / 40.0;
        let rows = random(&[out]).abs() + 0.2;
        let (a, b) = truncated(&weight, &metric, Some(&rows), rank).unwrap();
        let ours = objective(&weight, &b.matmul(&a), &metric, &rows);
        // Brute force: for fixed A the best B is a least-squares fit and the other way round; from many
        // starts.
        let mut best = f64::INFINITY;
        let factor = metric.linalg_cholesky(false);
        let wanted = (&weight * rows.unsqueeze(1)).matmul(&factor);
        for _ in 0..30 {
            let mut right = random(&[rank, input]);
            let mut left = random(&[out, rank]);
            for _ in 0..200 {
                left = wanted.matmul(&right.tr()).matmul(&right.matmul(&right.tr()).inverse());
                right = left.tr().matmul(&left).inverse().matmul(&left.tr()).matmul(&wanted);
            }
            best = best.min(scalar(&(&wanted - left.matmul(&right)).square().sum(Kind::Double)).unwrap());
        }
        assert!(ours < best * 1.0001 + 1e-9, "({out}, {input}) rank {rank}: {ours} against {best}");
        assert!(ours > best * 0.999 - 1e-9, "better than possible: {ours} against {best}");
        let (a, b) = truncated(&weight, &metric, Some(&rows), input).unwrap();
        assert!(error(&b.matmul(&a), &weight) < 1e-10, "full rank is exact");
    }
}

#[test]
fn regression_with_full_rank_is_least_squares() {
    let _generator = seeded(4);
    let (n, input, out) = (200, 6, 4);
    let x = random(&[n, input]);
    let truth = random(&[out, input]);
    let base = random(&[out, input]);
    let y = x.matmul(&truth.tr());
    let second = Second { xx: x.tr().matmul(&x) / n as f64, xy: x.tr().matmul(&y) / n as f64 };
    for scales in [Scales::None, Scales::Rows] {
        let pieces = regression(scales, Some(&base), &second, out).unwrap();
        let repair = Repair::LowRank { scales, ranks: Ranks::uniform(4) };
        let mut effective = Tensor::zeros([out, input], (Kind::Double, Device::Cpu));
        let form = form(&Treatment::Share { reference: 0, repair }).unwrap();
        form.effective_into(&mut effective, Some(&base), &pieces).unwrap();
        assert!(error(&effective, &truth) < 1e-6, "{scales:?}");
    }
    // Row scales alone: what least squares says for each row.
    let pieces = regression(Scales::Rows, Some(&base), &second, 0).unwrap();
    let through = x.matmul(&base.tr());
    let best = (&through * &y).sum_dim_intlist([0i64].as_slice(), false, Kind::Double)
        / through.square().sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    assert!(error(&pieces.row.unwrap(), &best) < 1e-12);
}

#[test]
fn permuting_neurons_leaves_the_function_unchanged() {
    let _generator = seeded(5);
    let mut original = mlp(8, 13);
    original.gate_up.bias = Some(random(&[26]).to_kind(Kind::Float));
    original.down.bias = Some(random(&[8]).to_kind(Kind::Float));
    let order = Tensor::randperm(13, (Kind::Int64, Device::Cpu));
    let other = permuted(&original, &order, &Compute::cpu(1)).unwrap();
    let x = random(&[20, 8]).to_kind(Kind::Float);
    assert!(error(other.forward(&x).unwrap().y(), original.forward(&x).unwrap().y()) < 1e-10);
    let moved = error(&other.weight(Projection::Gate).unwrap(), &original.weight(Projection::Gate).unwrap());
    assert!(moved > 0.1, "the weights did move: {moved}");
}

#[test]
fn a_permuted_reference_is_found_and_full_rank_reproduces_the_original() {
    let _generator = seeded(6);
    let compute = Compute::cpu(1);
    let (d, f, n) = (8, 20, 600);
    let original = mlp(d, f);
    let x = random(&[n, d]).to_kind(Kind::Float);
    let y = original.forward(&x).unwrap().y().shallow_clone();
    let weight = Tensor::ones([n, 1], (Kind::Float, Device::Cpu));
    let rows = Activations { x: x.shallow_clone(), y: y.shallow_clone(), weight };
    let pool = Pool::new(vec![(), ()]).unwrap();
    let fitted_error = |treatment: Treatment, reference: Option<&Mlp>| {
        let input = StartInput {
            original: &original,
            reference,
            activations: &rows,
            seed: 0,
            pool: &pool,
            compute: &compute,
        };
        let pieces = whitened(&treatment, &input).unwrap();
        let weights = PerProjection::from_fn(|projection| {
            let base = reference.map(|r| r.weight(projection).unwrap());
            let mut w = original.weight(projection).unwrap().zeros_like();
            form(&treatment).unwrap().effective_into(&mut w, base.as_ref(), &pieces[projection]).unwrap();
            w
        });
        let fitted = Mlp::from_parts(weights, None, &compute).unwrap();
        error(fitted.forward(&x).unwrap().y(), &y)
    };
    // The same function with its neurons shuffled, as reference: alignment alone must repair it, at rank 0.
    let shuffled = permuted(&original, &Tensor::randperm(f, (Kind::Int64, Device::Cpu)), &compute).unwrap();
    for scales in [Scales::None, Scales::Rows, Scales::RowsAndColumns] {
        let fitted_error = |reference: &Mlp, rank| {
            let repair = Repair::LowRank { scales, ranks: Ranks::uniform(rank) };
            fitted_error(Treatment::Share { reference: 0, repair }, Some(reference))
        };
        let found = fitted_error(&shuffled, 0);
        assert!(found < 1e-8, "{scales:?}: a permuted reference leaves {found}");
        let found = fitted_error(&mlp(d, f), 8);
        assert!(found < 1e-5, "{scales:?}: full rank leaves {found}");
        let (little, more) = (fitted_error(&mlp(d, f), 1), fitted_error(&mlp(d, f), 6));
        assert!(more < little, "{scales:?}: rank 6 leaves {more}, rank 1 {little}");
    }
    assert!(fitted_error(Treatment::LowRank { ranks: Ranks::uniform(8) }, None) < 1e-5);
}

/// The least squared error of outputs explained by a set of neurons, less what all of them leave.
fn harm(second: &Second, kept: &[i64]) -> f64 {
    let explained = |set: &Tensor| {
        let xx = second.xx.index_select(0, set).index_select(1, set);
        let xy = second.xy.index_select(0, set);
        scalar(&(xx.inverse().matmul(&xy) * &xy).sum(Kind::Double)).unwrap()
    };
    let all = Tensor::arange(second.xx.size()[0], (Kind::Int64, Device::Cpu));
    explained(&all) - explained(&Tensor::from_slice(kept))
}

#[test]
fn neurons_are_chosen_nearly_as_well_as_by_trying_every_set() {
    let _generator = seeded(8);
    for (neurons, keep) in [(8i64, 7i64), (9, 5), (10, 3)] {
        // Neurons that depend on each other: judged one by one, the wrong ones would go.
        let h = random(&[400, neurons]).matmul(&random(&[neurons, neurons]));
        let y = h.matmul(&random(&[neurons, 4]));
        let second = Second { xx: h.tr().matmul(&h) / 400.0, xy: h.tr().matmul(&y) / 400.0 };
        let found = Vec::<i64>::try_from(select(&second, keep).unwrap()).unwrap();
        assert!(found.is_sorted() && found.len() == keep as usize);
        let mut harms: Vec<f64> = (0u32..1 << neurons)
            .filter(|set| i64::from(set.count_ones()) == keep)
            .map(|set| harm(&second, &(0..neurons).filter(|j| set >> j & 1 == 1).collect::<Vec<_>>()))
            .collect();
        harms.sort_by(f64::total_cmp);
        let ours = harm(&second, &found);
        // Taking one away has a best answer; taking several away one after another comes near it.
        let bound = if keep + 1 == neurons { harms[0] * 1.01 } else { harms[harms.len() / 4] };
        assert!(ours <= bound + 1e-9, "{keep} of {neurons}: {ours}, best {}, bound {bound}", harms[0]);
    }
}

#[test]
fn what_neurons_explain_without_some_of_them_is_what_least_squares_says_of_the_others() {
    let _generator = seeded(10);
    for (neurons, gone) in [(7i64, 1i64), (12, 5), (40, 39)] {
        // Neurons that depend on each other, but none on all others: the inverses that are compared are known
        // well.
        let mixed = Tensor::eye(neurons, (Kind::Double, Device::Cpu))
            + random(&[neurons, neurons]) / (4.0 * neurons as f64).sqrt();
        let h = random(&[300, neurons]).matmul(&mixed);
        let y = random(&[300, 4]);
        let (xx, xy) = (h.tr().matmul(&h) / 300.0, h.tr().matmul(&y) / 300.0);
        let order = Tensor::randperm(neurons, (Kind::Int64, Device::Cpu));
        let out = order.narrow(0, 0, gone);
        let stay = order.narrow(0, gone, neurons - gone).sort(0, false).0;
        let all = Explained { inverse: xx.inverse(), weights: xx.inverse().matmul(&xy) };
        let found = all.without(&stay, &out).unwrap();
        let inverse = xx.index_select(0, &stay).index_select(1, &stay).inverse();
        assert!(error(&found.inverse, &inverse) < 1e-12, "{gone} of {neurons}");
        assert!(
            error(&found.weights, &inverse.matmul(&xy.index_select(0, &stay))) < 1e-12,
            "{gone} of {neurons}"
        );
    }
}

#[test]
fn neurons_that_say_nothing_new_can_go_without_loss() {
    let _generator = seeded(9);
    let (d, f, n) = (8, 12, 500);
    let part = mlp(d, f);
    let twice = |p| Tensor::cat(&[part.weight(p).unwrap(), part.weight(p).unwrap()], 0);
    let down = part.weight(Projection::Down).unwrap();
    // The same neurons twice, the second time with other down columns: half of them suffice, with the sum of
    // both.
    let other = (random(&[d, f]) * 0.5).to_kind(Kind::Float);
    let original =
        from_weights(twice(Projection::Gate), twice(Projection::Up), Tensor::cat(&[down, other], 1));
    let x = random(&[n, d]).to_kind(Kind::Float);
    let y = original.forward(&x).unwrap().y().shallow_clone();
    let weight = Tensor::ones([n, 1], (Kind::Float, Device::Cpu));
    let rows = Activations { x: x.shallow_clone(), y: y.shallow_clone(), weight };
    let pool = Pool::new(vec![(), ()]).unwrap();
    let left = |pieces: PerProjection<crate::forms::Pieces>| {
        let PerProjection { gate, up, down } = pieces.map(|p| p.weight.unwrap());
        assert_eq!((gate.size(), down.size()), (vec![f, d], vec![d, f]));
        let made = from_weights(gate, up, down);
        error(made.forward(&x).unwrap().y(), &y)
    };
    let found = left(fitted(f as usize, &original, &rows, &pool).unwrap());
    assert!(found < 1e-3, "half of the neurons suffice, and yet {found} is left");
    let plain = left(largest(f as usize, &original).unwrap());
    assert!(plain > 100.0 * found, "the largest alone leave {plain}");
    let all = left_with_all(&original, &rows, &pool, &x, &y);
    assert!(all < 1e-5, "with all neurons kept {all} is left");
}

/// What is left with every neuron kept and the down projection fitted.
fn left_with_all(original: &Mlp, rows: &Activations, pool: &Pool<()>, x: &Tensor, y: &Tensor) -> f64 {
    let inner = original.down.weight.size()[1] as usize;
    let pieces = fitted(inner, original, rows, pool).unwrap();
    let PerProjection { gate, up, down } = pieces.map(|p| p.weight.unwrap());
    let made = from_weights(gate, up, down);
    error(made.forward(x).unwrap().y(), y)
}

/// Fits neurons beside a reference that has nothing to do with the original.
fn beside(
    keep: usize,
    original: &Mlp,
    reference: &Mlp,
    rows: &Activations,
) -> PerProjection<crate::forms::Pieces> {
    let pool = Pool::new(vec![(), ()]).unwrap();
    let compute = Compute::cpu(1);
    let input = StartInput {
        original,
        reference: Some(reference),
        activations: rows,
        seed: 0,
        pool: &pool,
        compute: &compute,
    };
    neurons::fitted(keep, &input).unwrap()
}

/// The layer that the pieces make of the reference.
fn made(pieces: &PerProjection<crate::forms::Pieces>, original: &Mlp, reference: &Mlp, keep: usize) -> Mlp {
    let treatment = Treatment::Share { reference: 0, repair: Repair::Neurons { neurons: keep } };
    let made = original.blank_for(&treatment).unwrap();
    for projection in Projection::ALL {
        let base = reference.weight(projection).unwrap();
        let mut place = made.weight(projection).unwrap();
        form(&treatment).unwrap().effective_into(&mut place, Some(&base), &pieces[projection]).unwrap();
    }
    made
}

#[test]
fn all_neurons_beside_a_reference_are_the_original_and_fewer_are_fitted_by_least_squares() {
    let _generator = seeded(11);
    let (d, f, n) = (8, 12, 700);
    let (original, reference) = (mlp(d, f), mlp(d, f));
    let x = random(&[n, d]).to_kind(Kind::Float);
    let of = |mlp: &Mlp| mlp.forward(&x).unwrap().y().shallow_clone();
    // The original is a sum of what the reference gives and of what it does not.
    let y = of(&original);
    let weight = (random(&[n, 1]).abs() + 0.1).to_kind(Kind::Float);
    let rows = Activations { x: x.shallow_clone(), y: y.shallow_clone(), weight: weight.shallow_clone() };
    let whole = beside(f as usize, &original, &reference, &rows);
    let left = error(&of(&made(&whole, &original, &reference, f as usize)), &y);
    assert!(left < 1e-5, "with all neurons {left} is left");

    let keep = 4;
    let pieces = beside(keep, &original, &reference, &rows);
    let gate = pieces.gate.neurons.as_ref().unwrap();
    let up = pieces.up.neurons.as_ref().unwrap();
    let hidden = x.matmul(&gate.tr()).silu() * x.matmul(&up.tr());
    let root = weight.sqrt().to_kind(Kind::Double);
    let b = of(&reference).to_kind(Kind::Double);
    for channel in 0..d {
        // One regression for each channel, by libtorch: the reference's output beside the hidden activations.
        let regressors = Tensor::cat(&[b.narrow(1, channel, 1), hidden.to_kind(Kind::Double)], 1) * &root;
        let wanted = y.to_kind(Kind::Double).narrow(1, channel, 1) * &root;
        let best = regressors.linalg_lstsq(&wanted, None::<f64>, "gelsd").0;
        let residue = |solution: &Tensor| {
            scalar(&(regressors.matmul(solution) - &wanted).square().sum(Kind::Double)).unwrap()
        };
        let ours = Tensor::cat(
            &[
                pieces.down.row.as_ref().unwrap().narrow(0, channel, 1),
                pieces.down.neurons.as_ref().unwrap().get(channel),
            ],
            0,
        );
        let (ours, best) = (residue(&ours.to_kind(Kind::Double).unsqueeze(1)), residue(&best));
        assert!(ours <= best * 1.002 + 1e-9, "channel {channel}: {ours}, least squares {best}");
    }
    let fitted = error(&of(&made(&pieces, &original, &reference, keep)), &y);
    let alone = error(&(&b * 0.0).to_kind(Kind::Float), &y);
    assert!(fitted < alone, "{fitted} is left, of nothing {alone}");
}

#[test]
fn a_reference_that_is_the_original_needs_no_neurons() {
    let _generator = seeded(12);
    let (d, f, n) = (8, 12, 300);
    let original = mlp(d, f);
    let x = random(&[n, d]).to_kind(Kind::Float);
    let y = original.forward(&x).unwrap().y().shallow_clone();
    let weight = Tensor::ones([n, 1], (Kind::Float, Device::Cpu));
    let rows = Activations { x: x.shallow_clone(), y: y.shallow_clone(), weight };
    let pieces = beside(2, &original, &original, &rows);
    let found = made(&pieces, &original, &original, 2);
    let left = error(found.forward(&x).unwrap().y(), &y);
    assert!(left < 1e-9, "{left}");
    // The zero start is the reference as it is.
    let silent = neurons::silent(2, &original).unwrap();
    let other = mlp(d, f);
    let left =
        error(made(&silent, &original, &other, 2).forward(&x).unwrap().y(), other.forward(&x).unwrap().y());
    assert!(left < 1e-12, "{left}");
}
