//! Second moments of a matrix's input, and what calibrated rounding takes from them.

use crate::{
    dtype::BLOCK,
    error::{Error, Result, check_len},
    float::{LANES, Lane, tile},
    team::Team,
    vectorised::vectorised,
};

/// Tokens whose products are summed in f32 before they join the f64 sums.
const TOKENS: usize = 512;
/// Columns that the factorisation eliminates at once.
const PANEL: usize = 16;
/// Rows that share each load of a panel.
const SHARED_ROWS: usize = 4;

/// The sum of `weight * x x^T` over inputs `x` (cols) of a matrix: (cols, cols), symmetric.
///
/// The bits do not depend on the number of threads nor on the instruction set.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    cols: usize,
    /// Row-major (cols, cols); what lies above the diagonal is not kept up.
    sums: Vec<f64>,
}

impl Gram {
    /// No inputs yet.
    ///
    /// # Errors
    /// [`Error::Empty`] and [`Error::Overflow`].
    pub fn new(cols: usize) -> Result<Self> {
        if cols == 0 {
            return Err(Error::Empty { rows: cols, cols });
        }
        Ok(Gram { cols, sums: vec![0.0; square(cols)?] })
    }

    /// A matrix made elsewhere: row-major (cols, cols), of which the part below the diagonal counts.
    ///
    /// # Errors
    /// [`Error::Length`] if `sums` is not cols x cols, and those of [`Gram::new`].
    pub fn from_sums(cols: usize, sums: Vec<f64>) -> Result<Self> {
        if cols == 0 {
            return Err(Error::Empty { rows: cols, cols });
        }
        check_len("second moments in elements", square(cols)?, sums.len())?;
        Ok(Gram { cols, sums })
    }

    /// Length of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The sum for columns `i` and `j`; 0 if there are no such columns.
    pub fn get(&self, i: usize, j: usize) -> f64 {
        let (row, col) = (i.max(j), i.min(j));
        if row < self.cols { self.sums[row * self.cols + col] } else { 0.0 }
    }

    /// Adds the inputs `x` (n, cols), row-major, each with the same weight.
    ///
    /// # Errors
    /// [`Error::Length`] if `x` is not whole inputs.
    pub fn add(&mut self, team: &Team, x: &[f32], weight: f64) -> Result<()> {
        let cols = self.cols;
        check_len("inputs in elements", x.len() / cols * cols, x.len())?;
        let isa = team.isa();
        let most = TOKENS.min(x.len() / cols);
        // Twice: column after column, and 16 columns interleaved.
        let mut columns = vec![0.0f32; cols.next_multiple_of(LANES) * most];
        let mut panels = vec![[0.0f32; LANES]; cols.div_ceil(LANES) * most];
        for x in x.chunks(TOKENS * cols) {
            let n = x.len() / cols;
            let columns = &mut columns[..cols.next_multiple_of(LANES) * n];
            let panels = &mut panels[..cols.div_ceil(LANES) * n];
            team.chunks_mut(columns, n, &|c, column| {
                for (to, x) in column.iter_mut().zip(x.chunks_exact(cols)) {
                    *to = x.get(c).copied().unwrap_or_default();
                }
            });
            team.chunks_mut(panels, n, &|p, panel| {
                let from = p * LANES;
                let width = LANES.min(cols - from);
                for (to, x) in panel.iter_mut().zip(x.chunks_exact(cols)) {
                    to[..width].copy_from_slice(&x[from..from + width]);
                    to[width..].fill(0.0);
                }
            });
            let (columns, panels) = (&*columns, &*panels);
            team.chunks_mut(&mut self.sums, LANES * cols, &|i, rows| {
                let own = &columns[i * LANES * n..(i + 1) * LANES * n];
                for (j, panel) in panels.chunks_exact(n).enumerate().take(i + 1) {
                    let mut sums = [[0.0f32; LANES]; LANES];
                    products(isa, panel, own, &mut sums);
                    let width = LANES.min(cols - j * LANES);
                    for (row, sums) in rows.chunks_exact_mut(cols).zip(&sums) {
                        for (sum, v) in row[j * LANES..j * LANES + width].iter_mut().zip(sums) {
                            *sum += weight * f64::from(*v);
                        }
                    }
                }
            });
        }
        Ok(())
    }

