//! Float kernels against plain loops in f64, on every instruction set this processor has.

use proptest::prelude::*;
use sharp_quant::float::{DenseOp, DenseRef, KvCache, Queries, attention, dense_matmul};
use sharp_quant::{DType, Isa, Team, float};

/// Reproducible numbers in -1..1.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// The bytes of `x` in a format, and the values that those bytes mean.
fn stored(dtype: DType, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0; dtype.nbytes(x.len()).unwrap()];
    sharp_quant::quantize(dtype, sharp_quant::ScaleRule::Max, x, &mut bytes).unwrap();
    let mut back = vec![0.0; x.len()];
    sharp_quant::dequantize(dtype, &bytes, &mut back).unwrap();
    (bytes, back)
}

fn product(w: &[f32], x: &[f32], cols: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        for w in w.chunks_exact(cols) {
            out.push(w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum());
        }
    }
    out
}

fn close(found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*f) - e).abs() <= tolerance * (1.0 + e.abs()), "{i}: {f} instead of {e}");
    }
}

/// Bits, with zeros of either sign the same.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| (v + 0.0).to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn dense_products_are_right_and_bit_equal(
        rows in 1usize..150, cols in 1usize..600, n in 1usize..20, seed: u64,
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::BF16]), add: bool, scaled: bool,
    ) {
        let (bytes, w) = stored(dtype, &numbers(seed, rows * cols));
        let x = numbers(seed ^ 1, n * cols);
        let before = numbers(seed ^ 2, n * rows);
        let scale = numbers(seed ^ 3, rows);
        let mut expected = product(&w, &x, cols);
        for (i, e) in expected.iter_mut().enumerate() {
            if scaled { *e *= f64::from(scale[i % rows]); }
            if add { *e += f64::from(before[i]); }
        }
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available().into_iter().filter(|i| *i != Isa::scalar() || rows * cols * n < 20_000) {
            for threads in [1, 3] {
                let team = Team::with_isa(threads, isa).unwrap();
                let mut out = before.clone();
                let weight = DenseRef::new(dtype, rows, cols, &bytes).unwrap();
                let op = DenseOp { weight, row_scale: scaled.then_some(&scale[..]), add, out: &mut out };
                dense_matmul(&team, &mut [op], &x, n).unwrap();
                close(&out, &expected, 3e-5);
                let found = bits(&out);
                prop_assert_eq!(first.get_or_insert_with(|| found.clone()), &found);
            }
        }
    }

    #[test]
    fn attention_is_right_and_does_not_depend_on_batch_or_threads(
        kv_heads in 1usize..4, group in 1usize..6, dim in 1usize..40, n in 1usize..150, split in 0usize..150,
        seed: u64, dtype in prop::sample::select(vec![DType::F32, DType::F16]),
        window in prop::option::of(1usize..150), cap in prop::option::of(0.5f32..4.0),
    ) {
        let heads = kv_heads * group;
        let (k, v) = (numbers(seed, n * kv_heads * dim), numbers(seed ^ 1, n * kv_heads * dim));
        let q = numbers(seed ^ 2, n * heads * dim);
        let scale = 2.0 / (dim as f32).sqrt();
        let scores = float::Scores { scale, cap, window };
        let (_, k_stored) = stored(dtype, &k);
        let (_, v_stored) = stored(dtype, &v);
        let mut expected = Vec::new();
        for t in 0..n {
            for h in 0..heads {
                let at = |all: &[f32], s: usize, d: usize| f64::from(all[(s * kv_heads + h / group) * dim + d]);
                let query = |d: usize| f64::from(q[(t * heads + h) * dim + d]);
                let score = |s| {
                    let score = f64::from(scale) * (0..dim).map(|d| query(d) * at(&k_stored, s, d)).sum::<f64>();
                    cap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                };
                let seen = |s| if window.is_none_or(|w| t - s < w) { score(s) } else { f64::NEG_INFINITY };
                let scores: Vec<f64> = (0..=t).map(seen).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..dim {
                    expected.push(weights.iter().enumerate().map(|(s, w)| w / total * at(&v_stored, s, d)).sum());
                }
            }
        }
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available().into_iter().filter(|i| *i != Isa::scalar() || n * n * heads * dim < 20_000) {
            for (threads, pieces) in [(1, vec![0, n]), (2, vec![0, split.min(n), n]), (2, (0..=n).collect())] {
                let team = Team::with_isa(threads, isa).unwrap();
                let mut cache = KvCache::new(dtype, 2, kv_heads, dim, n).unwrap();
                let mut out = vec![f32::NAN; n * heads * dim];
                for piece in pieces.windows(2) {
                    let (from, to) = (piece[0], piece[1]);
                    let kv = from * kv_heads * dim..to * kv_heads * dim;
                    cache.write(&team, 1, from, to - from, &k[kv.clone()], &v[kv]).unwrap();
                    let qs = from * heads * dim..to * heads * dim;
                    let queries = Queries { layer: 1, heads, at: from, q: &q[qs.clone()], scores };
                    attention(&team, &cache, queries, &mut out[qs]).unwrap();
                }
                close(&out, &expected, 1e-5);
                let found = bits(&out);
                prop_assert_eq!(first.get_or_insert_with(|| found.clone()), &found);
            }
        }
    }

    #[test]
    fn vector_functions_are_right(len in 0usize..200, seed: u64) {
        let (a, b) = (numbers(seed, len), numbers(seed ^ 9, len));
        let wide: Vec<f32> = a.iter().map(|v| v * 30.0).collect();
        let mut first: Option<Vec<u32>> = None;
        for isa in Isa::available() {
            let dot = float::dot(isa, &a, &b);
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            close(&[dot], &[exact], 1e-5);
            let lse = float::log_sum_exp(isa, &wide);
            let exact = wide.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
            prop_assert!(len == 0 || (lse - exact).abs() < 1e-5, "{} {}", lse, exact);
            let mut norm = vec![0.0; len];
            float::rms_norm(isa, &a, &b, 1e-5, &mut norm);
            let mean = a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / len.max(1) as f64;
            let root = (mean + 1e-5).sqrt();
            let exact: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(*a) / root * f64::from(*b)).collect();
            close(&norm, &exact, 1e-5);
            let top = wide.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(float::max(isa, &wide), top);
            let mut p = wide.clone();
            let sum = float::exp_sum(isa, &mut p, top);
            let exact: Vec<f64> = wide.iter().map(|v| (f64::from(*v) - f64::from(top)).exp()).collect();
            close(&p, &exact, 1e-6);
            close(&[sum], &[exact.iter().sum()], 1e-5);
            let mut turned = a[..len / 6 * 6].to_vec();
            let (cos, sin): (Vec<f32>, Vec<f32>) = [0.3f32, 1.1, 2.0].iter().map(|t| (t.cos(), t.sin())).unzip();
            float::rope(isa, &mut turned, &cos, &sin);
            for (h, head) in turned.chunks(6).enumerate() {
                for i in 0..3 {
                    let (x, y) = (a[h * 6 + i], a[h * 6 + 3 + i]);
                    let expected = [x * cos[i] - y * sin[i], y * cos[i] + x * sin[i]].map(f64::from);
                    close(&[head[i], head[3 + i]], &expected, 1e-6);
                }
            }
            let single = vec![dot.to_bits(), sum.to_bits(), (lse as f32).to_bits()];
            let found = [bits(&norm), bits(&p), bits(&turned), single].concat();
            prop_assert_eq!(first.get_or_insert_with(|| found.clone()), &found);
        }
    }
}

