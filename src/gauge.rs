//! Measures what the front blocks add against a copy of what they added when the pass was last
//! computed.
//!
//! ```text
//! input    before the first block    copy x                            1 read, 1 write
//! front    after the front blocks    r = h - x over the copy, sums     3 reads, 1 write
//! commit   the pass computes         r becomes the reference           nothing moves
//! ```
//!
//! An engine that keeps its input saves the copy and its memory: `r` is formed at `commit` only.
use crate::error::{Result, bail};
use crate::history::Rows;
use crate::ops::{Buffer, Comparison, Ops, Rounding, Shape, Sum, View};
use crate::pool::Pool;
use std::collections::BTreeMap;

/// A measured tensor of a branch, by its position and id before the first block.
struct Track<T> {
    index: usize,
    id: u32,
    shape: Shape,
    value: T,
}

impl<T> Track<T> {
    /// By its id, else by its position.
    fn is<U>(&self, other: &Track<U>) -> bool {
        self.id == other.id && (self.id != 0 || self.index == other.index)
    }
}

/// What stands between `input` and `commit`; a few at a time, so their size does not matter.
#[expect(clippy::large_enum_variant)]
enum Flight<B> {
    /// The copy of the input, then the residual.
    Copy(B),
    /// The engine's own input and, once known, what left the front.
    Engine { input: View, front: Option<View> },
}

impl<B> Track<Flight<B>> {
    /// What left the front in place of this tensor, if that can be.
    fn left_as(&self, x: Option<View>) -> Result<View> {
        let Some(x) = x.filter(|x| x.shape() == self.shape) else {
            let left = x.map_or("never".to_owned(), |x| format!("as {}", x.shape()));
            let index = self.index;
            bail!(Shape, "tensor {index} went into the front as {} and left it {left}", self.shape);
        };
        match &self.value {
            Flight::Engine { input, .. } if x.overlaps(input) => bail!(
                Arg,
                "DC_ENGINE_KEEPS_INPUT is set, but what left block 0 lies over what went in"
            ),
            _ => Ok(x),
        }
    }
}

pub struct Gauge<O: Ops> {
    /// Bit k: tensor k of a block is measured.
    measure: u32,
    rounded: bool,
    keeps_input: bool,
    /// One branch decides for all, so only its reference is kept.
    share: bool,
    references: BTreeMap<usize, Vec<Track<O::Buffer>>>,
    flight: Vec<(usize, Track<Flight<O::Buffer>>)>,
    /// `front` has seen every tensor in flight.
    complete: bool,
}

impl<O: Ops> Gauge<O> {
    pub fn new(measure: u32, rounded: bool, keeps_input: bool, share: bool) -> Self {
        Self {
            measure,
            rounded,
            keeps_input,
            share,
            references: BTreeMap::new(),
            flight: Vec::new(),
            complete: false,
        }
    }

    /// Shapes of one branch's measured tensors.
    pub fn measured(measure: u32, shapes: &[Shape]) -> impl Iterator<Item = Shape> {
        let measured = shapes.iter().enumerate().filter(move |(k, _)| measure >> k & 1 == 1);
        measured.map(|(_, shape)| *shape)
    }

