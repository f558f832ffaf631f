//! Calibrated rounding against its definition, against the textbook's GPTQ, and against plain rounding.

use proptest::prelude::*;
use sharp_quant::*;

/// Numbers around -1 to 1 that look random.
fn random(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1u32 << 23) - 1.0
    }
}

struct Case {
    rows: usize,
    cols: usize,
    weights: Vec<f32>,
    inputs: Vec<f32>,
    gram: Gram,
}

/// A matrix and correlated inputs: `directions` directions that all inputs are made of, and noise.
fn case(seed: u64, (rows, cols, n): (usize, usize, usize), directions: usize, noise: f64) -> Case {
    let mut next = random(seed);
    let weights = (0..rows * cols).map(|_| (next() + next() + next()) as f32).collect();
    let basis: Vec<f64> = (0..directions * cols).map(|_| next()).collect();
    let mut inputs = Vec::new();
    for _ in 0..n {
        let part: Vec<f64> = (0..directions).map(|_| 2.0 * next()).collect();
        for c in 0..cols {
            let sum: f64 = part.iter().enumerate().map(|(d, p)| p * basis[d * cols + c]).sum();
            inputs.push((sum + noise * next()) as f32);
        }
    }
    let mut gram = Gram::new(cols).unwrap();
    gram.add(&Team::new(1).unwrap(), &inputs, 1.0).unwrap();
    Case { rows, cols, weights, inputs, gram }
}

impl Case {
    fn feedback(&self, team: &Team) -> Feedback {
        Feedback::new(team, self.gram.clone(), 0.01).unwrap()
    }

    fn packed(&self, team: &Team, format: PackedFormat) -> (Vec<u8>, f64) {
        let mut out = vec![0; format.nbytes(self.rows, self.cols).unwrap()];
        let shape = (self.rows, self.cols);
        let error =
            pack_calibrated(team, format, shape, &self.weights, &self.feedback(team), &mut out).unwrap();
        (out, error)
    }

    fn unpacked(&self, format: PackedFormat, packed: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        unpack(PackedRef::new(format, self.rows, self.cols, packed).unwrap(), &mut values).unwrap();
        values
    }

    /// The damped second moments (cols, cols) in units of their mean.
    fn moments(&self) -> Vec<Vec<f64>> {
        let n = self.cols;
        let mean = (0..n).map(|i| self.gram.get(i, i)).sum::<f64>() / n as f64;
        let value = |i, j| self.gram.get(i, j) / mean + if i == j { 0.01 } else { 0.0 };
        (0..n).map(|i| (0..n).map(|j| value(i, j)).collect()).collect()
    }

    /// `tr((W - Q) H (W - Q)^T)` with the damped moments `H`.
    fn error(&self, q: &[f32]) -> f64 {
        let h = self.moments();
        let mut total = 0.0;
        for (w, q) in self.weights.chunks(self.cols).zip(q.chunks(self.cols)) {
            let e: Vec<f64> = w.iter().zip(q).map(|(w, q)| f64::from(*w) - f64::from(*q)).collect();
            for (i, row) in h.iter().enumerate() {
                total += e[i] * row.iter().zip(&e).map(|(h, e)| h * e).sum::<f64>();
            }
        }
        total
    }

    /// The squared error of the outputs themselves.
    fn output_error(&self, q: &[f32]) -> f64 {
        let mut total = 0.0;
        for x in self.inputs.chunks(self.cols) {
            for (w, q) in self.weights.chunks(self.cols).zip(q.chunks(self.cols)) {
                let e: f64 = x.iter().zip(w).zip(q).map(|((x, w), q)| f64::from(x * (w - q))).sum();
                total += e * e;
            }
        }
        total
    }
}

/// The scale of row `row` in block `block`, from the layout that the documentation describes.
fn scale(format: PackedFormat, packed: &[u8], blocks: usize, row: usize, block: usize) -> f64 {
    let start = (row / GROUP * blocks + block) * format.block_bytes();
    let scales = &packed[start + format.block_bytes() - 2 * GROUP..];
    let mut out = [0.0];
    dequantize(DType::F16, &scales[2 * (row % GROUP)..][..2], &mut out).unwrap();
    f64::from(out[0])
}

/// The inverse of a positive definite matrix by Gauss and Jordan's elimination.
fn inverse(h: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = h.len();
    let mut a: Vec<Vec<f64>> = h
        .iter()
        .enumerate()
        .map(|(i, row)| row.iter().copied().chain((0..n).map(|j| f64::from(u8::from(i == j)))).collect())
        .collect();
    for p in 0..n {
        let pivot = a[p][p];
        a[p].iter_mut().for_each(|v| *v /= pivot);
        let row = a[p].clone();
        for (i, other) in a.iter_mut().enumerate().filter(|(i, _)| *i != p) {
            let _ = i;
            let factor = other[p];
            other.iter_mut().zip(&row).for_each(|(v, r)| *v -= factor * r);
        }
    }
    a.into_iter().map(|row| row[n..].to_vec()).collect()
}

