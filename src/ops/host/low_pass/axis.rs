//! The waves of one axis: what a line is made of, and back.
//!
//! `cos(k y)` and `sin(k y)` are even and odd about 0, and both are about a quarter of a turn too,
//! even or odd as `k` is. So a line is first folded: the four places that mirror each other give
//! four sums, one a symmetry, and a wave is then a sum over a quarter of the places of one of them.
//! That is a quarter of the multiply-adds, and all that a fast transform's first two steps save.
//! An axis of odd length has two mirrored places only; zeros stand in for the others.
//!
//! Wave `m` has frequency `ceil(m / 2)`: 1, sin y, cos y, sin 2y, cos 2y, ... and so symmetry `m % 4`.
//! Lines lie across rows: [`COLUMNS`] of them are worked on at once.
use super::vector::{COLUMNS, Row, Vector};
use std::f64::consts::TAU;

/// A row of each symmetry.
pub type Quad = [Row; 4];

pub const ZERO: Quad = [Row::ZERO; 4];

pub struct Axis {
    len: usize,
    /// Those that are left when the line is folded.
    pub places: usize,
    /// Up to the highest frequency.
    pub waves: usize,
    there: [Matrix; 4],
    back: [Matrix; 4],
}

/// Waves `0 .. waves` of a symmetry.
fn of_symmetry(symmetry: usize, waves: usize) -> usize {
    waves.saturating_sub(symmetry).div_ceil(4)
}

impl Axis {
    /// `sums`: as many as the registers hold at once.
    pub fn new(len: usize, highest: usize, sums: usize) -> Self {
        let is_even = len.is_multiple_of(2);
        let places = if is_even { len / 4 + 1 } else { len / 2 + 1 };
        let waves = 2 * highest + 1;
        let wave = |m: usize, place: usize| {
            let turn = TAU * (m.div_ceil(2) * place % len) as f64 / len as f64;
            if m.is_multiple_of(2) { turn.cos() } else { turn.sin() }
        };
        let share = |m: usize, place: usize| {
            // A place that is its own mirror image has been counted twice.
            let is_twice = place == 0 || (is_even && 4 * place == len);
            // A wave's mean square is a half, that of the constant 1.
            let weight = if m == 0 { 1.0 } else { 2.0 };
            wave(m, place) * if is_twice { 0.5 } else { 1.0 } * weight / len as f64
        };
        Self {
            len,
            places,
            waves,
            there: std::array::from_fn(|s| {
                let n = of_symmetry(s, waves);
                Matrix::new(n, places, sums, |i, place| share(4 * i + s, place))
            }),
            back: std::array::from_fn(|s| {
                let n = of_symmetry(s, waves);
                Matrix::new(places, n, sums, |place, i| wave(4 * i + s, place))
            }),
        }
    }

    /// How much there is of the first `waves` waves.
    #[inline(always)]
    pub unsafe fn there<V: Vector>(&self, folded: &[Quad], waves: usize, out: &mut [Quad]) {
        for (s, matrix) in self.there.iter().enumerate() {
            let n = of_symmetry(s, waves);
            unsafe { matrix.times::<V>(s, &folded[..self.places], &mut out[..n]) };
        }
    }

    /// The sum of the first `waves` waves.
    #[inline(always)]
    pub unsafe fn back<V: Vector>(&self, amounts: &[Quad], waves: usize, out: &mut [Quad]) {
        for (s, matrix) in self.back.iter().enumerate() {
            let n = of_symmetry(s, waves);
            unsafe { matrix.times::<V>(s, &amounts[..n], &mut out[..self.places]) };
        }
    }

    /// # Safety
    /// As [`Vector`]. Element `y` of the first line is at `x + y * stride`, and `readable` elements
    /// can be read from `x`, those of the first line among them.
    #[inline(always)]
    pub unsafe fn fold<V: Vector>(
        &self,
        x: *const f32,
        stride: usize,
        readable: usize,
        folded: &mut [Quad],
    ) {
        let (len, is_even) = (self.len, self.len.is_multiple_of(2));
        for (y, quad) in folded[..self.places].iter_mut().enumerate() {
            let far = if y == 0 { 0 } else { len - y };
            unsafe {
                let near = load::<V>(x, y * stride, readable);
                let far = load::<V>(x, far * stride, readable);
                let (before, behind) = match is_even {
                    true => (
                        load::<V>(x, (len / 2 - y) * stride, readable),
                        load::<V>(x, (len / 2 + y) * stride, readable),
                    ),
                    false => (V::zero(), V::zero()),
                };
                let sums = symmetries([near, before, behind, far]);
                for (row, sum) in quad.iter_mut().zip(sums) {
                    sum.store(row.as_mut_ptr());
                }
            }
        }
    }

