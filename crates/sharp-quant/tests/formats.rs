//! Formats and packed layouts against the `gguf` Python package and against each other.

use proptest::prelude::*;
use sharp_quant::*;
use std::path::Path;

const BLOCK_FORMATS: [DType; 3] = [DType::Q8_0, DType::Q4_0, DType::Q4_1];

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quant").join(name);
    std::fs::read(path).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / 4];
    dequantize(DType::F32, bytes, &mut out).unwrap();
    out
}

fn squared(a: &[f32], b: &[f32], w: Option<&[f32]>) -> f64 {
    let term = |(i, (a, b)): (usize, (&f32, &f32))| {
        w.map_or(1.0, |w| f64::from(w[i])) * (f64::from(*a) - f64::from(*b)).powi(2)
    };
    a.iter().zip(b).enumerate().map(term).sum()
}

fn round_trip(dtype: DType, rule: ScaleRule, x: &[f32], w: Option<&[f32]>) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0; dtype.nbytes(x.len()).unwrap()];
    quantize_weighted(dtype, rule, x, w, &mut bytes).unwrap();
    let mut back = vec![0.0; x.len()];
    dequantize(dtype, &bytes, &mut back).unwrap();
    (bytes, back)
}

#[test]
fn bytes_and_values_equal_gguf() {
    let x = floats(&golden("input.f32"));
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::BF16, DType::F16] {
        let (bytes, back) = round_trip(dtype, ScaleRule::Max, &x, None);
        let expected = golden(&format!("{dtype}.bin"));
        for (i, (a, b)) in
            bytes.chunks(dtype.block_bytes()).zip(expected.chunks(dtype.block_bytes())).enumerate()
        {
            assert_eq!(a, b, "{dtype} block {i}");
        }
        let values = floats(&golden(&format!("{dtype}.f32")));
        for (i, (a, b)) in back.iter().zip(&values).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{dtype} element {i}: {a} and {b}");
        }
    }
}

#[test]
fn formats_that_are_only_read_have_ggufs_values() {
    for dtype in [DType::Q5_0, DType::Q5_1, DType::IQ4_NL, DType::Q4_K, DType::Q5_K, DType::Q6_K] {
        let bytes = golden(&format!("{dtype}.bin"));
        let values = floats(&golden(&format!("{dtype}.f32")));
        assert_eq!(bytes.len(), dtype.nbytes(values.len()).unwrap(), "{dtype}");
        let mut back = vec![0.0; values.len()];
        dequantize(dtype, &bytes, &mut back).unwrap();
        for (i, (a, b)) in back.iter().zip(&values).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "{dtype} element {i}: {a} and {b}");
        }
        let refused = quantize(dtype, ScaleRule::Max, &values, &mut vec![0; bytes.len()]);
        assert!(matches!(refused, Err(Error::ReadOnly { .. })), "{dtype}: {refused:?}");
        let short = dequantize(dtype, &bytes[1..], &mut back);
        assert!(matches!(short, Err(Error::Length { .. })), "{dtype}: {short:?}");
        let part = dtype.nbytes(values.len() - 16);
        assert!(matches!(part, Err(Error::NotWholeBlocks { .. })), "{dtype}: {part:?}");
    }
}

#[test]
fn names_read_back_and_unknown_ones_say_what_is_known() {
    for dtype in DType::ALL {
        assert_eq!(dtype.name().to_lowercase().parse::<DType>().unwrap(), dtype);
    }
    for format in PackedFormat::ALL {
        assert_eq!(format.name().parse::<PackedFormat>().unwrap(), format);
    }
    let message = "Q3_K".parse::<DType>().unwrap_err().to_string();
    assert!(message.contains("Q3_K") && message.contains("Q4_0"), "{message}");
}

#[test]
fn wrong_lengths_are_errors() {
    assert!(matches!(DType::Q4_0.nbytes(33), Err(Error::NotWholeBlocks { .. })));
    assert!(matches!(DType::F32.nbytes(usize::MAX / 2), Err(Error::Overflow { .. })));
    assert!(matches!(
        dequantize(DType::Q8_0, &[0; 33], &mut [0.0; 32]),
        Err(Error::Length { expected: 34, found: 33, .. })
    ));
    assert!(matches!(
        quantize(DType::Q8_0, ScaleRule::Max, &[0.0; 32], &mut [0; 35]),
        Err(Error::Length { .. })
    ));
    for format in PackedFormat::ALL {
        let size = format.nbytes(17, 33).unwrap();
        assert_eq!(size, 4 * format.block_bytes());
        assert!(PackedRef::new(format, 17, 33, &vec![0; size]).is_ok());
        assert!(PackedRef::new(format, 17, 33, &vec![0; size - 1]).is_err());
        assert!(matches!(format.nbytes(usize::MAX, usize::MAX), Err(Error::Overflow { .. })));
        assert!(matches!(format.nbytes(0, 5), Err(Error::Empty { .. })));
        assert!(pack_f32(format, ScaleRule::Max, usize::MAX, 2, &[]).is_err());
    }
    assert!(pack_q4_0(1, 33, &[0; 36]).is_err());
    assert!(pack_q8_0(2, 32, &[0; 34]).is_err());
}