/// Upper triangular `U` with `U^T U` = the matrix.
fn upper(h: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = h.len();
    let mut u = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in i..n {
            let sum: f64 = (0..i).map(|p| u[p][i] * u[p][j]).sum();
            u[i][j] = if i == j { (h[i][i] - sum).sqrt() } else { (h[i][j] - sum) / u[i][i] };
        }
    }
    u
}

/// GPTQ as its paper writes it: the inverse's Cholesky factor, errors pushed into the columns that follow.
/// Only the scales are taken from what is tested.
#[test]
fn with_the_same_scales_the_textbooks_algorithm_gives_the_same_integers() {
    let team = Team::new(2).unwrap();
    for (format, low, high) in [(PackedFormat::Q4, -8.0, 7.0), (PackedFormat::Q8, -127.0, 127.0)] {
        for (seed, shape) in [(1, (3, 32, 90)), (2, (20, 70, 50)), (3, (5, 129, 300)), (4, (1, 7, 4))] {
            let case = case(seed, shape, 6, 0.3);
            let (packed, _) = case.packed(&team, format);
            let found = case.unpacked(format, &packed);
            let u = upper(&inverse(&case.moments()));
            let blocks = case.cols.div_ceil(BLOCK);
            let mut ties = 0;
            for row in 0..case.rows {
                let mut w: Vec<f64> =
                    case.weights[row * case.cols..][..case.cols].iter().map(|v| f64::from(*v)).collect();
                for j in 0..case.cols {
                    let scale = scale(format, &packed, blocks, row, j / BLOCK);
                    let place = w[j] / scale;
                    let mine = f64::from(found[row * case.cols + j]);
                    let q = (place.round_ties_even()).clamp(low, high) * scale;
                    if (q - mine).abs() > 1e-6 {
                        // Only where 32 bits and 64 may differ on which side of a half this lies.
                        assert!(
                            (place - place.floor() - 0.5).abs() < 2e-3,
                            "{format} {row} {j}: {place} {mine}"
                        );
                        ties += 1;
                    }
                    let error = (w[j] - mine) / u[j][j];
                    for k in j + 1..case.cols {
                        w[k] -= error * u[j][k];
                    }
                }
            }
            assert!(ties * 100 <= case.rows * case.cols, "{format}: {ties} integers differ");
        }
    }
}

#[test]
fn the_error_told_is_the_error_there_is() {
    let team = Team::new(2).unwrap();
    for format in [PackedFormat::Q4, PackedFormat::Q8] {
        let case = case(5, (19, 75, 200), 5, 0.2);
        let (packed, told) = case.packed(&team, format);
        let is = case.error(&case.unpacked(format, &packed));
        assert!((told - is).abs() < 1e-3 * is, "{format}: {told} {is}");
    }
}

#[test]
fn correlated_inputs_gain_much() {
    let team = Team::new(2).unwrap();
    let case = case(9, (64, 256, 600), 24, 0.3);
    let (packed, _) = case.packed(&team, PackedFormat::Q4);
    let calibrated = case.output_error(&case.unpacked(PackedFormat::Q4, &packed));
    let shape = (case.rows, case.cols);
    let plain = pack_f32(PackedFormat::Q4, ScaleRule::LeastSquares, shape.0, shape.1, &case.weights).unwrap();
    let plain = case.output_error(&case.unpacked(PackedFormat::Q4, &plain));
    assert!(calibrated < 0.5 * plain, "{calibrated} {plain}");
}

#[test]
fn uncorrelated_inputs_lose_nothing_to_the_search_of_plain_blocks() {
    // Each column alone counts: the same problem as the importance-weighted search of plain blocks, on a
    // wider grid.
    let team = Team::new(1).unwrap();
    let (rows, cols) = (16, 64);
    let mut case = case(3, (rows, cols, 4), 2, 0.5);
    let importance: Vec<f32> = (0..cols).map(|c| 1.0 + (c * 7 % 13) as f32).collect();
    let mut sums = vec![0.0; cols * cols];
    for (c, w) in importance.iter().enumerate() {
        sums[c * cols + c] = f64::from(*w);
    }
    case.gram = Gram::from_sums(cols, sums).unwrap();
    for format in [PackedFormat::Q4, PackedFormat::Q8] {
        let (packed, _) = case.packed(&team, format);
        let mut plain = vec![0; packed.len()];
        let rule = ScaleRule::LeastSquares;
        let weights = &case.weights;
        pack_f32_parallel(&team, format, rule, (rows, cols), weights, Some(&importance), &mut plain).unwrap();
        let [calibrated, plain] = [packed, plain].map(|p| case.error(&case.unpacked(format, &p)));
        assert!(calibrated < 1.02 * plain, "{format}: {calibrated} {plain}");
    }
}

