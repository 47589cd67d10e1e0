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
use crate::ops::{Buffer, Comparison, Ops, Rounding, Shape, Sum, View};
use crate::pool::Pool;
use crate::rows::{Rows, Stacked};

/// The branches that are measured, and the rows of all in the pass, of which they are the first.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    pub branches: &'a [usize],
    pub rows: &'a Stacked,
}

impl<'a> Shown<'a> {
    fn each(self) -> impl Iterator<Item = (usize, Rows<'a>)> {
        self.branches.iter().copied().zip(self.rows.each())
    }

    fn of(self, branch: usize) -> Rows<'a> {
        let own = self.each().find(|(other, _)| *other == branch);
        own.map_or(Rows::NONE, |(_, rows)| rows)
    }
}

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
    /// The engine's own input; once known, what left the front; and room for the residual.
    Engine { input: View, front: Option<View>, room: Option<B> },
}

impl<B> Track<Flight<B>> {
    /// What left the front in place of this tensor, if that can be.
    fn left_as<'a>(&self, x: Option<&'a View>) -> Result<&'a View> {
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
    /// Of each branch.
    references: Vec<Vec<Track<O::Buffer>>>,
    flight: Vec<(usize, Track<Flight<O::Buffer>>)>,
    /// `front` has seen every tensor in flight.
    complete: bool,
    /// Of the measurement that is being queued; kept for its memory.
    comparisons: Vec<Comparison>,
}

impl<O: Ops> Gauge<O> {
    pub fn new(measure: u32, rounded: bool, keeps_input: bool, share: bool) -> Self {
        Self {
            measure,
            rounded,
            keeps_input,
            share,
            references: Vec::new(),
            flight: Vec::new(),
            complete: false,
            comparisons: Vec::new(),
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

    /// Notes what goes into the first block.
    pub fn input(&mut self, ops: &mut O, pool: &mut Pool<O>, shown: Shown) -> Result<()> {
        self.land(pool);
        for (branch, rows) in shown.each() {
            if self.share {
                let others = (0..self.references.len()).filter(|other| *other != branch);
                others.for_each(|other| self.forget(other, pool));
            }
            let n = self.flight.len();
            for (index, part) in rows.iter().enumerate() {
                if self.measure >> index & 1 == 0 {
                    continue;
                }
                let shape = part.view.shape();
                let value = match self.keeps_input {
                    true => Flight::Engine { input: part.view, front: None, room: None },
                    false => Flight::Copy(pool.take(ops, shape)?),
                };
                self.flight.push((branch, Track { index, id: part.id, shape, value }));
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
                let x = shown.of(*branch).get(track.index);
                x.into_iter().for_each(|x| form(Sum::copy(buffer.view(), *x)));
            }
        });
        Ok(())
    }

    /// Shapes in use.
    pub fn shapes(&self) -> impl Iterator<Item = Shape> {
        let references = self.references.iter().flatten().map(|track| track.shape);
        references.chain(self.flight.iter().map(|(_, track)| track.shape))
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
        self.references.get(branch)?.iter().find(|reference| reference.is(track))
    }

    /// Takes what left the front blocks, and queues the measurement if `wanted` and possible.
    pub fn front(&mut self, ops: &mut O, shown: Shown, wanted: bool) -> Result<Option<O::Pending>> {
        let measures = wanted && self.check()?;
        let front = |branch: usize, track: &Track<_>| {
            track.left_as(shown.of(branch).find(track.index, track.id))
        };
        // Nothing is written before all of it is known to be right.
        self.flight.iter().try_for_each(|(branch, track)| front(*branch, track).map(drop))?;
        for (branch, track) in &mut self.flight {
            let x = *front(*branch, track)?;
            if let Flight::Engine { front, .. } = &mut track.value {
                *front = Some(x);
            }
        }
        self.complete = true;
        let left = || {
            self.flight.iter().filter_map(|(b, track)| Some((*b, track, front(*b, track).ok()?)))
        };
        if !measures {
            ops.combine_all(Rounding::Once, |form| {
                for (_, track, x) in left() {
                    let Flight::Copy(buffer) = &track.value else { continue };
                    let r = buffer.view();
                    form(Sum::new(r, Some(*x), &[(-1.0, r)]));
                }
            });
            return Ok(None);
        }
        let mut comparisons = std::mem::take(&mut self.comparisons);
        comparisons.clear();
        comparisons.extend(left().map(|(branch, track, x)| {
            let reference = self.reference(branch, track).expect("check has passed");
            let earlier = reference.value.view();
            let (base, keep) = match &track.value {
                Flight::Copy(buffer) => (buffer.view(), Some(buffer.view())),
                Flight::Engine { input, .. } => (*input, None),
            };
            Comparison { x: *x, base: Some(base), earlier, keep }
        }));
        let pending = ops.measure(&comparisons, self.rounded);
        self.comparisons = comparisons;
        Ok(Some(pending))
    }

    /// The pass computes: what it showed is what later passes are compared with. True if it showed
    /// something.
    pub fn commit(&mut self, ops: &mut O, pool: &mut Pool<O>) -> Result<bool> {
        if !std::mem::take(&mut self.complete) {
            self.land(pool);
            return Ok(false);
        }
        self.take_spares(ops, pool)?;
        // What this pass did not show is older than the value it computes.
        let mut flight = std::mem::take(&mut self.flight);
        flight.iter().for_each(|(branch, _)| self.forget(*branch, pool));
        let mut result = Ok(());
        for (_, track) in &mut flight {
            if let Flight::Engine { room, .. } = &mut track.value {
                match pool.take(ops, track.shape) {
                    Ok(buffer) => *room = Some(buffer),
                    Err(error) => result = Err(error),
                }
            }
        }
        ops.combine_all(Rounding::Once, |form| {
            for (_, track) in &flight {
                if let Flight::Engine { input, front, room: Some(room) } = &track.value {
                    form(Sum::new(room.view(), *front, &[(-1.0, *input)]));
                }
            }
        });
        for (branch, Track { index, id, shape, value }) in flight.drain(..) {
            let (Flight::Copy(value) | Flight::Engine { room: Some(value), .. }) = value else {
                continue;
            };
            if self.references.len() <= branch {
                self.references.resize_with(branch + 1, Vec::new);
            }
            self.references[branch].push(Track { index, id, shape, value });
        }
        self.flight = flight;
        result.map(|()| true)
    }

    /// A branch's first copy becomes its reference; the buffer that the next pass copies into is
    /// taken now as well, so that nothing has to be taken later.
    fn take_spares(&self, ops: &mut O, pool: &mut Pool<O>) -> Result<()> {
        let is_first = |(branch, track): &&(usize, Track<Flight<O::Buffer>>)| {
            matches!(track.value, Flight::Copy(_)) && self.reference(*branch, track).is_none()
        };
        for (k, (_, track)) in self.flight.iter().enumerate() {
            let alike = self.flight[..=k].iter().filter(|(_, other)| other.shape == track.shape);
            pool.stock(ops, track.shape, alike.filter(is_first).count())?;
        }
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
        let old = self.references.get_mut(branch).into_iter().flat_map(|old| old.drain(..));
        old.for_each(|old| pool.give(old.value));
    }

    /// Forgets all branches.
    pub fn clear(&mut self, pool: &mut Pool<O>) {
        self.land(pool);
        (0..self.references.len()).for_each(|branch| self.forget(branch, pool));
    }
}
