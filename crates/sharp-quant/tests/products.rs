//! Products: against f64 arithmetic, and bit for bit across instruction sets, thread counts and batch sizes.

use proptest::prelude::*;
use sharp_quant::*;

fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

fn vector(n: usize, seed: u64) -> Vec<f32> {
    let mut next = random(seed);
    (0..n).map(|_| next()).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

struct Matrix {
    format: PackedFormat,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
}

impl Matrix {
    fn new(format: PackedFormat, rows: usize, cols: usize, seed: u64) -> Self {
        let x = vector(rows * cols, seed);
        let data = pack_f32(format, ScaleRule::LeastSquares, rows, cols, &x).unwrap();
        // One byte off, so that nothing relies on alignment.
        let mut shifted = vec![0];
        shifted.extend(data);
        Matrix { format, rows, cols, data: shifted }
    }

    fn view(&self) -> PackedRef<'_> {
        PackedRef::new(self.format, self.rows, self.cols, &self.data[1..]).unwrap()
    }

    /// (rows, cols)
    fn values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        unpack(self.view(), &mut out).unwrap();
        out
    }
}

fn activations(x: &[f32], n: usize, cols: usize) -> Activations {
    let mut acts = Activations::new(n, cols).unwrap();
    acts.quantize(x, n, cols).unwrap();
    acts
}

/// What the kernels see of token `t`.
fn seen(format: PackedFormat, acts: &Activations, x: &[f32], t: usize) -> Vec<f32> {
    match format {
        PackedFormat::F16 => x[t * acts.cols()..(t + 1) * acts.cols()].to_vec(),
        _ => acts.dequantized(t).unwrap(),
    }
}

fn product(team: &Team, linear: Linear<'_>, x: &Activations, scratch: &mut Scratch) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.tokens() * linear.rows()];
    matmul(team, &mut [MatOp { linear, out: &mut out }], x, scratch).unwrap();
    out
}

fn close(a: f32, exact: f64, scale: f64) -> bool {
    (f64::from(a) - exact).abs() <= 2e-6 * scale + 1e-12
}

/// Row by row in f64: the product and the sum of magnitudes, against which errors are measured.
fn reference(w: &[f32], x: &[f32]) -> Vec<(f64, f64)> {
    w.chunks(x.len())
        .map(|w| {
            let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            terms.fold((0.0, 0.0), |(s, m), v| (s + v, m + v.abs()))
        })
        .collect()
}