#[test]
fn what_is_not_finite_is_refused_where_it_stands() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![0.25; 3 * 64];
        x[100] = bad;
        for dtype in BLOCK_FORMATS {
            let mut out = vec![0; dtype.nbytes(x.len()).unwrap()];
            for rule in [ScaleRule::Max, ScaleRule::LeastSquares] {
                let error = quantize(dtype, rule, &x, &mut out).unwrap_err();
                assert!(matches!(error, Error::NotFinite { index: 100, .. }), "{error}");
            }
        }
        for format in PackedFormat::ALL {
            let error = pack_f32(format, ScaleRule::Max, 3, 64, &x).unwrap_err();
            assert!(matches!(error, Error::NotFinite { index: 100, .. }), "{format}: {error}");
            let team = Team::new(2).unwrap();
            let mut out = vec![0; format.nbytes(3, 64).unwrap()];
            let error = pack_f32_parallel(&team, format, ScaleRule::Max, (3, 64), &x, None, &mut out);
            assert!(matches!(error, Err(Error::NotFinite { index: 100, .. })), "{format}");
        }
    }
    let mut out = [0; 18];
    assert!(
        quantize(DType::Q4_0, ScaleRule::Max, &[1e6; 32], &mut out).is_err(),
        "the scale does not fit f16"
    );
}

#[test]
fn least_squares_helps_gaussian_weights() {
    let x: Vec<f32> = floats(&golden("input.f32"))[..24 * 32].to_vec();
    for (dtype, gain) in [(DType::Q4_0, 0.95), (DType::Q4_1, 0.95), (DType::Q8_0, 0.999)] {
        let plain = squared(&x, &round_trip(dtype, ScaleRule::Max, &x, None).1, None);
        let fitted = squared(&x, &round_trip(dtype, ScaleRule::LeastSquares, &x, None).1, None);
        assert!(fitted < gain * plain, "{dtype}: {fitted} after {plain}");
    }
}

#[test]
fn the_search_finds_nearly_the_best_scale_there_is() {
    let x: Vec<f32> = floats(&golden("input.f32"))[..24 * 32].to_vec();
    let mut best = 0.0;
    for block in x.chunks(32) {
        let top = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let error = |scale: f32| {
            let stored = block.iter().map(|v| scale * (v / scale).round().clamp(-8.0, 7.0));
            squared(block, &stored.collect::<Vec<_>>(), None)
        };
        let scales = (1..4000).flat_map(|i| [1.0, -1.0].map(|sign| sign * top / 4.0 * i as f32 / 4000.0));
        best += scales.map(error).fold(f64::INFINITY, f64::min);
    }
    let fitted = squared(&x, &round_trip(DType::Q4_0, ScaleRule::LeastSquares, &x, None).1, None);
    assert!(fitted < 1.01 * best, "{fitted} where {best} is possible");
}

/// Blocks of very different sizes, with zeros and repeated values among them.
fn values(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    let one = prop_oneof![
        4 => -1.0f32..1.0,
        1 => Just(0.0f32),
        1 => (-20i32..10, -1.0f32..1.0).prop_map(|(e, m)| m * 2f32.powi(e)),
    ];
    prop::collection::vec(one, len)
}