    /// Adds what another one has summed.
    ///
    /// # Errors
    /// [`Error::Length`] if it is of inputs of another length.
    pub fn merge(&mut self, other: &Gram) -> Result<()> {
        check_len("second moments in columns", self.cols, other.cols)?;
        for (sum, more) in self.sums.iter_mut().zip(&other.sums) {
            *sum += more;
        }
        Ok(())
    }
}

fn square(cols: usize) -> Result<usize> {
    cols.checked_mul(cols).ok_or(Error::Overflow { what: "second moments", rows: cols, cols })
}

#[inline(always)]
fn products_body<const HW: bool>(panel: &[Lane], columns: &[f32], out: &mut [Lane; LANES]) {
    let n = panel.len();
    let (six, rest) = out.as_chunks_mut::<6>();
    for (i, out) in six.iter_mut().enumerate() {
        *out = tile::<6>(panel, &columns[i * 6 * n..], n);
    }
    if let [a, b, c, d] = rest {
        [*a, *b, *c, *d] = tile::<4>(panel, &columns[12 * n..], n);
    }
}

vectorised! {
    /// `out[i][j]` = the sum over tokens `t` of `columns[i][t] * panel[t][j]`, in their order.
    fn products / products_body [] (panel: &[Lane], columns: &[f32], out: &mut [Lane; LANES])
}

/// How the rounding errors of a matrix's columns make up its output's error, made from a [`Gram`] `H`.
///
/// With `H = M D M^T`, `M` upper triangular with ones on its diagonal and `D` diagonal, the squared error of
/// the output is the sum over columns `j` of `D[j] * (E M)[j]^2`, where `E` is the error of a row of weights.
/// So a column is rounded best when the errors of the columns before it, times `M`, have been added to it.
/// This is GPTQ's order of computation (Frantar et al., 2022, arXiv 2210.17323) in the form that Chee et al.
/// (2023, arXiv 2307.13304) show to be equal; it needs no inverse.
pub struct Feedback {
    cols: usize,
    /// `D` (cols, padded to whole blocks with zeros).
    pub(crate) importance: Vec<f32>,
    /// For each block of 32 columns, column after column: the rows of `M` up to the block's end.
    blocks: Vec<f32>,
}

impl std::fmt::Debug for Feedback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feedback({} columns)", self.cols)
    }
}