#[test]
fn a_long_product_over_several_runs_and_items() {
    let (rows, cols, n) = (200, 1100, 600);
    let (bytes, w) = stored(DType::BF16, &numbers(3, rows * cols));
    let x = numbers(4, n * cols);
    let team = Team::new(2).unwrap();
    let weight = DenseRef::new(DType::BF16, rows, cols, &bytes).unwrap();
    let mut out = vec![0.0; n * rows];
    dense_matmul(&team, &mut [DenseOp { weight, row_scale: None, add: false, out: &mut out }], &x, n)
        .unwrap();
    close(&out, &product(&w, &x, cols), 5e-5);
}

#[test]
fn wrong_shapes_are_refused() {
    let team = Team::new(1).unwrap();
    assert!(DenseRef::new(DType::F32, 2, 3, &[0; 23]).is_err());
    assert!(DenseRef::new(DType::Q8_0, 1, 32, &[0; 34]).is_err());
    assert!(DenseRef::new(DType::F32, usize::MAX, 3, &[]).is_err());
    let weight = DenseRef::new(DType::F32, 2, 3, &[0; 24]).unwrap();
    let mut out = [0.0; 2];
    let mut op = [DenseOp { weight, row_scale: None, add: false, out: &mut out }];
    assert!(dense_matmul(&team, &mut op, &[0.0; 4], 1).is_err());
    assert!(dense_matmul(&team, &mut op, &[0.0; 6], 2).is_err());
    assert!(KvCache::new(DType::Q8_0, 1, 1, 8, 8).is_err());
    assert!(KvCache::new(DType::F32, 1, 1, usize::MAX, 8).is_err());
    assert!(KvCache::new(DType::F32, 1 << 40, 1, 1 << 20, 1 << 30).is_err());
    let mut cache = KvCache::new(DType::F32, 1, 1, 8, 64).unwrap();
    assert!(cache.write(&team, 1, 0, 1, &[0.0; 8], &[0.0; 8]).is_err());
    assert!(cache.write(&team, 0, 64, 1, &[0.0; 8], &[0.0; 8]).is_err());
    assert!(cache.write(&team, 0, 0, 1, &[0.0; 7], &[0.0; 8]).is_err());
    let refused = |heads: usize, at: usize, q: &[f32], out: &mut [f32]| {
        attention(&team, &cache, Queries { layer: 0, heads, at, q, scores: 1.0.into() }, out).is_err()
    };
    assert!(refused(3, 64, &[0.0; 24], &mut [0.0; 24]));
    assert!(refused(0, 0, &[0.0; 24], &mut [0.0; 24]));
    assert!(refused(2, 0, &[0.0; 16], &mut [0.0; 8]));
}
