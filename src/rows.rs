//! The tensors of a call as policies see them: of each branch stacked in the pass, its own rows.
use crate::ops::View;

/// Most tensors a site has.
pub const MAX_TENSORS: usize = 4;

/// One branch's rows of a tensor, with the engine's number for it.
#[derive(Clone, Copy)]
pub struct Part {
    pub view: View,
    pub id: u32,
}

/// One branch's rows of the tensors of a site.
#[derive(Clone, Copy)]
pub struct Rows<'a>(&'a [Part]);

impl<'a> Rows<'a> {
    pub const NONE: Self = Self(&[]);

    pub fn count(self) -> usize {
        self.0.len()
    }

    pub fn iter(self) -> impl Iterator<Item = &'a Part> {
        self.0.iter()
    }

    pub fn get(self, index: usize) -> Option<&'a View> {
        self.0.get(index).map(|part| &part.view)
    }

    /// The tensor known elsewhere as number `index` with `id`: by its id, else by its position.
    pub fn find(self, index: usize, id: u32) -> Option<&'a View> {
        let found = match id {
            0 => self.0.get(index).filter(|part| part.id == 0),
            _ => self.0.iter().find(|part| part.id == id),
        };
        found.map(|part| &part.view)
    }
}

/// The rows of all branches of a pass. It is filled anew in every call and keeps its memory.
#[derive(Default)]
pub struct Stacked {
    /// Of the first branch, then of the next.
    parts: Vec<Part>,
    /// Of one branch.
    tensors: usize,
}

impl Stacked {
    /// Empties it for so many tensors of each branch.
    pub fn start(&mut self, tensors: usize) {
        self.parts.clear();
        self.tensors = tensors;
    }

    /// The next part: a branch's tensors in order, then those of the next branch.
    pub fn push(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Of all branches, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Tensors of one branch.
    pub fn tensors(&self) -> usize {
        self.tensors
    }

    /// Rows of branch number `member` of those stacked; none if no tensors were given.
    pub fn of(&self, member: usize) -> Rows<'_> {
        let first = member * self.tensors;
        Rows(self.parts.get(first..first + self.tensors).unwrap_or_default())
    }

    /// Rows of each branch in turn.
    pub fn each(&self) -> impl Iterator<Item = Rows<'_>> {
        self.parts.chunks(self.tensors.max(1)).map(Rows)
    }
}