impl Feedback {
    /// Factors `gram`, to whose diagonal `damping` times its mean is added first (GPTQ's value is 0.01).
    /// Columns that are zero in every input get and give no feedback; if all are, every column counts alike.
    ///
    /// # Errors
    /// [`Error::Moments`] if the sums are not finite, a diagonal one is negative, or, damped, they are not
    /// positive definite.
    pub fn new(team: &Team, gram: Gram, damping: f64) -> Result<Self> {
        let Gram { cols: n, sums: mut a } = gram;
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(Error::Moments { what: "the damping is not a number from 0 on", column: 0 });
        }
        let mut trace = 0.0;
        for (column, row) in a.chunks_exact(n).enumerate() {
            if row[..=column].iter().any(|v| !v.is_finite()) {
                return Err(Error::Moments { what: "not finite", column });
            }
            if row[column] < 0.0 {
                return Err(Error::Moments { what: "negative on the diagonal", column });
            }
            trace += row[column];
        }
        if !trace.is_finite() {
            return Err(Error::Moments { what: "too large to be summed", column: n - 1 });
        }
        // In units of the mean, so that the sums' own scale does not matter to f32.
        let unit = if trace > 0.0 { n as f64 / trace } else { 1.0 };
        let shift = if trace > 0.0 { damping } else { 1.0 };
        for (i, row) in a.chunks_exact_mut(n).enumerate() {
            row[..=i].iter_mut().for_each(|v| *v *= unit);
            row[i] += shift;
            if row[i] == 0.0 {
                // A dead column, undamped.
                row[i] = 1.0;
            }
        }
        // Cholesky's order is from the first column on, M is wanted from the last: turn both ways round. What
        // was below the diagonal is then above.
        mirror(&mut a, n);
        a.reverse();
        factor(team, &mut a, n).map_err(|i| Error::Moments {
            what: "not positive definite; more inputs or more damping would help",
            column: n - 1 - i,
        })?;
        let count = n.div_ceil(BLOCK);
        let mut importance = vec![0.0; count * BLOCK];
        for (j, d) in importance.iter_mut().enumerate().take(n) {
            let i = n - 1 - j;
            *d = (a[i * n + i] * a[i * n + i]) as f32;
        }
        let mut blocks = vec![0.0; count * (count + 1) / 2 * BLOCK * BLOCK];
        let mut rest = &mut blocks[..];
        for b in 0..count {
            let height = (b + 1) * BLOCK;
            let (block, more) = rest.split_at_mut(height * BLOCK);
            rest = more;
            let a = &a;
            team.chunks_mut(block, height, &|j, column| {
                let j = b * BLOCK + j;
                for (k, m) in column.iter_mut().enumerate().take(if j < n { j } else { 0 }) {
                    let (i, p) = (n - 1 - k, n - 1 - j);
                    *m = (a[i * n + p] / a[p * n + p]) as f32;
                }
            });
        }
        Ok(Feedback { cols: n, importance, blocks })
    }

    /// Length of an input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `M` of block `b`: for each of its columns, the entries in rows 0 to the block's end.
    pub(crate) fn block(&self, b: usize) -> &[f32] {
        let from = b * (b + 1) / 2 * BLOCK * BLOCK;
        &self.blocks[from..from + (b + 1) * BLOCK * BLOCK]
    }
}

/// Copies what is below the diagonal of `a` (n, n) to above it.
fn mirror(a: &mut [f64], n: usize) {
    for i in 1..n {
        let (above, row) = a.split_at_mut(i * n);
        for (j, v) in row[..i].iter().enumerate() {
            above[j * n + i] = *v;
        }
    }
}

/// Cholesky's factor `L` of the positive definite `a` (n, n), on and below the diagonal, in its place. Fails
/// with the row where it is not positive definite.
fn factor(team: &Team, a: &mut [f64], n: usize) -> std::result::Result<(), usize> {
    let isa = team.isa();
    let mut panel = Vec::new();
    for k in (0..n).step_by(PANEL) {
        let width = PANEL.min(n - k);
        // The panel's rows, transposed: (k, 16).
        panel.clear();
        panel.resize(k, [0.0; PANEL]);
        for (j, row) in a[k * n..(k + width) * n].chunks_exact(n).enumerate() {
            for (to, v) in panel.iter_mut().zip(row) {
                to[j] = *v;
            }
        }
        let mut corner = Corner { below: [[0.0; PANEL]; PANEL], diagonal: [1.0; PANEL] };
        let own = &mut a[k * n..(k + width) * n];
        for row in own.chunks_exact_mut(n) {
            let mut sums = [0.0; PANEL];
            sums[..width].copy_from_slice(&row[k..k + width]);
            subtract(isa, row, &panel, &mut sums);
            row[k..k + width].copy_from_slice(&sums[..width]);
        }
        for j in 0..width {
            for i in j..width {
                let mut sum = own[i * n + k + j];
                for p in 0..j {
                    sum = (-own[i * n + k + p]).mul_add(own[j * n + k + p], sum);
                }
                if i == j {
                    if sum <= 0.0 || !sum.is_finite() {
                        return Err(k + j);
                    }
                    corner.diagonal[j] = sum.sqrt();
                    own[i * n + k + j] = corner.diagonal[j];
                } else {
                    own[i * n + k + j] = sum / corner.diagonal[j];
                    corner.below[j][i] = own[i * n + k + j];
                }
            }
        }
        let (panel, corner) = (&panel, &corner);
        team.chunks_mut(&mut a[(k + width) * n..], 8 * SHARED_ROWS * n, &|_, rows| {
            eliminate(isa, rows, n, panel, corner);
        });
    }
    Ok(())
}

