//! The low frequencies of planes, without a fast Fourier transform.
//!
//! Only the waves of a small disc are wanted, so a truncated transform needs `2r + 1` of the rows
//! and `r + 1` of the columns (the others are their mirror images, since the plane is real): two
//! short sums along each axis, there and back. In f64, so the order of the sums does not show.
use super::super::View;
use super::pool;
use std::f64::consts::TAU;

/// Cosines and sines of `k * n` whole turns over `period`.
struct Waves {
    /// Frequencies from 0 up to this one.
    highest: usize,
    /// `[n][k]`: cosine and sine.
    turns: Vec<[f64; 2]>,
}

impl Waves {
    fn new(highest: usize, period: usize) -> Self {
        let turn = |n: usize, k: usize| {
            let (sin, cos) = (TAU * (n * k % period) as f64 / period as f64).sin_cos();
            [cos, sin]
        };
        let turns = (0..period).flat_map(|n| (0..=highest).map(move |k| turn(n, k)));
        Self { highest, turns: turns.collect() }
    }

    fn at(&self, n: usize) -> &[[f64; 2]] {
        &self.turns[n * (self.highest + 1)..][..=self.highest]
    }
}

/// Every plane of `x` by itself into `out`.
pub fn planes(threads: usize, out: View, x: View, height: usize, width: usize) {
    let (len, r) = (height * width, height.min(width) / 5);
    if len == 0 {
        return;
    }
    let (rows, columns) = (Waves::new(r, height), Waves::new(r, width));
    // A plane is much work, however small: the pool's unit is a block of elements.
    pool::for_each(threads, x.len() / len, |plane| {
        let start = plane * len;
        let mut values = vec![0f32; len];
        load_all(&x, start, &mut values);
        low_pass(&mut values, width, r, &rows, &columns);
        store_all(&out, start, &values);
    });
}

fn low_pass(plane: &mut [f32], width: usize, r: usize, rows: &Waves, columns: &Waves) {
    let height = plane.len() / width;
    // Along x: [y][kx].
    let mut along_x = vec![[0f64; 2]; height * (r + 1)];
    for (row, sums) in plane.chunks(width).zip(along_x.chunks_mut(r + 1)) {
        for (x, value) in row.iter().enumerate() {
            let value = f64::from(*value);
            for ([re, im], [cos, sin]) in sums.iter_mut().zip(columns.at(x)) {
                *re += value * cos;
                *im -= value * sin;
            }
        }
    }
    // Along y and back, for each kx and the ky that share the disc with it: [y][kx].
    let mut back = vec![[0f64; 2]; height * (r + 1)];
    for kx in 0..=r {
        let reach = (0..=r).take_while(|ky| ky * ky + kx * kx <= r * r).count() as isize - 1;
        for ky in -reach..=reach {
            let (k, sign) = (ky.unsigned_abs(), if ky < 0 { -1.0 } else { 1.0 });
            let (mut re, mut im) = (0.0, 0.0);
            for y in 0..height {
                let ([a, b], [cos, sin]) = (along_x[y * (r + 1) + kx], rows.at(y)[k]);
                re += a * cos + sign * b * sin;
                im += b * cos - sign * a * sin;
            }
            for y in 0..height {
                let [cos, sin] = rows.at(y)[k];
                let [a, b] = &mut back[y * (r + 1) + kx];
                *a += re * cos - sign * im * sin;
                *b += im * cos + sign * re * sin;
            }
        }
    }
    // Back along x; a frequency and its mirror image add up to twice the real part.
    let scale = 1.0 / plane.len() as f64;
    for (row, sums) in plane.chunks_mut(width).zip(back.chunks(r + 1)) {
        for (x, value) in row.iter_mut().enumerate() {
            let waves =
                sums.iter().zip(columns.at(x)).map(|([re, im], [cos, sin])| re * cos - im * sin);
            let twice: f64 = waves.sum();
            *value = ((2.0 * twice - sums[0][0]) * scale) as f32;
        }
    }
}

fn load_all(view: &View, start: usize, out: &mut [f32]) {
    // The view is dense f32, and its contract makes the elements readable.
    let from = view.address().wrapping_add(4 * start);
    unsafe { out.as_mut_ptr().cast::<u8>().copy_from(from, size_of_val(out)) };
}

fn store_all(view: &View, start: usize, x: &[f32]) {
    let to = view.address().wrapping_add(4 * start);
    unsafe { to.copy_from(x.as_ptr().cast(), size_of_val(x)) };
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::Memory;
    use super::super::super::{Buffer, Dtype, Ops};
    use super::super::Host;
    use super::*;

    /// The whole transform, shifted so that frequency 0 lies at `n / 2`, a disc cut out of it, and
    /// back: as diffusers does it, in f64 and without haste.
    fn reference(plane: &[f32], height: usize, width: usize) -> Vec<f64> {
        let r = (height.min(width) / 5) as isize;
        let from_centre = |k: usize, n: usize| ((k + n / 2) % n) as isize - (n / 2) as isize;
        let turn = |k: usize, x: usize, n: usize| TAU * (k * x % n) as f64 / n as f64;
        let mut out = vec![0.0; plane.len()];
        for ky in 0..height {
            for kx in 0..width {
                if from_centre(ky, height).pow(2) + from_centre(kx, width).pow(2) > r * r {
                    continue;
                }
                let angle = |y, x| turn(ky, y, height) + turn(kx, x, width);
                let (mut re, mut im) = (0.0, 0.0);
                for (at, value) in plane.iter().enumerate() {
                    let (sin, cos) = angle(at / width, at % width).sin_cos();
                    re += f64::from(*value) * cos;
                    im -= f64::from(*value) * sin;
                }
                for (at, out) in out.iter_mut().enumerate() {
                    let (sin, cos) = angle(at / width, at % width).sin_cos();
                    *out += (re * cos - im * sin) / plane.len() as f64;
                }
            }
        }
        out
    }

    #[test]
    fn the_disc_of_low_frequencies_stays() {
        for (planes, height, width) in [
            (3, 16, 16),
            (2, 7, 9),
            (1, 33, 47),
            (2, 10, 5),
            (3, 4, 4),
            (2, 1, 7),
            (2, 6, 1),
            (1, 1, 1),
            (40, 8, 11),
        ] {
            for threads in [1, 2] {
                let mut host = Host::new(Memory::new(None, 0), threads);
                let len = planes * height * width;
                // Two dimensions of which one may be 1, so the shape does not tell the plane.
                let shape =
                    unsafe { View::strided(std::ptr::null_mut(), Dtype::F32, &[len], &[1]) };
                let buffers: Vec<_> =
                    (0..2).map(|_| host.alloc(shape.shape()).expect("memory")).collect();
                let (x, out) = (buffers[0].view(), buffers[1].view());
                let values: Vec<_> =
                    (0..len).map(|i| ((i * 7919 % 1009) as f32 / 504.0) - 1.0).collect();
                store_all(&x, 0, &values);
                host.low_pass(out, x, height, width);
                let mut got = vec![0.0; len];
                load_all(&out, 0, &mut got);
                for (got, plane) in got.chunks(height * width).zip(values.chunks(height * width)) {
                    for (got, expected) in got.iter().zip(reference(plane, height, width)) {
                        let error = (f64::from(*got) - expected).abs();
                        assert!(
                            error < 1e-7,
                            "{planes} x {height} x {width}: {got} not {expected}"
                        );
                    }
                }
            }
        }
    }
}