#[test]
fn products_are_right_on_every_instruction_set() {
    for isa in Isa::available() {
        let team = Team::with_isa(2, isa).unwrap();
        for format in PackedFormat::ALL {
            for (rows, cols) in [(1, 1), (16, 32), (17, 31), (50, 100), (33, 260)] {
                for n in [1, 2, 3, 5, 8, 67] {
                    let matrix = Matrix::new(format, rows, cols, 3);
                    let x = vector(n * cols, 5);
                    let acts = activations(&x, n, cols);
                    let out = product(&team, matrix.view().into(), &acts, &mut Scratch::none());
                    for t in 0..n {
                        let exact = reference(&matrix.values(), &seen(format, &acts, &x, t));
                        for (r, (exact, scale)) in exact.into_iter().enumerate() {
                            let got = out[t * rows + r];
                            assert!(
                                close(got, exact, scale),
                                "{isa} {format} {rows} x {cols}, token {t} row {r}: {got} for {exact}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn extreme_bytes_do_not_overflow() {
    // Every weight at the end of its range, every activation too: the largest sums there are.
    for (format, dtype, byte) in [
        (PackedFormat::Q4, DType::Q4_0, 0x00u8),
        (PackedFormat::Q4, DType::Q4_0, 0xff),
        (PackedFormat::Q8, DType::Q8_0, 0x80),
        (PackedFormat::Q8, DType::Q8_0, 0x81),
        (PackedFormat::Q8, DType::Q8_0, 0x7f),
    ] {
        let (rows, cols) = (16, 64);
        let mut blocks = vec![byte; dtype.nbytes(rows * cols).unwrap()];
        for block in blocks.chunks_mut(dtype.block_bytes()) {
            block[..2].copy_from_slice(&0x3c00u16.to_le_bytes());
        }
        let pack = if dtype == DType::Q4_0 { pack_q4_0 } else { pack_q8_0 };
        let data = pack(rows, cols, &blocks).unwrap();
        let matrix = PackedRef::new(format, rows, cols, &data).unwrap();
        let mut w = vec![0.0; rows * cols];
        dequantize(dtype, &blocks, &mut w).unwrap();
        for sign in [1.0f32, -1.0] {
            let n = 5;
            let x: Vec<f32> = (0..n * cols).map(|i| if i % cols < 64 { sign * 127.0 } else { 0.0 }).collect();
            let acts = activations(&x, n, cols);
            for isa in Isa::available() {
                let team = Team::with_isa(1, isa).unwrap();
                for v in product(&team, matrix.into(), &acts, &mut Scratch::none()) {
                    assert_eq!(v, sign * 127.0 * w[0] * cols as f32, "{isa} {format} {byte:#x}");
                }
            }
        }
    }
}

#[test]
fn activations_follow_their_rule() {
    let mut x = vec![0.0f32; 128];
    (x[0], x[1], x[2]) = (-2.0, 1.0, 2.0 * 0.5 / 127.0); // the last is half a step: to even, 0
    x[3] = 2.0 * 1.5 / 127.0; // one and a half: to even, 2
    x[40] = f32::NAN;
    x[70] = f32::NEG_INFINITY;
    let acts = activations(&x, 1, 128);
    let back = acts.dequantized(0).unwrap();
    assert_eq!(back[0], -2.0);
    assert_eq!(back[2], 0.0);
    assert_eq!(back[3], 2.0 * (2.0 / 127.0));
    assert!(back[32..96].iter().all(|v| v.is_nan()), "a block with a NaN or an infinity is NaN");
    assert!(back[96..].iter().all(|&v| v == 0.0), "a block of zeros is zeros");
    let team = Team::new(1).unwrap();
    let matrix = Matrix::new(PackedFormat::Q4, 16, 128, 1);
    let out = product(&team, matrix.view().into(), &acts, &mut Scratch::none());
    assert!(out.iter().all(|v| v.is_nan()), "a NaN does not get lost");
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let team = Team::new(1).unwrap();
    let (w, b) = (Matrix::new(PackedFormat::Q4, 20, 40, 1), Matrix::new(PackedFormat::Q8, 20, 8, 1));
    let a = Matrix::new(PackedFormat::Q8, 8, 40, 1);
    let low_rank = Some(LowRank { a: a.view(), b: b.view() });
    let swapped = Some(LowRank { a: b.view(), b: a.view() });
    let x = activations(&vector(80, 2), 2, 40);
    let mut scratch = Scratch::none();
    let mut run = |linear, out: &mut [f32], x: &Activations| {
        matmul(&team, &mut [MatOp { linear, out }], x, &mut scratch)
    };
    assert!(matches!(run(w.view().into(), &mut [0.0; 39], &x), Err(Error::Length { expected: 40, .. })));
    let narrow = activations(&vector(39, 2), 1, 39);
    assert!(matches!(run(w.view().into(), &mut [0.0; 20], &narrow), Err(Error::Shape { .. })));
    let linear = Linear::with_recovery(Some(w.view()), None, None, low_rank).unwrap();
    assert!(matches!(run(linear, &mut [0.0; 40], &x), Err(Error::Capacity { .. })), "no scratch space");
    let scale = [1.0; 40];
    let linear = Linear::with_recovery(Some(w.view()), None, Some(&scale), None).unwrap();
    assert!(matches!(run(linear, &mut [0.0; 40], &x), Err(Error::Capacity { .. })), "no scratch space");
    assert!(Linear::with_recovery(None, None, None, None).is_err());
    assert!(Linear::with_recovery(Some(w.view()), None, None, swapped).is_err());
    assert!(Linear::with_recovery(Some(w.view()), Some(&scale), None, None).is_err());
    assert!(Linear::with_recovery(Some(w.view()), None, Some(&scale[..39]), None).is_err());
    let mut acts = Activations::new(2, 64).unwrap();
    assert!(acts.quantize(&[0.0; 65], 1, 65).is_err());
    assert!(acts.quantize(&[0.0; 3], 3, 1).is_err());
    assert!(acts.quantize(&[0.0; 3], 2, 2).is_err());
    assert!(Activations::new(usize::MAX, 64).is_err());
    assert!(Activations::new(1, 0).is_err());
}

#[derive(Debug, Clone)]
struct Case {
    formats: [PackedFormat; 3],
    rows: usize,
    cols: usize,
    rank: usize,
    n: usize,
    parts: [bool; 4], // weight, row scale, column scale, low rank
    seed: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let format = prop::sample::select(PackedFormat::ALL.to_vec());
    let shape = (1usize..120, 1usize..150, 1usize..70, prop_oneof![1usize..10, 60usize..70, 128usize..131]);
    ([format.clone(), format.clone(), format], shape, any::<[bool; 4]>(), any::<u64>()).prop_map(
        |(formats, (rows, cols, rank, n), mut parts, seed)| {
            parts[0] |= !parts[3]; // one of the two must be there
            Case { formats, rows, cols, rank, n, parts, seed }
        },
    )
}

struct Parts {
    w: Matrix,
    a: Matrix,
    b: Matrix,
    row: Vec<f32>,
    col: Vec<f32>,
}

impl Parts {
    fn new(c: &Case, seed: u64) -> Self {
        Parts {
            w: Matrix::new(c.formats[0], c.rows, c.cols, seed),
            a: Matrix::new(c.formats[1], c.rank, c.cols, seed ^ 1),
            b: Matrix::new(c.formats[2], c.rows, c.rank, seed ^ 2),
            row: vector(c.rows, seed ^ 3),
            col: vector(c.cols, seed ^ 4),
        }
    }

    fn linear(&self, c: &Case) -> Linear<'_> {
        Linear::with_recovery(
            c.parts[0].then(|| self.w.view()),
            c.parts[1].then_some(&self.row[..]),
            c.parts[2].then_some(&self.col[..]),
            c.parts[3].then(|| LowRank { a: self.a.view(), b: self.b.view() }),
        )
        .unwrap()
    }

    /// The same built up from products of single matrices, each tested by itself above.
    fn by_hand(&self, team: &Team, c: &Case, x: &[f32]) -> Vec<f32> {
        let none = &mut Scratch::none();
        let n = x.len() / c.cols;
        let mut out = vec![0.0; n * c.rows];
        if c.parts[0] {
            let scaled: Vec<f32> = if c.parts[2] {
                x.iter().enumerate().map(|(i, x)| x * self.col[i % c.cols]).collect()
            } else {
                x.to_vec()
            };
            out = product(team, self.w.view().into(), &activations(&scaled, n, c.cols), none);
        }
        if c.parts[1] {
            out.iter_mut().enumerate().for_each(|(i, o)| *o *= self.row[i % c.rows]);
        }
        if c.parts[3] {
            let t = product(team, self.a.view().into(), &activations(x, n, c.cols), none);
            let low = product(team, self.b.view().into(), &activations(&t, n, c.rank), none);
            out.iter_mut().zip(low).for_each(|(o, l)| *o += l);
        }
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn bits_do_not_depend_on_isa_threads_or_batch(c in case()) {
        let (one, two) = (Parts::new(&c, c.seed), Parts::new(&c, c.seed ^ 99));
        let x = vector(c.n * c.cols, c.seed ^ 5);
        let acts = activations(&x, c.n, c.cols);
        let mut scratch = Scratch::new(2, c.n, c.rank, c.cols).unwrap();
        let mut both = |team: &Team, acts: &Activations| {
            let n = acts.tokens();
            let (mut p, mut q) = (vec![f32::NAN; n * c.rows], vec![f32::NAN; n * c.rows]);
            let mut ops = [
                MatOp { linear: one.linear(&c), out: &mut p },
                MatOp { linear: two.linear(&c), out: &mut q },
            ];
            matmul(team, &mut ops, acts, &mut scratch).unwrap();
            let mut hidden = Activations::new(n, c.rows).unwrap();
            gate_up_silu(team, &one.linear(&c), &two.linear(&c), acts, &mut hidden, &mut scratch).unwrap();
            let hidden: Vec<u32> = (0..n).flat_map(|t| bits(&hidden.dequantized(t).unwrap())).collect();
            (bits(&p), bits(&q), hidden)
        };
        let expected = both(&Team::with_isa(1, Isa::scalar()).unwrap(), &acts);
        for isa in Isa::available() {
            for threads in [1, 3] {
                let team = Team::with_isa(threads, isa).unwrap();
                prop_assert_eq!(&both(&team, &acts), &expected, "{} {} threads", isa, threads);
                let mut again = Activations::new(c.n, c.cols).unwrap();
                again.quantize_parallel(&team, &x, c.n, c.cols).unwrap();
                prop_assert_eq!(&both(&team, &again), &expected);
            }
        }
        let team = Team::new(2).unwrap();
        for t in [0, c.n / 2, c.n - 1] {
            let alone = both(&team, &activations(&x[t * c.cols..(t + 1) * c.cols], 1, c.cols));
            let rows = t * c.rows..(t + 1) * c.rows;
            prop_assert_eq!(&alone.0[..], &expected.0[rows.clone()]);
            prop_assert_eq!(&alone.1[..], &expected.1[rows.clone()]);
            prop_assert_eq!(&alone.2[..], &expected.2[rows]);
        }
        // The parts mean what they say.
        let by_hand = one.by_hand(&team, &c, &x);
        for (i, (a, b)) in expected.0.iter().zip(&by_hand).enumerate() {
            let a = f32::from_bits(*a);
            let scale = (c.cols + c.rank * c.cols / 4) as f32;
            prop_assert!((a - b).abs() <= 1e-5 * scale, "output {i}: {a} and {b} by hand");
        }
    }

    #[test]
    fn gate_and_up_give_silu_of_one_times_the_other(c in case()) {
        let (gate, up) = (Parts::new(&c, c.seed), Parts::new(&c, c.seed ^ 7));
        let x = vector(c.n * c.cols, c.seed ^ 5);
        let acts = activations(&x, c.n, c.cols);
        let team = Team::new(2).unwrap();
        let mut scratch = Scratch::new(2, c.n, c.rank, c.cols).unwrap();
        let mut hidden = Activations::new(c.n, c.rows).unwrap();
        gate_up_silu(&team, &gate.linear(&c), &up.linear(&c), &acts, &mut hidden, &mut scratch).unwrap();
        let g = product(&team, gate.linear(&c), &acts, &mut scratch);
        let u = product(&team, up.linear(&c), &acts, &mut scratch);
        prop_assert_eq!((hidden.tokens(), hidden.cols()), (c.n, c.rows));
        for t in 0..c.n {
            let got = hidden.dequantized(t).unwrap();
            for (block, got) in got.chunks(32).enumerate() {
                let from = t * c.rows + 32 * block;
                let exact: Vec<f64> = (from..from + got.len())
                    .map(|i| f64::from(g[i]) / (1.0 + (-f64::from(g[i])).exp()) * f64::from(u[i]))
                    .collect();
                let top = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                for (a, b) in got.iter().zip(exact) {
                    prop_assert!((f64::from(*a) - b).abs() <= top * (0.5 / 127.0 + 1e-5) + 1e-12, "{a} for {b}");
                }
            }
        }
    }

    #[test]
    fn silu_is_accurate_everywhere(x in prop_oneof![-100.0f32..100.0, -1.0f32..1.0]) {
        for isa in Isa::available() {
            let mut gate = [x; 19];
            silu_mul(isa, &mut gate, &[1.0; 19]);
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            for g in gate {
                prop_assert!((f64::from(g) - exact).abs() <= 1e-6 * exact.abs() + 1e-36, "{isa}: silu({x}) = {g}, not {exact}");
            }
        }
    }
}

#[test]
fn integer_matrices_need_no_floats_and_others_say_so() {
    let (rows, cols, team) = (40, 70, Team::new(2).unwrap());
    let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut both = [Activations::new(3, cols).unwrap(), Activations::integers(3, cols).unwrap()];
    for acts in &mut both {
        acts.quantize(&values[..3 * cols], 3, cols).unwrap();
    }
    for format in PackedFormat::ALL {
        let packed = pack_f32(format, ScaleRule::Max, rows, cols, &values).unwrap();
        let linear = Linear::new(PackedRef::new(format, rows, cols, &packed).unwrap());
        let run = |acts| {
            let mut out = vec![0.0; 3 * rows];
            let done = matmul(&team, &mut [MatOp { linear, out: &mut out }], acts, &mut Scratch::none());
            done.map(|()| out)
        };
        let (with, without) = (run(&both[0]).unwrap(), run(&both[1]));
        match format {
            PackedFormat::F16 => assert!(matches!(without, Err(Error::Capacity { .. }))),
            _ => assert_eq!(without.unwrap(), with),
        }
    }
}