    pub fn has_input(&self) -> bool {
        !self.flight.is_empty()
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Notes what goes into the first block. `rows` are those of the branches that are measured.
    pub fn input(&mut self, ops: &mut O, pool: &mut Pool<O>, rows: &[(usize, Rows)]) -> Result<()> {
        self.land(pool);
        for (branch, rows) in rows {
            if self.share {
                let own = self.references.remove_entry(branch);
                let others = std::mem::replace(&mut self.references, own.into_iter().collect());
                others.into_values().flatten().for_each(|old| pool.give(old.value));
            }
            let n = self.flight.len();
            for (index, (view, id)) in rows.iter().enumerate() {
                if self.measure >> index & 1 == 0 {
                    continue;
                }
                let shape = view.shape();
                let value = match self.keeps_input {
                    true => Flight::Engine { input: view, front: None },
                    false => Flight::Copy(pool.take(ops, shape)?),
                };
                self.flight.push((*branch, Track { index, id, shape, value }));
            }
            if self.flight.len() == n {
                bail!(
                    Arg,
                    "measure is {:#b}, but the block has {} tensors",
                    self.measure,
                    rows.count()
                );
            }
        }
        ops.combine_all(Rounding::Once, |form| {
            for (branch, track) in &self.flight {
                let Flight::Copy(buffer) = &track.value else { continue };
                let rows = rows.iter().find(|(other, _)| other == branch);
                let x = rows.and_then(|(_, rows)| rows.get(track.index));
                x.into_iter().for_each(|x| form(Sum::copy(buffer.view(), x)));
            }
        });
        Ok(())
    }

    /// Shapes in use.
    pub fn shapes(&self) -> Vec<Shape> {
        let references = self.references.values().flatten().map(|track| track.shape);
        references.chain(self.flight.iter().map(|(_, track)| track.shape)).collect()
    }

    /// Do the branches have a reference of the shapes that just came in?
    pub fn check(&self) -> Result<bool> {
        let mut all = self.has_input();
        for (branch, track) in &self.flight {
            match self.reference(*branch, track) {
                None => all = false,
                Some(reference) if reference.shape != track.shape => {
                    let (was, index) = (reference.shape, track.index);
                    bail!(
                        Shape,
                        "tensor {index} of branch {branch} is {}, it was {was}",
                        track.shape
                    );
                }
                Some(_) => {}
            }
        }
        Ok(all)
    }

    fn reference<T>(&self, branch: usize, track: &Track<T>) -> Option<&Track<O::Buffer>> {
        let references = self.references.get(&branch)?.iter();
        references.into_iter().find(|reference| reference.is(track))
    }

    /// Takes what left the front blocks, and queues the measurement if `wanted` and possible.
    pub fn front(
        &mut self,
        ops: &mut O,
        rows: &[(usize, Rows)],
        wanted: bool,
    ) -> Result<Option<O::Pending>> {
        let measures = wanted && self.check()?;
        let fronts = self.flight.iter().map(|(branch, track)| {
            let rows = rows.iter().find(|(other, _)| other == branch).map(|(_, rows)| rows);
            let x = rows.and_then(|rows| rows.find(track.index, track.id));
            track.left_as(x)
        });
        // Nothing is written before all of it is known to be right.
        let fronts: Vec<View> = fronts.collect::<Result<_>>()?;
        for ((_, track), x) in self.flight.iter_mut().zip(&fronts) {
            if let Flight::Engine { front, .. } = &mut track.value {
                *front = Some(*x);
            }
        }
        self.complete = true;
        let tracks = self.flight.iter().zip(fronts);
        if !measures {
            ops.combine_all(Rounding::Once, |form| {
                for ((_, track), x) in tracks {
                    let Flight::Copy(buffer) = &track.value else { continue };
                    let r = buffer.view();
                    form(Sum::new(r, Some(x), &[(-1.0, r)]));
                }
            });
            return Ok(None);
        }
        let comparisons: Vec<_> = tracks
            .map(|((branch, track), x)| {
                let reference = self.reference(*branch, track).expect("check has passed");
                let earlier = reference.value.view();
                let (base, keep) = match &track.value {
                    Flight::Copy(buffer) => (buffer.view(), Some(buffer.view())),
                    Flight::Engine { input, .. } => (*input, None),
                };
                Comparison { x, base: Some(base), earlier, keep }
            })
            .collect();
        Ok(Some(ops.measure(&comparisons, self.rounded)))
    }

    /// The pass computes: what it showed is what later passes are compared with. The branches that
    /// it concerns.
    pub fn commit(&mut self, ops: &mut O, pool: &mut Pool<O>) -> Result<Vec<usize>> {
        if !std::mem::take(&mut self.complete) {
            self.land(pool);
            return Ok(Vec::new());
        }
        self.take_spares(ops, pool)?;
        let flight = std::mem::take(&mut self.flight);
        // What this pass did not show is older than the value it computes.
        let branches: Vec<_> = flight.iter().map(|(branch, _)| *branch).collect();
        let old = branches.iter().filter_map(|branch| self.references.remove(branch));
        let mut old: Vec<_> = old.flatten().collect();
        let (mut residuals, mut result) = (Vec::new(), Ok(()));
        for (branch, track) in flight {
            let Track { index, id, shape, value } = track;
            let buffer = match value {
                Flight::Copy(buffer) => Ok(buffer),
                Flight::Engine { input, front } => {
                    let front = front.expect("a complete flight has left the front");
                    let kept = old.iter().position(|old| old.shape == shape);
                    let buffer = match kept {
                        Some(at) => Ok(old.swap_remove(at).value),
                        None => pool.take(ops, shape),
                    };
                    buffer.inspect(|buffer| residuals.push((buffer.view(), front, input)))
                }
            };
            match buffer {
                Ok(value) => {
                    let references = self.references.entry(branch).or_default();
                    references.push(Track { index, id, shape, value });
                }
                Err(error) => result = Err(error),
            }
        }
        ops.combine_all(Rounding::Once, |form| {
            for (r, front, input) in residuals {
                form(Sum::new(r, Some(front), &[(-1.0, input)]));
            }
        });
        old.into_iter().for_each(|old| pool.give(old.value));
        result.map(|()| branches)
    }

    /// A branch's first copy becomes its reference; the buffer that the next pass copies into is
    /// taken now as well, so that nothing has to be taken later.
    fn take_spares(&mut self, ops: &mut O, pool: &mut Pool<O>) -> Result<()> {
        let copies = self.flight.iter().filter(|(branch, track)| {
            matches!(track.value, Flight::Copy(_)) && self.reference(*branch, track).is_none()
        });
        let spares: Result<Vec<_>> = copies.map(|(_, track)| pool.take(ops, track.shape)).collect();
        spares?.into_iter().for_each(|spare| pool.give(spare));
        Ok(())
    }

    /// Ends the flight without a trace.
    pub fn land(&mut self, pool: &mut Pool<O>) {
        self.complete = false;
        for (_, track) in self.flight.drain(..) {
            if let Flight::Copy(buffer) = track.value {
                pool.give(buffer);
            }
        }
    }

    /// Forgets what a branch is compared with.
    pub fn forget(&mut self, branch: usize, pool: &mut Pool<O>) {
        let old = self.references.remove(&branch).into_iter().flatten();
        old.for_each(|old| pool.give(old.value));
    }

    /// Forgets all branches.
    pub fn clear(&mut self, pool: &mut Pool<O>) {
        self.land(pool);
        let all = std::mem::take(&mut self.references).into_values().flatten();
        all.for_each(|old| pool.give(old.value));
    }
}