/// The factored square where a panel crosses the diagonal.
struct Corner {
    /// `below[p][j]` = `L[j][p]`, zero for `j <= p`.
    below: [[f64; PANEL]; PANEL],
    diagonal: [f64; PANEL],
}

#[inline(always)]
fn subtract_body<const HW: bool>(row: &[f64], panel: &[[f64; PANEL]], sums: &mut [f64; PANEL]) {
    let mut acc = *sums;
    for (v, p) in row.iter().zip(panel) {
        for l in 0..PANEL {
            acc[l] = (-v).mul_add(p[l], acc[l]);
        }
    }
    *sums = acc;
}

vectorised! {
    /// Takes the products of a row with the panel's rows from `sums`.
    fn subtract / subtract_body [] (row: &[f64], panel: &[[f64; PANEL]], sums: &mut [f64; PANEL])
}

#[inline(always)]
fn eliminate_body<const HW: bool>(rows: &mut [f64], n: usize, panel: &[[f64; PANEL]], corner: &Corner) {
    let k = panel.len();
    for rows in rows.chunks_mut(SHARED_ROWS * n) {
        let count = rows.len() / n;
        let mut acc = [[0.0f64; PANEL]; SHARED_ROWS];
        for (acc, row) in acc.iter_mut().zip(rows.chunks_exact(n)) {
            acc.copy_from_slice(&row[k..k + PANEL]);
        }
        if count == SHARED_ROWS {
            let (a, rest) = rows.split_at(n);
            let (b, rest) = rest.split_at(n);
            let (c, d) = rest.split_at(n);
            let each = a.iter().zip(b).zip(c).zip(d).zip(panel);
            for ((((a, b), c), d), p) in each {
                let v = [-a, -b, -c, -d];
                for r in 0..SHARED_ROWS {
                    for l in 0..PANEL {
                        acc[r][l] = v[r].mul_add(p[l], acc[r][l]);
                    }
                }
            }
        } else {
            for (acc, row) in acc.iter_mut().zip(rows.chunks_exact(n)) {
                subtract_body::<HW>(row, panel, acc);
            }
        }
        for (acc, row) in acc.iter_mut().zip(rows.chunks_exact_mut(n)) {
            for p in 0..PANEL {
                acc[p] /= corner.diagonal[p];
                let v = -acc[p];
                for (acc, below) in acc.iter_mut().zip(&corner.below[p]) {
                    *acc = v.mul_add(*below, *acc);
                }
            }
            row[k..k + PANEL].copy_from_slice(acc);
        }
    }
}

