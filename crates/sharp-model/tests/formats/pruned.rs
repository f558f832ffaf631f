//! Pruned MLPs: plans, recovery files, and checkpoints with layers of fewer neurons.

use std::path::Path;

use sharp_model::{Error, LayerChange, ModelSource, Plan, Projection, Recovery, Repair, names};
use sharp_model::{ExportOptions, export_compact, export_dense};
use sharp_progress::Silent;
use sharp_quant::DType;

fn golden(case: &str) -> ModelSource {
    ModelSource::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/hf_llama").join(case))
        .unwrap()
}

fn plan(neurons: usize) -> Plan {
    Plan::new("explicit", vec![LayerChange::prune(1, neurons).because("a test")])
}

#[test]
fn a_plan_with_pruned_layers_survives_toml_and_json_and_counts_what_it_stores() {
    let base = golden("tied");
    let config = base.config();
    let plan = plan(5);
    plan.validate(config).unwrap();
    assert_eq!(Plan::from_toml(Path::new("plan.toml"), &plan.to_toml()).unwrap(), plan);
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(Plan::from_json_value(Path::new("config.json"), json).unwrap(), plan);
    let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
    let layers = config.num_hidden_layers as u64;
    assert_eq!(plan.stored_mlp_parameters(config), (layers - 1) * 3 * d * f + 3 * d * 5);
    let estimate = plan.estimate(config, DType::F16).unwrap();
    assert_eq!(estimate.original_parameters - estimate.stored_parameters, 3 * d * (f - 5));
    assert_eq!(estimate.original_bytes - estimate.stored_bytes, 2 * 3 * d * (f - 5));
}

#[test]
fn impossible_pruned_layers_are_refused() {
    let base = golden("tied");
    let refuse = |change: LayerChange, word: &str| {
        let error = Plan::new("explicit", vec![change]).validate(base.config()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("layer 1"), "{error}");
    };
    refuse(LayerChange::prune(1, 0), "at least one");
    refuse(LayerChange::prune(1, base.config().intermediate_size + 1), "neurons");
    let biased = golden("biases");
    assert!(Plan::new("explicit", vec![LayerChange::prune(1, 4)]).validate(biased.config()).is_err());
    let typo = "version = 1\n[[targets]]\nlayer = 1\nform = \"pruned\"\nneuron = 4\n";
    let error = Plan::from_toml(Path::new("plan.toml"), typo).unwrap_err().to_string();
    assert!(error.contains("neurons"), "{error}");
}

#[test]
fn without_data_the_largest_neurons_stay() {
    let base = golden("tied");
    let pruned = ModelSource::overlay(&base, plan(5), None).unwrap();
    let of = |source: &ModelSource, p| source.projection(1, p).unwrap().effective_f32().unwrap();
    let (d, f) = (base.config().hidden_size, base.config().intermediate_size);
    let (gate, up, down) =
        (of(&base, Projection::Gate), of(&base, Projection::Up), of(&base, Projection::Down));
    let norm =
        |row: &mut dyn Iterator<Item = f32>| row.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let mut sizes: Vec<(f64, usize)> = (0..f)
        .map(|j| {
            let gate = norm(&mut gate[j * d..(j + 1) * d].iter().copied());
            let up = norm(&mut up[j * d..(j + 1) * d].iter().copied());
            (gate * up * norm(&mut (0..d).map(|i| down[i * f + j])), j)
        })
        .collect();
    sizes.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut kept: Vec<usize> = sizes[..5].iter().map(|(_, j)| *j).collect();
    kept.sort_unstable();
    let rows = |w: &[f32]| kept.iter().flat_map(|&j| w[j * d..(j + 1) * d].to_vec()).collect::<Vec<_>>();
    assert_eq!(of(&pruned, Projection::Gate), rows(&gate));
    assert_eq!(of(&pruned, Projection::Up), rows(&up));
    let columns: Vec<f32> =
        (0..d).flat_map(|i| kept.iter().map(move |&j| i * f + j)).map(|at| down[at]).collect();
    assert_eq!(of(&pruned, Projection::Down), columns);
    assert_eq!(of(&pruned, Projection::Gate).len(), 5 * d);
    // The other layers are the base's.
    assert_eq!(of(&pruned, Projection::Gate).len() * f, gate.len() * 5);
}