    /// # Safety
    /// As [`Vector`]. Element `y` of line `j` is at `x + y * stride + j`, for `columns` lines, and
    /// may be written.
    #[inline(always)]
    pub unsafe fn unfold<V: Vector>(
        &self,
        folded: &[Quad],
        x: *mut f32,
        stride: usize,
        columns: usize,
    ) {
        let (len, is_even) = (self.len, self.len.is_multiple_of(2));
        for (y, [a, b, c, d]) in folded[..self.places].iter().enumerate() {
            unsafe {
                let [a, b] = [V::load(a.as_ptr()), V::load(b.as_ptr())];
                let [c, d] = [V::load(c.as_ptr()), V::load(d.as_ptr())];
                let [near, before, behind, far] = symmetries([a, b, c, d]);
                store(near, x.add(y * stride), columns);
                if y > 0 {
                    store(far, x.add((len - y) * stride), columns);
                }
                if is_even {
                    store(before, x.add((len / 2 - y) * stride), columns);
                    store(behind, x.add((len / 2 + y) * stride), columns);
                }
            }
        }
    }
}

/// Of places `y`, `n/2 - y`, `n/2 + y` and `n - y`: even about 0 and the quarter, odd about 0, odd
/// about the quarter, odd about both. Twice, it is four times what it was.
#[inline(always)]
unsafe fn symmetries<V: Vector>([near, before, behind, far]: [V; 4]) -> [V; 4] {
    unsafe {
        let (first, second) = (near.add(before), behind.add(far));
        let (first_, second_) = (near.sub(before), behind.sub(far));
        [first.add(second), first.sub(second), first_.sub(second_), first_.add(second_)]
    }
}

/// What lies behind the last column is of no account.
#[inline(always)]
unsafe fn load<V: Vector>(x: *const f32, at: usize, readable: usize) -> V {
    unsafe {
        if at + COLUMNS <= readable {
            return V::load(x.add(at));
        }
        let mut row = Row::ZERO;
        let bytes = 4 * (readable - at);
        row.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(x.add(at).cast(), bytes);
        V::load(row.as_ptr())
    }
}

#[inline(always)]
unsafe fn store<V: Vector>(row: V, to: *mut f32, columns: usize) {
    unsafe {
        if columns == COLUMNS {
            return row.store(to);
        }
        let mut all = Row::ZERO;
        row.store(all.as_mut_ptr());
        let (from, to) = (all.as_ptr().cast::<u8>(), to.cast::<u8>());
        // Two pieces that may overlap: a copy of any length would be a call, for every row.
        let (piece, last) = match columns {
            8.. => (32, 4 * columns - 32),
            4.. => (16, 4 * columns - 16),
            _ => return to.copy_from_nonoverlapping(from, 4 * columns),
        };
        match piece {
            32 => {
                to.copy_from_nonoverlapping(from, 32);
                to.add(last).copy_from_nonoverlapping(from.add(last), 32);
            }
            _ => {
                to.copy_from_nonoverlapping(from, 16);
                to.add(last).copy_from_nonoverlapping(from.add(last), 16);
            }
        }
    }
}

/// In tiles of as many rows as there are sums in registers, each column by column.
struct Matrix {
    rows: usize,
    columns: usize,
    sums: usize,
    tiles: Vec<f32>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, sums: usize, at: impl Fn(usize, usize) -> f64) -> Self {
        let mut matrix = Self { rows, columns, sums, tiles: Vec::with_capacity(rows * columns) };
        let mut first = 0;
        while first < rows {
            let tile = first..first + matrix.tile(first);
            for column in 0..columns {
                matrix.tiles.extend(tile.clone().map(|row| at(row, column) as f32));
            }
            first = tile.end;
        }
        matrix
    }

    /// Rows of the tile that begins with `first`; all are about as high.
    fn tile(&self, first: usize) -> usize {
        let rest = self.rows - first;
        rest.div_ceil(rest.div_ceil(self.sums))
    }

    /// The first rows of the product with the rows of `symmetry`; missing ones are 0.
    #[inline(always)]
    unsafe fn times<V: Vector>(&self, symmetry: usize, x: &[Quad], out: &mut [Quad]) {
        let mut first = 0;
        while first < out.len() {
            let rows = self.tile(first);
            let tile = &self.tiles[first * self.columns..][..rows * self.columns];
            let end = out.len().min(first + rows);
            let out = &mut out[first..end];
            unsafe {
                match rows {
                    1 => times_tile::<V, 1>(tile, symmetry, x, out),
                    2 => times_tile::<V, 2>(tile, symmetry, x, out),
                    3 => times_tile::<V, 3>(tile, symmetry, x, out),
                    4 => times_tile::<V, 4>(tile, symmetry, x, out),
                    5 => times_tile::<V, 5>(tile, symmetry, x, out),
                    6 => times_tile::<V, 6>(tile, symmetry, x, out),
                    7 => times_tile::<V, 7>(tile, symmetry, x, out),
                    _ => times_tile::<V, 8>(tile, symmetry, x, out),
                }
            }
            first += rows;
        }
    }
}

#[inline(always)]
unsafe fn times_tile<V: Vector, const ROWS: usize>(
    tile: &[f32],
    symmetry: usize,
    x: &[Quad],
    out: &mut [Quad],
) {
    unsafe {
        let mut sums = [V::zero(); ROWS];
        for (weights, quad) in tile.as_chunks::<ROWS>().0.iter().zip(x) {
            let row = V::load(quad[symmetry].as_ptr());
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = sum.add_product(*weight, row);
            }
        }
        for (quad, sum) in out.iter_mut().zip(sums) {
            sum.store(quad[symmetry].as_mut_ptr());
        }
    }
}
