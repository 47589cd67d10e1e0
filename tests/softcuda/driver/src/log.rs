//! The access log and the counters: what the library under test did, one line a call.

use std::fmt;

#[derive(Default)]
pub struct Log {
    lines: Option<String>,
    /// Of the call in progress.
    line: Option<String>,
}

impl Log {
    /// From now on, and from nothing.
    pub fn start(&mut self) {
        self.lines = Some(String::new());
    }

    pub fn text(&self) -> &str {
        self.lines.as_deref().unwrap_or_default()
    }

    /// What the call in progress does.
    pub fn note(&mut self, line: fmt::Arguments) {
        if self.lines.is_some() {
            self.line = Some(line.to_string());
        }
    }

    /// The call is over. A call that failed is in the log even where its success would not be.
    pub fn finish(&mut self, function: &str, failed: Option<&str>) {
        let line = match (self.line.take(), failed) {
            (Some(line), None) => line,
            (None, Some(error)) => format!("{function} = {error}"),
            (Some(line), Some(error)) => format!("{line} = {error}"),
            (None, None) => return,
        };
        if let Some(lines) = &mut self.lines {
            lines.push_str(&line);
            lines.push('\n');
        }
    }
}

/// What `softcuda_stats` fills in. New counters go to the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub launches: u64,
    /// Device memory for which no free has been called.
    pub live_allocations: u64,
    pub live_bytes: u64,
    /// Pinned host allocations.
    pub pinned_live: u64,
    /// Retains of primary contexts less their releases, and created contexts.
    pub contexts_retained: u64,
    pub modules: u64,
    pub events: u64,
    pub streams: u64,
    /// Calls that wait, or may: of streams, events and contexts, copies that return when done, `cuMemFree`.
    pub synchronises: u64,
}
