//! WHERE: which calls of the engine share one decision per pass.
use crate::ops::Dtype;

/// The value that may be left out, as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The blocks between the first `front` and the last `back`.
    Stack { front: u32, back: u32 },
    /// The whole evaluation: latents in, prediction out.
    Model,
}

/// What a history keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The value that came out.
    Output,
    /// What was added to the value that went in.
    Residual,
}

/// A place whose value is left out or kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub base: Base,
    /// Bit k: tensor k is restored on a skip.
    pub fill: u32,
    /// Of the kept values; `None` is the tensor's own.
    pub dtype: Option<Dtype>,
    /// Steps after which the newest kept value is no longer used.
    pub max_age: Option<u32>,
}

impl Keep {
    pub fn fills(&self, tensor: usize) -> bool {
        self.fill >> tensor & 1 == 1
    }
}