vectorised! {
    /// The panel's columns of `L` for rows below it.
    fn eliminate / eliminate_body [] (rows: &mut [f64], n: usize, panel: &[[f64; PANEL]], corner: &Corner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn random(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
        }
    }

    #[test]
    fn sums_are_those_of_the_definition_and_do_not_depend_on_threads() {
        for (n, cols) in [(1, 1), (3, 17), (600, 40), (513, 33)] {
            let mut next = random(cols as u64);
            let x: Vec<f32> = (0..n * cols).map(|_| next() as f32).collect();
            let grams = [1, 2].map(|threads| {
                let mut gram = Gram::new(cols).unwrap();
                gram.add(&Team::new(threads).unwrap(), &x, 0.5).unwrap();
                gram
            });
            let mut scalar = Gram::new(cols).unwrap();
            scalar.add(&Team::with_isa(1, Isa::scalar()).unwrap(), &x, 0.5).unwrap();
            assert!(grams[0] == grams[1] && grams[0] == scalar);
            for i in 0..cols {
                for j in 0..cols {
                    let expected: f64 = x.chunks(cols).map(|x| 0.5 * f64::from(x[i]) * f64::from(x[j])).sum();
                    let found = grams[0].get(i, j);
                    assert!((found - expected).abs() < 1e-5 * n as f64, "{i} {j}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn the_factors_multiply_to_the_damped_sums() {
        for cols in [1, 5, 16, 31, 32, 33, 70, 200] {
            let mut next = random(cols as u64 + 7);
            let x: Vec<f32> = (0..300 * cols).map(|_| next() as f32).collect();
            let made = [1, 3].map(|threads| {
                let team = Team::new(threads).unwrap();
                let mut gram = Gram::new(cols).unwrap();
                gram.add(&team, &x, 1.0).unwrap();
                (gram.clone(), Feedback::new(&team, gram, 0.01).unwrap())
            });
            assert!(made[0].1.blocks == made[1].1.blocks && made[0].1.importance == made[1].1.importance);
            let (gram, feedback) = &made[0];
            let mean = (0..cols).map(|i| gram.get(i, i)).sum::<f64>() / cols as f64;
            let m = |k: usize, j: usize| {
                let v = if k < j {
                    feedback.block(j / BLOCK)[j % BLOCK * (j / BLOCK + 1) * BLOCK + k]
                } else {
                    f32::from(u8::from(k == j))
                };
                f64::from(v)
            };
            for i in 0..cols {
                for j in 0..=i {
                    let found: f64 =
                        (i..cols).map(|p| m(i, p) * f64::from(feedback.importance[p]) * m(j, p)).sum();
                    let damped = gram.get(i, j) / mean + if i == j { 0.01 } else { 0.0 };
                    assert!((found - damped).abs() < 1e-5, "{cols}: {i} {j}: {found} {damped}");
                }
            }
        }
    }

    #[test]
    fn impossible_moments_are_refused_and_dead_columns_are_not() {
        let team = Team::new(1).unwrap();
        let refused = |sums: &[f64], damping: f64| {
            let gram = Gram::from_sums(2, sums.to_vec()).unwrap();
            Feedback::new(&team, gram, damping).unwrap_err().to_string()
        };
        assert!(refused(&[1.0, 0.0, f64::NAN, 1.0], 0.01).contains("column 1: not finite"));
        assert!(refused(&[-1.0, 0.0, 0.0, 1.0], 0.01).contains("column 0: negative"));
        assert!(refused(&[1.0, 0.0, 3.0, 1.0], 0.01).contains("not positive definite"));
        assert!(refused(&[1.0, 0.0, 0.0, 1.0], f64::NAN).contains("damping"));
        assert!(refused(&[f64::MAX, 0.0, 0.0, f64::MAX], 0.01).contains("too large"));
        assert!(Gram::from_sums(2, vec![0.0; 3]).is_err() && Gram::new(0).is_err());
        assert!(Gram::new(2).unwrap().add(&team, &[1.0; 3], 1.0).is_err());
        assert!(Gram::new(2).unwrap().merge(&Gram::new(3).unwrap()).is_err());
        for damping in [0.0, 0.01] {
            let gram = Gram::from_sums(2, vec![4.0, 0.0, 0.0, 0.0]).unwrap();
            let made = Feedback::new(&team, gram, damping).unwrap();
            assert_eq!(made.block(0)[BLOCK], 0.0);
            let none = Feedback::new(&team, Gram::new(2).unwrap(), damping).unwrap();
            assert_eq!(none.importance[..2], [1.0, 1.0]);
        }
    }
}
