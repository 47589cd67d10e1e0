//! Rows of the table that `make bench` prints: what was measured, its target, and its rival in the
//! same run.
#![allow(dead_code, reason = "each program uses its part")]
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Instant;

/// Seconds that `f` took.
pub fn timed(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

/// The median of repeats, and the quartiles around it.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: usize| sorted[(sorted.len() * share / 4).min(sorted.len() - 1)];
        Self { median: at(2), low: at(1), high: at(3) }
    }
}

/// How many times as fast as `rival` `own` is. They are timed in turn, so that a noisy machine is
/// noisy for both.
pub fn faster(repeats: usize, mut own: impl FnMut(), mut rival: impl FnMut()) -> Spread {
    own();
    rival();
    Spread::of((0..repeats).map(|_| {
        let own = timed(&mut own);
        timed(&mut rival) / own
    }))
}

/// What a figure is to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// It is shown, and nothing is asked of it.
    None,
}

/// Appends a row to the file that `DC_FIGURES` names, and shows it. `unit` is "x" for a ratio.
pub fn report(section: &str, figure: &str, value: Spread, unit: &str, target: Target, rival: &str) {
    let Spread { median, low, high } = value;
    let target = match target {
        Target::AtLeast(bound) => format!(">={bound}"),
        Target::AtMost(bound) => format!("<={bound}"),
        Target::None => String::new(),
    };
    println!("{section}: {figure}: {median:.3} {unit} ({low:.3} to {high:.3}) {target} {rival}");
    let Some(path) = std::env::var_os("DC_FIGURES") else { return };
    let row = format!("{section}\t{figure}\t{median}\t{low}\t{high}\t{unit}\t{target}\t{rival}\n");
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(row.as_bytes())).expect("DC_FIGURES can be written");
}
