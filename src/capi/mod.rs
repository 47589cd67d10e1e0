//! The C boundary. [`types`] and [`functions`] are what `include/diffcache.h` is generated from;
//! `structs` reads and checks what C hands over, `guard` turns errors and panics into codes,
//! `handle` gives every cache a name that stays wrong once it is wrong. Nothing behind this
//! module knows a raw C type.
pub mod functions;
mod guard;
mod handle;
mod structs;
mod thread;
pub mod types;
mod values;

pub use functions::*;
pub use types::*;
pub use values::*;
