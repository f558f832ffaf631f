//! Every form's effective weight against its formula, and both gradients against libtorch's autograd.

use sharp_model::{Projection, Ranks, Repair, Treatment};
use tch::{Device, Kind, Tensor};

use super::{Flow, Pieces, Size, form};
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
    let (scales, kind) = (treatment.scales(Projection::Down), treatment.form());
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
        neurons: None,
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

/// `[W_ref; N]` without scales, `[diag(row) W_ref, N]` with them.
fn with_neurons(projection: Projection, neurons: i64) {
    let _generator = seeded(9);
    let (n, input, output) = (19, 11, 13);
    let treatment = Treatment::Share { reference: 0, repair: Repair::Neurons { neurons: neurons as usize } };
    let reference = leaf(random(&[output, input]));
    let row = leaf(random(&[output]) + 2.0);
    let (own, weight) = match projection {
        Projection::Down => {
            let own = leaf(random(&[output, neurons]));
            let weight = Tensor::cat(&[row.unsqueeze(1) * &reference, own.shallow_clone()], 1);
            (own, weight)
        }
        Projection::Gate | Projection::Up => {
            let own = leaf(random(&[neurons, input]));
            let weight = Tensor::cat(&[&reference, &own], 0);
            (own, weight)
        }
    };
    let scaled = projection == Projection::Down;
    let (rows, columns) = weight.size2().unwrap();
    let (x, dy) = (random(&[n, columns]), random(&[n, rows]));
    let y = x.matmul(&weight.tr());
    (&y * &dy).sum(Kind::Float).backward();

    let form = form(&treatment).unwrap();
    let size =
        Size { projection, out: rows as usize, input: columns as usize, rank: 0, neurons: neurons as usize };
    let pieces =
        Pieces { row: scaled.then(|| row.detach()), neurons: Some(own.detach()), ..Pieces::default() };
    let shapes = form.shapes(&size);
    assert_eq!(shapes.row.is_some(), scaled);
    let shape = |t: &Tensor| t.size().into_iter().map(|n| n as usize).collect::<Vec<_>>();
    assert_eq!(shapes.neurons, Some(shape(&own)));
    let held = reference.detach();
    let mut effective = Tensor::zeros([rows, columns], (Kind::Float, Device::Cpu));
    form.effective_into(&mut effective, Some(&held), &pieces).unwrap();
    close("effective", &effective, &weight.detach());
    let y0 = y.detach();
    let by_flow = form.gradients(&pieces, &Flow { x: &x, y: &y0, dy: &dy, dx: None }).unwrap();
    let (by_weight, d_ref) = form.weight_gradients(Some(&held), &pieces, &dy.tr().matmul(&x)).unwrap();
    for (path, found) in [("flow", by_flow), ("weight", by_weight)] {
        close(&format!("{projection:?} {path} neurons"), &found.neurons.unwrap(), &own.grad());
        assert_eq!(found.row.is_some(), scaled);
        if let Some(found) = found.row {
            close(&format!("{path} row"), &found, &row.grad());
        }
    }
    close("reference", &d_ref.unwrap(), &reference.grad());
}

#[test]
fn neurons_beside_a_reference_agree_with_autograd() {
    for neurons in [1, 5] {
        for projection in Projection::ALL {
            with_neurons(projection, neurons);
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
