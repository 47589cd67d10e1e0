//! WHERE: which calls of the engine share one decision per pass.
//!
//! Blocks change a tensor in place, so what they add can be kept; layers only show their output.
use crate::ops::Dtype;

/// What a layer does; engines tell, and options choose by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Attention within a picture or frame, and joint attention over picture and text.
    Spatial,
    /// Attention across frames.
    Temporal,
    /// Attention to the text.
    Cross,
    /// The feed-forward part of a block.
    Mlp,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Spatial, Self::Temporal, Self::Cross, Self::Mlp];

    pub fn name(self) -> &'static str {
        match self {
            Self::Spatial => "spatial",
            Self::Temporal => "temporal",
            Self::Cross => "cross",
            Self::Mlp => "mlp",
        }
    }
}

/// The values that are left out together. Each is a *site* with a history of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The blocks between the first `front` and the last `back`, as one value.
    Stack { front: u32, back: u32 },
    /// The same blocks, each for itself.
    Blocks { front: u32, back: u32 },
    /// The layers of a kind: all, or the first few that the engine asks about.
    Layers { kind: Kind, first: Option<u32> },
    /// The whole evaluation: latents in, prediction out.
    Model,
}

impl Scope {
    /// There is but one value.
    pub fn is_single(self) -> bool {
        matches!(self, Self::Stack { .. } | Self::Model)
    }

    /// Blocks before the first that may be skipped.
    pub fn front(self) -> u32 {
        match self {
            Self::Stack { front, .. } | Self::Blocks { front, .. } => front,
            Self::Layers { .. } | Self::Model => 0,
        }
    }
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