fn matrix() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    (1usize..40, 1usize..100).prop_flat_map(|(r, c)| (Just(r), Just(c), values(r * c)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_search_never_loses_to_the_plain_rule(x in values(64), w in values(64), weighted: bool) {
        let w: Vec<f32> = w.iter().map(|w| w.abs()).collect();
        let w = weighted.then_some(&w[..]);
        for dtype in BLOCK_FORMATS {
            let plain = squared(&x, &round_trip(dtype, ScaleRule::Max, &x, None).1, w);
            let fitted = squared(&x, &round_trip(dtype, ScaleRule::LeastSquares, &x, w).1, w);
            // The search compares errors in f32.
            prop_assert!(fitted <= plain * (1.0 + 1e-5) + 1e-30, "{dtype}: {fitted} after {plain}");
        }
    }

    #[test]
    fn errors_stay_within_half_a_step(x in values(32)) {
        let top = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let (_, back) = round_trip(DType::Q8_0, ScaleRule::Max, &x, None);
        // Half a step, and the rounding of the scale to 11 bits over up to 127 steps; below the smallest f16,
        // 2^-25 a step.
        let bound = top / 254.0 + top / 2048.0 + 127.0 * 2f32.powi(-25);
        for (a, b) in x.iter().zip(&back) {
            prop_assert!((a - b).abs() <= bound, "{a} became {b}, bound {bound}");
        }
    }

    #[test]
    fn packing_is_quantising_and_rearranging((rows, cols, x) in matrix()) {
        for (format, dtype) in [(PackedFormat::Q4, DType::Q4_0), (PackedFormat::Q8, DType::Q8_0)] {
            for rule in [ScaleRule::Max, ScaleRule::LeastSquares] {
                let packed = pack_f32(format, rule, rows, cols, &x).unwrap();
                let mut back = vec![0.0; rows * cols];
                unpack(PackedRef::new(format, rows, cols, &packed).unwrap(), &mut back).unwrap();
                let mut rearranged = Vec::new();
                for (r, row) in x.chunks(cols).enumerate() {
                    let mut padded = row.to_vec();
                    padded.resize(cols.next_multiple_of(32), 0.0);
                    let (bytes, expected) = round_trip(dtype, rule, &padded, None);
                    rearranged.extend(bytes);
                    prop_assert_eq!(&back[r * cols..(r + 1) * cols], &expected[..cols]);
                }
                if cols % 32 == 0 && rows % 16 == 0 {
                    let pack = if dtype == DType::Q4_0 { pack_q4_0 } else { pack_q8_0 };
                    prop_assert_eq!(&pack(rows, cols, &rearranged).unwrap(), &packed);
                }
            }
        }
        let packed = pack_f32(PackedFormat::F16, ScaleRule::Max, rows, cols, &x).unwrap();
        let mut back = vec![0.0; rows * cols];
        unpack(PackedRef::new(PackedFormat::F16, rows, cols, &packed).unwrap(), &mut back).unwrap();
        prop_assert_eq!(back, round_trip(DType::F16, ScaleRule::Max, &x, None).1);
    }

    #[test]
    fn packing_in_parallel_or_in_pieces_is_the_same((rows, cols, x) in matrix(), piece in 1usize..3) {
        let team = Team::new(3).unwrap();
        for format in PackedFormat::ALL {
            let whole = pack_f32(format, ScaleRule::LeastSquares, rows, cols, &x).unwrap();
            let mut parallel = vec![0; whole.len()];
            pack_f32_parallel(&team, format, ScaleRule::LeastSquares, (rows, cols), &x, None, &mut parallel).unwrap();
            prop_assert_eq!(&whole, &parallel);
            let pieces: Vec<u8> = x
                .chunks(piece * 16 * cols)
                .flat_map(|x| pack_f32(format, ScaleRule::LeastSquares, x.len() / cols, cols, x).unwrap())
                .collect();
            prop_assert_eq!(&whole, &pieces);
        }
    }

    #[test]
    fn ggml_blocks_of_odd_row_counts_keep_their_numbers(rows in 1usize..40, blocks in 1usize..4, seed: u64) {
        let cols = 32 * blocks;
        let mut state = seed | 1;
        let mut random = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; (state >> 32) as u8 };
        for (dtype, format) in [(DType::Q4_0, PackedFormat::Q4), (DType::Q8_0, PackedFormat::Q8)] {
            let mut bytes: Vec<u8> = (0..dtype.nbytes(rows * cols).unwrap()).map(|_| random()).collect();
            for block in bytes.chunks_mut(dtype.block_bytes()) {
                block[1] &= 0x3b; // a finite scale
            }
            let packed = if dtype == DType::Q4_0 { pack_q4_0 } else { pack_q8_0 }(rows, cols, &bytes).unwrap();
            let (mut a, mut b) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
            dequantize(dtype, &bytes, &mut a).unwrap();
            unpack(PackedRef::new(format, rows, cols, &packed).unwrap(), &mut b).unwrap();
            prop_assert_eq!(a, b);
        }
    }
}
