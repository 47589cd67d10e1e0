//! A stand-in for the CUDA driver, `libcuda.so.1`, on the CPU. Built as `libsoftcuda.so` and found
//! under the driver's name (a link in a folder on `LD_LIBRARY_PATH`), it lets a library that talks to
//! the driver run unchanged, PTX and all, on a machine without a GPU: kernels are run by
//! `softcuda-ptx`.
//!
//! ```text
//! cargo build -p softcuda
//! mkdir -p target/softcuda && ln -sf ../debug/libsoftcuda.so target/softcuda/libcuda.so.1
//! LD_LIBRARY_PATH=$PWD/target/softcuda a-program-that-needs-a-gpu
//! ```
//!
//! It is there to find mistakes, so it is strict where a GPU is forgiving:
//!
//! - **Streams are lazy.** Work waits until something waits for it, so data that nobody waited for is
//!   stale. `SOFTCUDA_EAGER` and `SOFTCUDA_SEED` give other orders (`timeline`).
//! - **Order is known, not observed.** Vector clocks (`clock`) follow streams, events, the legacy
//!   stream's rules and the host's waits. Memory used before its allocation or after its free in that
//!   order, and two accesses with no order between them, are faults even if they happened to go well.
//! - **Memory is checked** at every access, full of NaN before and after its life (`memory`), and the
//!   device's is out of the host's reach (`arena`).
//! - **Errors stay** with their context, as CUDA's do (`context`).
//! - **Captures break** as CUDA's do (`capture`).
//!
//! A fault is told on stderr, in a sentence.
//!
//! What is not modelled: time, priorities and concurrency (one kernel runs at a time, under a lock);
//! the launch of graphs; peer access; host memory registered later; memory pools other than the
//! default; cubins and fat binaries (only PTX text is taken); whatever has no function here.
//! A data race is judged by the range of addresses from the lowest to the highest of each kernel, so two
//! kernels on unordered streams that interleave within one allocation are taken for a race.
//! While one thread's call runs kernels, a stray access of another thread to device memory goes unnoticed.
//!
//! The environment says what driver and devices to be: `settings`. Tests reach further by functions
//! of the library's own: [`softcuda_fail`], [`softcuda_break`], [`softcuda_log_start`],
//! [`softcuda_log_text`], [`softcuda_fault_text`], [`softcuda_stats`]. A driver that lacks a symbol is
//! a copy of the library with that name changed to another of the same length.
//!
//! | file | what |
//! |---|---|
//! | `api/` | the exported functions |
//! | `driver` | the state, the lock, the way through every call |
//! | `context`, `stream`, `event`, `capture`, `module`, `memory` | CUDA's objects |
//! | `arena`, `view` | the addresses of device memory; memory as a kernel sees it |
//! | `allocate`, `copy` | what is done with memory |
//! | `clock`, `timeline`, `work` | what is queued, what comes before what, how it is done |
//! | `fault`, `log`, `status` | what went wrong, the access log, result codes |
//! | `injection`, `settings` | failures on demand, knobs |

mod allocate;
mod api;
mod arena;
mod capture;
mod clock;
mod context;
mod copy;
mod driver;
mod event;
mod fault;
mod injection;
mod log;
mod memory;
mod module;
mod settings;
mod status;
mod stream;
mod timeline;
mod view;
mod work;

pub use api::*;
pub use log::Stats;
