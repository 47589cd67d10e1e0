//! What can go wrong, with a text that names the argument, its value and what is allowed.

/// One variant a `DC_ERR_*` code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Arg(String),
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    Handle(String),
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Shape(String),
    #[error("{0}")]
    Memory(String),
    #[error("{0}")]
    Device(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("{0}")]
    Version(String),
    #[error("{0}")]
    Internal(String),
    #[error("{0}")]
    Capture(String),
    /// The output of this pass must not be used.
    #[error("{0}")]
    Discard(String),
}

impl Error {
    /// The same error, with where it was found in front of its text.
    pub fn within(self, place: &str) -> Self {
        let with: fn(String) -> Self = match &self {
            Self::Arg(_) => Self::Arg,
            Self::State(_) => Self::State,
            Self::Handle(_) => Self::Handle,
            Self::Busy(_) => Self::Busy,
            Self::Shape(_) => Self::Shape,
            Self::Memory(_) => Self::Memory,
            Self::Device(_) => Self::Device,
            Self::Unsupported(_) => Self::Unsupported,
            Self::Version(_) => Self::Version,
            Self::Internal(_) => Self::Internal,
            Self::Capture(_) => Self::Capture,
            Self::Discard(_) => Self::Discard,
        };
        with(format!("{place}: {self}"))
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// `bail!(Arg, "...")` returns that error.
macro_rules! bail {
    ($kind:ident, $($text:tt)*) => {
        return Err($crate::error::Error::$kind(format!($($text)*)))
    };
}
pub(crate) use bail;
