//! Caching for diffusion transformer inference.
//!
//! Between two steps of a sampler most of a diffusion transformer computes almost what it computed
//! the step before. This library decides which blocks to leave out and fills in what they would
//! have produced. Engines call it through the C ABI of `include/diffcache.h`.
//!
//! **A method is a list of policies; a policy is *when x where x what*.**
//!
//! ```text
//! engine ─► capi ─► cache ─► group ┬► rule       WHEN   numbers in, compute or skip out
//!                                  ├► scope      WHERE  which calls share a decision
//!                                  ├► estimator  WHAT   step numbers in, weights out
//!                                  ├► gauge   ─► ops    a tensor against an earlier copy of itself
//!                                  └► history ─► ops    the kept values; ops alone touch memory
//! ```
//!
//! | word | file |
//! |---|---|
//! | the C boundary: types, guard, handles, last error | [`capi`] |
//! | options as text and values | [`options`] |
//! | presets: methods as lists of policies | [`preset`] |
//! | runs, passes, branches; what concerns blocks, layers, guidance, steering | [`cache`] |
//! | one policy at work: its decision, its sites, its memory, what `peek` foresees | [`group`] |
//! | FasterCache's unconditional branch | [`guidance`] |
//! | rules: limits, mask, interval, timestep window, residual change, ... | [`rule`] |
//! | scopes: stack, block, layers, model; output or residual | [`scope`] |
//! | estimators: hold, Taylor, Newton, Hermite, linear, FoCa | [`estimator`] |
//! | probes: what a rule measures | [`gauge`] |
//! | the kept values of one place | [`history`] |
//! | the tensors of a call, branch by branch | [`rows`] |
//! | buffers between two uses | [`pool`] |
//! | the numbers: order of sums, rounding; host memory; allocators and budget | [`ops`] |
//! | reasons and records of decisions, counts of a run | [`trace`], [`stats`] |
//! | messages for people | [`log`] |
//!
//! Data flows one way, from left to right in the picture. Rules and estimators know no tensor and
//! no device; adding a method is a row in [`preset`] and at most one file in each of the two.
pub mod cache;
#[cfg(feature = "capi")]
pub mod capi;
pub mod error;
pub mod estimator;
pub mod gauge;
pub mod group;
pub mod guidance;
pub mod history;
pub mod log;
pub mod ops;
pub mod options;
pub mod pool;
pub mod preset;
pub mod rows;
pub mod rule;
pub mod scope;
pub mod stats;
pub mod trace;
