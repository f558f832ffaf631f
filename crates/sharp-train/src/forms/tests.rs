//! Every form's effective weight against its formula, and both gradients against libtorch's autograd.

use sharp_model::{Ranks, Repair, Treatment};
use tch::{Device, Kind, Tensor};

use super::{Flow, Pieces, form};
use crate::testing::seeded;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn leaf(t: Tensor) -> Tensor {
    t.set_requires_grad(true)
}

fn close(what: &str, found: &Tensor, expected: &Tensor) {
    let scale = f64::try_from(expected.abs().max()).unwrap().max(1e-3);
    let error = f64::try_from((found - expected).abs().max()).unwrap() / scale;
    assert!(error < 2e-4, "{what}: relative error {error}");
}

fn with_rank(treatment: Treatment, rank: i64) {
    let _generator = seeded(7);
    let (n, input, output) = (19, 11, 13);
    let (shares, pruned) = (treatment.reference().is_some(), treatment.stores_weights());
    let (scales, kind) = (treatment.scales(), treatment.form());
    let reference = leaf(random(&[output, input]));
    let a = leaf(random(&[rank, input]));
    let b = leaf(random(&[output, rank]));
    let row = leaf(random(&[output]) + 2.0);
    let col = leaf(random(&[input]) + 2.0);
    let own = leaf(random(&[output, input]));

    let mut weight = if pruned { own.shallow_clone() } else { b.matmul(&a) };
    if shares {
        let mut base = reference.shallow_clone();
        if scales.rows() {
            base = row.unsqueeze(1) * base;
        }
        if scales.columns() {
            base *= &col;
        }
        weight += base;
    }
    let x = leaf(random(&[n, input]));
    let dy = random(&[n, output]);
    let y = x.matmul(&weight.tr());
    (&y * &dy).sum(Kind::Float).backward();

    let lora = |t: &Tensor| (rank > 0 && !pruned).then(|| t.detach());
    let pieces = Pieces {
        a: lora(&a),
        b: lora(&b),
        row: scales.rows().then(|| row.detach()),
        col: scales.columns().then(|| col.detach()),
        weight: pruned.then(|| own.detach()),
    };
    let form = form(&treatment).unwrap();
    let held = reference.detach();
    let held = shares.then_some(&held);
    let mut effective = Tensor::zeros([output, input], (Kind::Float, Device::Cpu));
    form.effective_into(&mut effective, held, &pieces).unwrap();
    close("effective", &effective, &weight.detach());

    let (x0, y0, dx) = (x.detach(), y.detach(), x.grad());
    let flow = Flow { x: &x0, y: &y0, dy: &dy, dx: form.needs_input_grad().then_some(&dx) };
    let by_flow = form.gradients(&pieces, &flow).unwrap();
    let (by_weight, d_ref) = form.weight_gradients(held, &pieces, &dy.tr().matmul(&x0)).unwrap();
    for (path, found) in [("flow", by_flow), ("weight", by_weight)] {
        for (name, found, leaf, has) in [
            ("A", found.a, &a, rank > 0 && !pruned),
            ("B", found.b, &b, rank > 0 && !pruned),
            ("row", found.row, &row, scales.rows()),
            ("col", found.col, &col, scales.columns()),
            ("own", found.weight, &own, pruned),
        ] {
            assert_eq!(found.is_some(), has, "{kind} {path} {name}");
            if let Some(found) = found {
                close(&format!("{kind} rank {rank} {path} {name}"), &found, &leaf.grad());
            }
        }
    }
    assert_eq!(d_ref.is_some(), shares);
    if let Some(d_ref) = d_ref {
        close("reference", &d_ref, &reference.grad());
    }
}

#[test]
fn effective_weights_and_gradients_agree_with_autograd() {
    for rank in [4, 1, 0] {
        let ranks = Ranks::uniform(rank);
        for repair in [Repair::low_rank(ranks), Repair::scaled(ranks), Repair::row_column_scaled(ranks)] {
            with_rank(Treatment::Share { reference: 0, repair }, rank as i64);
        }
        with_rank(Treatment::Prune { neurons: 13 }, rank as i64);
        if rank > 0 {
            with_rank(Treatment::LowRank { ranks }, rank as i64);
        }
    }
}

#[test]
fn a_missing_piece_is_an_error_not_a_panic() {
    let _generator = seeded(8);
    let mut out = random(&[2, 2]);
    let w = random(&[2, 2]);
    let none = Pieces::default();
    let form = |repair| form(&Treatment::Share { reference: 0, repair });
    let ranks = Ranks::uniform(1);
    assert!(form(Repair::low_rank(ranks)).unwrap().effective_into(&mut out, None, &none).is_err());
    assert!(form(Repair::scaled(ranks)).unwrap().effective_into(&mut out, Some(&w), &none).is_err());
    assert!(form(Repair::None).is_none());
}
