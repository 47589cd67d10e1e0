//! What a group keeps: how much it will be, taking it at once, and giving it back.
use super::{Group, Place, Setting};
use crate::error::{Error, Result, bail};
use crate::gauge::Gauge;
use crate::history::{History, kept_dtype};
use crate::ops::{Ops, Shape};
use crate::preset::Policy;
use crate::scope::{Kind, Scope};

/// How many values look like this: what an engine says in advance.
#[derive(Clone, Debug)]
pub struct Layout {
    pub of: Unit,
    /// `None` is each branch that has no row of its own.
    pub branch: Option<usize>,
    /// Layers that look like this.
    pub count: u32,
    /// One branch's rows.
    pub tensors: Vec<Shape>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Block,
    Layer(Kind),
    Model,
    /// A prediction, as guidance sees it.
    Uncond,
}

impl Unit {
    fn of(scope: Scope) -> Self {
        match scope {
            Scope::Stack { .. } | Scope::Blocks { .. } => Self::Block,
            Scope::Layers { kind, .. } => Self::Layer(kind),
            Scope::Model => Self::Model,
        }
    }

    fn hook(self) -> &'static str {
        match self {
            Self::Block => "DC_HOOK_BLOCKS or DC_HOOK_EACH",
            Self::Layer(_) => "DC_HOOK_LAYERS",
            Self::Model => "DC_HOOK_MODEL",
            Self::Uncond => "DC_HOOK_GUIDE",
        }
    }
}

/// The rows for a unit that concern a branch: its own, else the common ones.
pub fn rows_of(layouts: &[Layout], of: Unit, branch: usize) -> Result<Vec<&Layout>> {
    let rows = |branch: Option<usize>| {
        let rows = layouts.iter().filter(move |row| row.of == of && row.branch == branch);
        rows.collect::<Vec<_>>()
    };
    let own = rows(Some(branch));
    let rows = if own.is_empty() { rows(None) } else { own };
    // A model may be without layers of some kind.
    if rows.is_empty() && !matches!(of, Unit::Layer(_)) {
        bail!(Arg, "shapes has no row of {} for branch {branch}", of.hook());
    }
    Ok(rows)
}

/// Bytes asked of the allocator for so many tensors of each shape.
pub fn bytes_of(plan: &[(Shape, usize)]) -> Result<u64> {
    let mut bytes = plan.iter().map(|(shape, n)| (shape.bytes() as u64).checked_mul(*n as u64));
    let sum = bytes.try_fold(0u64, |sum, bytes| sum.checked_add(bytes?));
    let sum = sum.filter(|sum| *sum <= isize::MAX as u64);
    sum.ok_or_else(|| Error::Arg("shapes need more bytes than an address can count".to_owned()))
}

impl<O: Ops> Group<O> {
    /// Shapes of all tensors that will be kept, and how many of each.
    pub fn plan(
        policy: &Policy,
        setting: &Setting,
        layouts: &[Layout],
    ) -> Result<Vec<(Shape, usize)>> {
        let keep = &policy.keep;
        let unit = Unit::of(policy.scope);
        let rows = (0..setting.n_branches).map(|branch| rows_of(layouts, unit, branch));
        let rows = rows.collect::<Result<Vec<_>>>()?;

        // The values of every site.
        let mut plan = Vec::new();
        for (branch, rows) in rows.iter().enumerate() {
            if policy.cond_only && branch == setting.uncond {
                continue;
            }
            let mut room = match policy.scope {
                Scope::Layers { first, .. } => first.unwrap_or(u32::MAX),
                Scope::Blocks { front, back } => setting.n_blocks - front - back,
                Scope::Stack { .. } | Scope::Model => u32::MAX,
            };
            for row in rows {
                let sites = match policy.scope {
                    Scope::Stack { .. } | Scope::Model => 1,
                    // Blocks that are all alike need not be counted.
                    Scope::Blocks { .. } if rows.len() == 1 => room,
                    _ => row.count.min(room),
                };
                room -= sites;
                let filled = row.tensors.iter().enumerate().filter(|(index, _)| keep.fills(*index));
                let kept = filled.map(|(_, s)| s.with_dtype(kept_dtype(keep, s.dtype)));
                let n = policy.estimator.capacity() * sites as usize;
                plan.extend(kept.map(|shape| (shape, n)));
            }
        }

        // What is measured, and what waits for its output.
        let of_branch =
            |rows: &Vec<&Layout>| rows.first().map_or(&[][..], |row| &row.tensors).to_vec();
        let tensors: Vec<Vec<_>> = rows.iter().map(of_branch).collect();
        let measure = if policy.probe().is_some() { setting.measure } else { 0 };
        let measured = tensors.iter().map(|s| Gauge::<O>::measured(measure, s).collect());
        let measured: Vec<Vec<_>> = measured.collect();
        let staged =
            tensors.iter().map(|s| History::<O>::staging(keep, s.iter().copied().enumerate()));
        let staged: Vec<Vec<_>> = staged.collect();
        let keeps_input = setting.keeps_input && policy.scope.front() == 1;
        let copied = if keeps_input { &[][..] } else { &measured };

        let mut distinct: Vec<_> = measured.iter().chain(&staged).flatten().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        for shape in distinct {
            // A reference for each branch, or for the one that decides; and for the branches that
            // one pass may stack what is in flight: first inputs, then staged values.
            let together = if setting.share { 1 } else { setting.max_stacked };
            let references = if setting.share { 1 } else { setting.n_branches };
            let in_flight = most(&shape, copied, together);
            let waiting = most(&shape, &staged, setting.max_stacked);
            let n = most(&shape, &measured, references) + in_flight.max(waiting);
            plan.push((shape, n));
        }
        Ok(plan)
    }

