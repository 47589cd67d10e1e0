//! Measurements: of device memory by kernels, whose sums arrive in a slot; of host memory at once.
use super::Cuda;
use super::context::Context;
use super::kernels::{BLOCK, ComparedRows, ComparedStrided, Kernel, MAX_COMPARED, Measure};
use super::layout::{Cut, Rows, Strided, common_dtype};
use super::slot::{MAX_GRID, Slot};
use crate::error::Result;
use crate::ops::{Comparison, Dtype, Ops, View};
use crate::rule::Change;
use arrayvec::ArrayVec;
use std::sync::Arc;

/// A measurement that was queued.
pub struct Pending {
    /// Where that of device memory arrives, and in how many parts.
    pub(super) queued: Option<Queued>,
    /// That of host memory, and the number of elements of all.
    pub(super) known: Change,
}

pub(super) struct Queued {
    context: Arc<Context>,
    /// Until it is given back.
    pub(super) slot: Option<Slot>,
    pub(super) launches: usize,
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.context.give_slot(slot);
        }
    }
}

impl Pending {
    pub fn known(change: Change) -> Self {
        Self { queued: None, known: change }
    }

    /// What is known without waiting.
    pub fn on_host(self) -> Change {
        self.known
    }

    /// A measurement that was not to be had.
    fn failed(dtype: Dtype) -> Self {
        let change = Change { difference: f64::NAN, count: 1.0, ..Change::zero(dtype) };
        Self::known(change)
    }
}

impl Cuda {
    /// Of host memory at once, of device memory queued.
    pub(super) fn measure_all(&mut self, comparisons: &[Comparison], rounded: bool) -> Pending {
        let dtype = comparisons.first().map_or(Dtype::F32, |c| c.earlier.dtype());
        let mut known = Change::zero(dtype);
        for comparison in comparisons.iter().filter(|c| c.x.is_on_host()) {
            known = known + self.host.measure(&[*comparison], rounded);
        }
        if queued(comparisons).next().is_none() {
            return Pending::known(known);
        }
        known.count += queued(comparisons).map(|c| c.x.len() as f64).sum::<f64>();
        let mut pending = None;
        self.queue(|cuda, context| {
            let mut slot = context.take_slot()?;
            let launched = cuda.measure_queued(context, &mut slot, comparisons, rounded);
            let launches = launched.as_ref().map_or(0, |launches| *launches);
            let queued = Queued { context: context.clone(), slot: Some(slot), launches };
            pending = Some(Pending { queued: Some(queued), known });
            launched.map(drop)
        });
        pending.filter(|_| self.failed.is_none()).unwrap_or_else(|| Pending::failed(dtype))
    }

    pub(super) fn wait_for(&mut self, pending: Pending) -> Change {
        let Pending { queued, known } = pending;
        let Some(mut queued) = queued else {
            return known;
        };
        let mut slot = queued.slot.take().expect("a queued measurement has its slot");
        // The stream is not asked: it may be gone by now.
        let context = self.status().and_then(|()| self.enter());
        let waited = context.and_then(|context| self.wait(&context, slot.event));
        slot.unread = waited.is_err();
        let [difference, value, reference] = slot.sums(queued.launches);
        queued.slot = Some(slot);
        if let Err(error) = waited {
            self.fail(error);
            return Pending::failed(known.dtype).known;
        }
        Change {
            difference: known.difference + difference,
            value: known.value + value,
            reference: known.reference + reference,
            ..known
        }
    }

    /// Queues the sums of all comparisons in device memory; how many launches it took.
    fn measure_queued(
        &mut self,
        context: &Arc<Context>,
        slot: &mut Slot,
        comparisons: &[Comparison],
        rounded: bool,
    ) -> Result<usize> {
        if std::mem::take(&mut slot.unread) {
            // Whoever had it before may still write to it.
            context.order(self.stream, slot.event)?;
        }
        slot.unread = true;
        let launched = self.launch_all(context, slot, comparisons, rounded);
        // Also where only some of it was launched: that works in the slot until then.
        let recorded = context.record(slot.event, self.stream);
        launched.and_then(|launches| recorded.map(|()| launches))
    }

    fn launch_all(
        &self,
        context: &Context,
        slot: &Slot,
        comparisons: &[Comparison],
        rounded: bool,
    ) -> Result<usize> {
        let mut launches = 0;
        let cut = |comparison| Some((Cut::of(views(comparison))?, comparison));
        let mut rows = queued(comparisons).filter_map(cut);
        let mut strided = queued(comparisons).filter(|c| Cut::of(views(c)).is_none());
        while let Some(some) = next_few(&mut rows) {
            let (mut compared, mut grid) = (Few::new(), 0);
            for ((cut, comparison), blocks) in some.iter().zip(shares(some.iter().map(threads))) {
                let own = compared_rows(cut, comparison);
                compared.push(ComparedRows { first_block: grid, blocks, ..own });
                grid += blocks;
            }
            let kernel = Kernel::MeasureRows;
            self.launch_measure(context, slot, launches, kernel, &compared, grid, rounded)?;
            launches += 1;
        }
        while let Some(some) = next_few(&mut strided) {
            let compared: Few<_> = some.iter().map(|c| compared_strided(c)).collect();
            let grid = blocks_within(MAX_GRID, some.iter().map(|c| c.x.len() as u64).sum());
            let kernel = Kernel::MeasureStrided;
            self.launch_measure(context, slot, launches, kernel, &compared, grid, rounded)?;
            launches += 1;
        }
        Ok(launches)
    }