#[test]
fn compact_and_dense_checkpoints_of_a_pruned_model_open_again() {
    let base = golden("tied");
    let pruned = ModelSource::overlay(&base, plan(5), None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (compact, dense) = (folder.path().join("compact"), folder.path().join("dense"));
    export_compact(&pruned, &compact, &ExportOptions::new(DType::F32), &Silent).unwrap();
    export_dense(&pruned, &dense, &ExportOptions::new(DType::F32), &Silent).unwrap();
    let (compact, dense) = (ModelSource::open(&compact).unwrap(), ModelSource::open(&dense).unwrap());
    assert!(compact.stored_bytes().unwrap() < base.stored_bytes().unwrap());
    let (d, f) = (base.config().hidden_size, base.config().intermediate_size);
    for projection in Projection::ALL {
        let own = pruned.projection(1, projection).unwrap().effective_f32().unwrap();
        assert_eq!(compact.projection(1, projection).unwrap().effective_f32().unwrap(), own);
        let padded = dense.tensor(&names::mlp_weight(1, projection)).unwrap().f32().unwrap();
        let width = if projection == Projection::Down { 5 } else { d };
        let full = if projection == Projection::Down { f } else { d };
        assert_eq!(padded.len(), d * f);
        let nonzero: Vec<f32> =
            padded.chunks(full).flat_map(|row| row[..width].to_vec()).take(own.len()).collect();
        assert_eq!(nonzero, own);
        assert_eq!(padded.iter().filter(|v| **v != 0.0).count(), own.iter().filter(|v| **v != 0.0).count());
    }
}

#[test]
fn what_a_pruned_layer_keeps_must_be_there_and_fit() {
    let base = golden("tied");
    let pruned = ModelSource::overlay(&base, plan(5), None).unwrap();
    let mut recovery = Recovery::default();
    for projection in Projection::ALL {
        let part = pruned.projection(1, projection).unwrap();
        let shape = [part.out_features, part.in_features];
        let values = part.effective_f32().unwrap();
        recovery.insert_trained(&names::mlp_weight(1, projection), &shape, values).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(Recovery::layer_file(1));
    recovery.save(&file).unwrap();
    let read = Recovery::load(folder.path()).unwrap();
    assert_eq!(read, recovery);
    ModelSource::overlay(&base, plan(5), Some(&read)).unwrap();

    let error = ModelSource::overlay(&base, plan(6), Some(&read)).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    let mut short = recovery.clone();
    short.mlps.get_mut(&1).unwrap().up = None;
    let error = short.check(base.config(), &plan(5)).unwrap_err().to_string();
    assert!(error.contains("up_proj") && error.contains("layer 1"), "{error}");
}

#[test]
fn trained_tensors_are_norms_and_mlp_weights_and_survive_a_file() {
    let base = golden("tied");
    let (d, f) = (base.config().hidden_size, base.config().intermediate_size);
    let mut recovery = Recovery::default();
    recovery.insert_trained(names::FINAL_NORM, &[d], vec![1.0; d]).unwrap();
    recovery.insert_trained(&names::input_norm(2), &[d], vec![2.0; d]).unwrap();
    recovery.insert_trained(&names::mlp_weight(0, Projection::Down), &[d, f], vec![0.5; d * f]).unwrap();
    assert_eq!((recovery.norms.len(), recovery.mlps.len(), recovery.trained().len()), (2, 1, 3));
    recovery.check(base.config(), &Plan::new("x", vec![])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recovery.safetensors");
    recovery.save(&file).unwrap();
    assert_eq!(Recovery::load(&file).unwrap(), recovery);

    let mut refuse = |name: &str, shape: &[usize], message: &str| {
        let error = recovery.insert_trained(name, shape, vec![0.0; d]).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(message), "{error}");
    };
    refuse(names::EMBED, &[1, d], "neither a recovery parameter nor a norm or MLP weight");
    refuse(&names::input_norm(1), &[1, d], "a norm is a vector");
    refuse(names::FINAL_NORM, &[d], "given twice");
    // A layer that runs with another's weights has none to train.
    let sharing = Plan::new("x", vec![LayerChange::share(0, 1, Repair::None)]);
    let error = recovery.check(base.config(), &sharing).unwrap_err().to_string();
    assert!(error.contains("gives this weight up"), "{error}");
    recovery.norms.insert("model.layers.9.input_layernorm.weight".into(), vec![0.0; d]);
    let error = recovery.check(base.config(), &Plan::new("x", vec![])).unwrap_err().to_string();
    assert!(error.contains("no such tensor"), "{error}");
}