#[test]
fn rows_do_not_depend_on_one_another_nor_bits_on_threads_and_instructions() {
    let case = case(11, (37, 100, 80), 8, 0.3);
    for format in [PackedFormat::Q4, PackedFormat::Q8] {
        let (all, error) = case.packed(&Team::new(1).unwrap(), format);
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let team = Team::with_isa(threads, isa).unwrap();
                assert_eq!(case.packed(&team, format), (all.clone(), error), "{format} {isa} {threads}");
            }
        }
        let first = Case {
            rows: 5,
            cols: 100,
            weights: case.weights[..500].to_vec(),
            inputs: Vec::new(),
            gram: case.gram.clone(),
        };
        let (few, _) = first.packed(&Team::new(1).unwrap(), format);
        assert_eq!(first.unpacked(format, &few), case.unpacked(format, &all)[..500]);
    }
}

#[test]
fn what_cannot_be_rounded_is_refused() {
    let team = Team::new(2).unwrap();
    let case = case(1, (20, 40, 30), 4, 0.3);
    let feedback = case.feedback(&team);
    let mut out = vec![0; PackedFormat::Q4.nbytes(20, 40).unwrap()];
    let mut pack = |format, shape, weights: &[f32]| {
        pack_calibrated(&team, format, shape, weights, &feedback, &mut out).unwrap_err()
    };
    assert!(matches!(pack(PackedFormat::F16, (20, 40), &case.weights), Error::Unknown { .. }));
    assert!(matches!(pack(PackedFormat::Q4, (20, 39), &case.weights), Error::Length { .. }));
    assert!(matches!(pack(PackedFormat::Q4, (20, 40), &case.weights[1..]), Error::Length { .. }));
    assert!(matches!(pack(PackedFormat::Q8, (20, 40), &case.weights), Error::Length { .. }));
    assert!(matches!(pack(PackedFormat::Q4, (20, 38), &case.weights[..760]), Error::Shape { .. }));
    for value in [f32::NAN, f32::INFINITY] {
        let mut weights = case.weights.clone();
        weights[555] = value;
        let error = pack(PackedFormat::Q4, (20, 40), &weights);
        assert!(matches!(error, Error::NotFinite { index: 555, .. }), "{error}");
    }
    // Too large for any scale that is a 16-bit float: the block's first element is named.
    let mut weights = case.weights.clone();
    weights[17 * 40 + 35] = 1e9;
    let error = pack(PackedFormat::Q4, (20, 40), &weights);
    assert!(matches!(error, Error::NotFinite { index: 712, .. }), "{error}");
}

#[test]
fn dead_columns_and_zero_rows_are_rounded_plainly() {
    let team = Team::new(1).unwrap();
    let mut case = case(21, (4, 64, 100), 5, 0.2);
    for x in case.inputs.chunks_mut(64) {
        x[3] = 0.0;
        x[40] = 0.0;
    }
    case.weights[64..128].fill(0.0);
    case.gram = Gram::new(64).unwrap();
    case.gram.add(&team, &case.inputs, 1.0).unwrap();
    let (packed, _) = case.packed(&team, PackedFormat::Q4);
    let found = case.unpacked(PackedFormat::Q4, &packed);
    assert!(found[64..128].iter().all(|v| *v == 0.0));
    for row in [0, 2, 3] {
        for col in [3, 40] {
            let step = scale(PackedFormat::Q4, &packed, 2, row, col / 32).abs() as f32;
            let (w, q) = (case.weights[row * 64 + col], found[row * 64 + col]);
            assert!((w - q).abs() <= 0.5001 * step || q.abs() >= 6.9 * step, "{row} {col}: {w} {q} {step}");
        }
    }
    // No inputs at all: every column counts alike.
    case.gram = Gram::new(64).unwrap();
    let (packed, told) = case.packed(&team, PackedFormat::Q4);
    let plain = pack_f32(PackedFormat::Q4, ScaleRule::LeastSquares, 4, 64, &case.weights).unwrap();
    let squared = |packed: &[u8]| -> f64 {
        let values = case.unpacked(PackedFormat::Q4, packed);
        case.weights.iter().zip(values).map(|(w, q)| f64::from(w - q).powi(2)).sum()
    };
    assert!(squared(&packed) < 1.02 * squared(&plain) && told > 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Never worse than plain rounding beyond a tolerance, for few inputs and many, nearly independent or
    /// nearly of one direction, where there is a whole block: the few numbers of a narrower matrix plain
    /// rounding's finer search of scales may meet by luck.
    #[test]
    fn no_worse_than_plain_rounding(
        seed: u64, rows in 1usize..40, cols in 32usize..140, n in 1usize..200, directions in 1usize..20,
        noise in 0.01f64..2.0, eight: bool,
    ) {
        let team = Team::new(2).unwrap();
        let case = case(seed, (rows, cols, n), directions, noise);
        let format = if eight { PackedFormat::Q8 } else { PackedFormat::Q4 };
        let (packed, _) = case.packed(&team, format);
        let calibrated = case.error(&case.unpacked(format, &packed));
        for rule in [ScaleRule::Max, ScaleRule::LeastSquares] {
            let plain = pack_f32(format, rule, rows, cols, &case.weights).unwrap();
            let plain = case.error(&case.unpacked(format, &plain));
            prop_assert!(calibrated <= 1.05 * plain + 1e-9, "{:?}: {} {}", rule, calibrated, plain);
        }
    }
}