    #[expect(clippy::too_many_arguments)]
    fn launch_measure<C: Copy + Default>(
        &self,
        context: &Context,
        slot: &Slot,
        launch: usize,
        kernel: Kernel,
        compared: &[C],
        grid: u32,
        rounded: bool,
    ) -> Result<()>
    where
        Measure<C>: Default,
    {
        let mut parameters = Measure::<C> {
            partials: slot.partials(),
            counter: slot.counter(),
            result: slot.result(launch),
            n: compared.len() as u32,
            rounded: u32::from(rounded),
            ..Default::default()
        };
        parameters.c[..compared.len()].copy_from_slice(compared);
        let pointer = (&raw mut parameters).cast();
        self.launch(context, kernel, (grid, BLOCK, 0), &mut [pointer])
    }
}

/// What one launch compares.
type Few<T> = ArrayVec<T, MAX_COMPARED>;

fn next_few<T>(all: &mut impl Iterator<Item = T>) -> Option<Few<T>> {
    let few: Few<T> = all.take(MAX_COMPARED).collect();
    (!few.is_empty()).then_some(few)
}

/// Those that kernels make.
fn queued(comparisons: &[Comparison]) -> impl Iterator<Item = &Comparison> {
    comparisons.iter().filter(|c| !c.x.is_on_host() && !c.x.is_empty())
}

fn views(comparison: &Comparison) -> impl Iterator<Item = &View> + Clone {
    let Comparison { x, base, earlier, keep } = comparison;
    [Some(x), base.as_ref(), Some(earlier), keep.as_ref()].into_iter().flatten()
}

/// Blocks for so many threads. A function of shapes and dtypes, as the order of the sums must be, so
/// that it is the same on every GPU.
fn blocks_within(most: u32, threads: u64) -> u32 {
    threads.div_ceil(u64::from(BLOCK)).clamp(1, u64::from(most)) as u32
}

/// What a comparison has work for.
fn threads((cut, comparison): &(Cut, &Comparison)) -> u64 {
    common_dtype(views(comparison)).map_or(cut.items(), |dtype| cut.threads(dtype))
}

/// The grid's blocks, shared out among comparisons that have work for so many threads.
fn shares(threads: impl ExactSizeIterator<Item = u64> + Clone) -> Few<u32> {
    let all = u128::from(threads.clone().sum::<u64>());
    // All are rounded up, by less than a block each.
    let most = u128::from(MAX_GRID) + 1 - threads.len() as u128;
    let share = |of: u64| (u128::from(of) * most).div_ceil(all) as u32;
    threads.map(|of| blocks_within(share(of), of)).collect()
}

fn compared_rows(cut: &Cut, comparison: &Comparison) -> ComparedRows {
    let Comparison { x, base, earlier, keep } = comparison;
    let rows =
        |view: &Option<View>| view.as_ref().map_or(Rows::default(), |view| cut.rows_of(view));
    ComparedRows {
        x: cut.rows_of(x),
        base: rows(base),
        earlier: cut.rows_of(earlier),
        keep: rows(keep),
        rows: cut.rows,
        cols: cut.cols,
        has_base: u32::from(base.is_some()),
        has_keep: u32::from(keep.is_some()),
        ..Default::default()
    }
}

fn compared_strided(comparison: &Comparison) -> ComparedStrided {
    let Comparison { x, base, earlier, keep } = comparison;
    let strided = |view: &Option<View>| view.as_ref().map_or(Strided::default(), Strided::of);
    ComparedStrided {
        x: Strided::of(x),
        base: strided(base),
        earlier: Strided::of(earlier),
        keep: strided(keep),
        elements: x.len() as u64,
        has_base: u32::from(base.is_some()),
        has_keep: u32::from(keep.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_share_a_grid_by_their_work_and_stay_within_it() {
        for (threads, blocks) in [
            (vec![1], vec![1]),
            (vec![256, 257], vec![1, 2]),
            (vec![1 << 40], vec![MAX_GRID]),
            (vec![1 << 20, 1], vec![MAX_GRID - 1, 1]),
            (vec![3 << 30, 1 << 30], vec![768, 256]),
            (vec![u64::MAX / 4; 4], vec![256; 4]),
        ] {
            let shares = shares(threads.iter().copied());
            assert!(shares.iter().sum::<u32>() <= MAX_GRID);
            assert_eq!(shares[..], blocks, "{threads:?}");
        }
    }
}