    /// Takes all memory that will ever be needed, which is [`plan`](Self::plan)ned.
    pub fn reserve(&mut self, ops: &mut O, planned: &[(Shape, usize)]) -> Result<()> {
        for site in &mut self.sites {
            site.histories.iter_mut().for_each(|history| history.release(&mut self.pool));
        }
        self.pool.reserve(ops, planned)
    }

    /// Gives all memory back. What the rules have counted stands: all ranks count alike.
    pub fn free(&mut self) {
        self.cancel();
        (0..self.branches.len()).for_each(|branch| self.forget(branch));
        for history in self.histories() {
            history.free();
        }
        self.pool.free();
    }

    /// Gives back what is of no use in this run; true if there was any.
    pub(super) fn reclaim(&mut self) -> bool {
        let mut any = self.pool.free();
        for history in self.histories().filter(|history| history.is_empty() && !history.is_open()) {
            any |= history.free();
        }
        any
    }

    /// Gives back buffers that wait for tensors of an earlier run.
    pub(super) fn tidy_pool(&mut self, ops: &mut O) {
        if !self.pool.is_planned() && !self.pool.is_empty() {
            let (gauge, sites) = (&self.gauge, &self.sites);
            self.pool.keep_only(ops, |shape| {
                let mut measured = gauge.iter().flat_map(Gauge::shapes);
                let histories = sites.iter().flat_map(|site| &site.histories);
                let mut kept = histories.flat_map(History::shapes);
                measured.any(|other| other == *shape) || kept.any(|other| other == *shape)
            });
        }
    }

    /// Forgets everything but the memory. What comes may not be what was planned for, until it is
    /// [`reserve`](Self::reserve)d.
    pub fn clear(&mut self) {
        self.cancel();
        self.pool.forget_plan();
        self.leader = None;
        for branch in &mut self.branches {
            branch.rules.clone_from(&self.policy.rules);
            (branch.evaluated, branch.reference, branch.last) = (None, None, None);
        }
        for history in self.histories() {
            history.clear();
            history.is_lost = false;
        }
        if let Some(gauge) = &mut self.gauge {
            gauge.clear(&mut self.pool);
        }
    }

    /// Forgets what one branch holds.
    pub fn forget(&mut self, branch: usize) {
        for site in &mut self.sites {
            site.histories.get_mut(branch).into_iter().for_each(History::clear);
        }
        (self.branches[branch].reference, self.branches[branch].last) = (None, None);
        if let Some(gauge) = &mut self.gauge {
            gauge.forget(branch, &mut self.pool);
        }
    }

    /// Forgets what a branch holds at a site, and what it is measured by.
    pub(super) fn forget_at(&mut self, site: usize, branch: usize) {
        match self.gauge {
            Some(_) => self.forget(branch),
            None => self.sites[site].histories[branch].clear(),
        }
    }

    /// A value was lost that other ranks may have: until there is a new one, this rank votes against
    /// skips.
    pub(super) fn lose(&mut self, site: usize, branch: usize) {
        self.forget_at(site, branch);
        self.sites[site].histories[branch].is_lost = true;
    }

    /// One branch's tensors have other shapes from here on: nothing of the old ones is of use.
    pub(super) fn reshape(&mut self, place: Place, branch: usize) {
        self.forget_at(place.number, branch);
        if let Some(history) = self.site_mut(place).histories.get_mut(branch) {
            history.free();
        }
        self.pool.free();
    }

    /// The same at every site.
    pub(super) fn reshape_all(&mut self, branch: usize) {
        self.forget(branch);
        for site in &mut self.sites {
            if let Some(history) = site.histories.get_mut(branch) {
                history.free();
            }
        }
        self.pool.free();
    }
}

/// Most buffers of this shape that any `together` branches have among them.
fn most(shape: &Shape, branches: &[Vec<Shape>], together: usize) -> usize {
    let count = |shapes: &Vec<Shape>| shapes.iter().filter(|other| *other == shape).count();
    let mut counts: Vec<_> = branches.iter().map(count).collect();
    counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
    counts.into_iter().take(together).sum()
}
