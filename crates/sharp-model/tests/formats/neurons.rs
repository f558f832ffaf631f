//! Neurons of a layer's own beside another layer's MLP: what it computes, recovery files, exports.

use sharp_model::{
    ExportOptions, LayerChange, LayerRecovery, ModelSource, PerProjection, Plan, Projection,
    ProjectionRecovery, Ranks, Recovery, Repair, StoredTensor, export_compact, export_dense, export_peft,
    gguf::{GgufOptions, export_gguf},
    names,
};
use sharp_progress::Silent;
use sharp_quant::DType;

use crate::golden;

const NEURONS: usize = 3;

fn base() -> ModelSource {
    ModelSource::open(golden("hf_llama/tied")).unwrap()
}

fn plan() -> Plan {
    Plan::new("explicit", vec![LayerChange::share(1, 0, Repair::Neurons { neurons: NEURONS })])
}

fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 16.0 - 0.7).collect()
}

/// Neurons and scales for layer 1, all numbers that half floats hold exactly.
fn recovery(base: &ModelSource) -> Recovery {
    let d = base.config().hidden_size;
    let of = |p: Projection| {
        let (out, input) = p.shape_with(d, NEURONS);
        let neurons = StoredTensor { shape: vec![out, input], values: values(out * input, p as usize) };
        let row_scale = (p == Projection::Down).then(|| values(d, 9));
        Some(ProjectionRecovery { neurons: Some(neurons), row_scale, ..Default::default() })
    };
    let layer: LayerRecovery = PerProjection::from_fn(of);
    Recovery { layers: [(1, layer)].into(), ..Recovery::default() }
}

fn effective(source: &ModelSource, layer: usize) -> PerProjection<Vec<f32>> {
    PerProjection::from_fn(|p| source.projection(layer, p).unwrap().effective_f32().unwrap())
}

/// `down(silu(gate x) * up x)` in float64.
fn mlp(weights: &PerProjection<Vec<f32>>, x: &[f64]) -> Vec<f64> {
    let times = |w: &[f32], x: &[f64]| -> Vec<f64> {
        w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    };
    let gate = times(&weights.gate, x).into_iter().map(|g| g / (1.0 + (-g).exp()));
    let hidden: Vec<f64> = gate.zip(times(&weights.up, x)).map(|(g, u)| g * u).collect();
    times(&weights.down, &hidden)
}

#[test]
fn the_layer_computes_its_references_scaled_output_and_its_neurons() {
    let base = base();
    let recovery = recovery(&base);
    let source = ModelSource::overlay(&base, plan(), Some(&recovery)).unwrap();
    let d = base.config().hidden_size;
    let x: Vec<f64> = (0..d).map(|i| (i as f64 * 0.7).sin()).collect();
    let own = recovery.layers[&1].each_ref().map(|p| p.as_ref().unwrap().neurons.clone().unwrap().values);
    let scale = recovery.layers[&1].down.as_ref().unwrap().row_scale.clone().unwrap();
    let reference = mlp(&effective(&base, 0), &x);
    let expected =
        reference.iter().zip(&scale).zip(mlp(&own, &x)).map(|((y, s), own)| y * f64::from(*s) + own);
    let found = mlp(&effective(&source, 1), &x);
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-6, "{worst}");

    // Untrained, the reference alone is left.
    let untrained = ModelSource::overlay(&base, plan(), None).unwrap();
    assert_eq!(effective(&untrained, 1), effective(&base, 0));
}

#[test]
fn what_is_stored_is_counted_and_shared_weights_are_stored_once() {
    let base = base();
    let config = base.config();
    let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
    let own = 3 * d * NEURONS as u64 + d;
    let estimate = plan().estimate(config, DType::F16).unwrap();
    assert_eq!(estimate.recovery_parameters, own);
    assert_eq!(estimate.original_parameters - estimate.stored_parameters, 3 * d * f - own);
    let source = ModelSource::overlay(&base, plan(), Some(&recovery(&base))).unwrap();
    let parts: u64 = source.stored_tensors().unwrap().iter().map(|t| t.elements().unwrap() as u64).sum();
    assert_eq!(parts, estimate.stored_parameters);
    let bytes = |layer| source.projection(layer, Projection::Up).unwrap().base.unwrap().bytes.as_ptr();
    assert_eq!(bytes(0), bytes(1));
}

#[test]
fn every_export_has_the_same_mlps() {
    let base = base();
    let source = ModelSource::overlay(&base, plan(), Some(&recovery(&base))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = ExportOptions::new(DType::F32);
    let (compact, dense) = (folder.path().join("compact"), folder.path().join("dense"));
    export_compact(&source, &compact, &options, &Silent).unwrap();
    export_dense(&source, &dense, &options, &Silent).unwrap();
    let gguf = folder.path().join("model.gguf");
    export_gguf(&source, None, &gguf, GgufOptions::uniform(DType::F32), &Silent).unwrap();
    let compact = ModelSource::open(compact).unwrap();
    assert_eq!(compact.plan(), source.plan());
    assert!(compact.tensor(&names::mlp_weight(1, Projection::Up)).is_err());

    let d = base.config().hidden_size;
    let x: Vec<f64> = (0..d).map(|i| (i as f64 * 0.3).cos()).collect();
    for layer in 0..base.config().num_hidden_layers {
        assert_eq!(effective(&compact, layer), effective(&source, layer), "layer {layer}");
        let expected = mlp(&effective(&source, layer), &x);
        for wide in [ModelSource::open(&dense).unwrap(), ModelSource::open(&gguf).unwrap()] {
            // Every MLP is as wide as the widest.
            assert_eq!(wide.config().intermediate_size, base.config().intermediate_size + NEURONS);
            let found = mlp(&effective(&wide, layer), &x);
            let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-9, "layer {layer}: {worst}");
        }
    }
}

#[test]
fn a_recovery_file_holds_neurons_and_what_does_not_fit_is_refused() {
    let base = base();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recovery.safetensors");
    let good = recovery(&base);
    good.save(&file).unwrap();
    assert_eq!(Recovery::load(&file).unwrap(), good);
    good.check(base.config(), &plan()).unwrap();

    let refused = |change: &dyn Fn(&mut LayerRecovery), plan: &Plan| {
        let mut bad = good.clone();
        change(bad.layers.get_mut(&1).unwrap());
        bad.check(base.config(), plan).unwrap_err().to_string()
    };
    let down = |layer: &mut LayerRecovery| layer.down.take().unwrap();
    let error = refused(&|layer| drop(down(layer)), &plan());
    assert!(error.contains("no recovery parameters"), "{error}");
    let error = refused(&|layer| layer.up.as_mut().unwrap().neurons = None, &plan());
    assert!(error.contains("has no neurons"), "{error}");
    let error = refused(&|layer| layer.down.as_mut().unwrap().row_scale = None, &plan());
    assert!(error.contains("has no row_scale"), "{error}");
    let short = |layer: &mut LayerRecovery| {
        layer.gate.as_mut().unwrap().neurons = Some(StoredTensor { shape: vec![1, 4], values: vec![0.0; 4] });
    };
    let error = refused(&short, &plan());
    assert!(error.contains(&names::neurons(1, Projection::Gate)), "{error}");
    let other = Plan::new("x", vec![LayerChange::share(1, 0, Repair::None)]);
    let error = refused(&|_| {}, &other);
    assert!(error.contains("has neurons, which form `none` has not"), "{error}");
    let biased = ModelSource::open(golden("hf_llama/biases")).unwrap();
    let error = plan().validate(biased.config()).unwrap_err().to_string();
    assert!(error.contains("without biases"), "{error}");
}

#[test]
fn an_adapter_cannot_be_wider_than_its_base() {
    let base = base();
    let mut mixed = plan();
    mixed.changes.push(LayerChange::share(2, 0, Repair::low_rank(Ranks::uniform(1))));
    let (d, f) = (base.config().hidden_size, base.config().intermediate_size);
    let factors = |p: Projection| {
        let (out, input) = p.shape_with(d, f);
        Some(ProjectionRecovery { rank: 1, a: values(input, 1), b: values(out, 2), ..Default::default() })
    };
    let mut recovery = recovery(&base);
    recovery.layers.insert(2, PerProjection::from_fn(factors));
    let source = ModelSource::overlay(&base, mixed, Some(&recovery)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("adapter");
    let error = export_peft(&source, &out, &ExportOptions::new(DType::F32), &Silent).unwrap_err();
    assert!(error.to_string().contains("neurons beside shared MLPs"), "{error}");
    assert!(!out.exists());
}
