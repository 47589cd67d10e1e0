//! Messages for people: to the host's callback, else to stderr if `DIFFCACHE_LOG` asks for it.
use once_cell::sync::Lazy;
use std::ffi::{CString, c_char, c_void};
use std::sync::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
}

pub type LogFn = unsafe extern "C-unwind" fn(*mut c_void, u32, *const c_char);

#[derive(Clone, Copy)]
struct Sink {
    log: LogFn,
    user: *mut c_void,
    level: Level,
}

// `user` is only handed back to the host, whose callback must be callable from any thread.
unsafe impl Send for Sink {}

static SINK: Mutex<Option<Sink>> = Mutex::new(None);

/// Level of `DIFFCACHE_LOG`: error, warn, info or debug; anything else that is set means warn.
static STDERR: Lazy<Level> = Lazy::new(|| match std::env::var("DIFFCACHE_LOG").as_deref() {
    Err(_) | Ok("" | "off" | "0") => Level::Off,
    Ok("error") => Level::Error,
    Ok("info") => Level::Info,
    Ok("debug") => Level::Debug,
    Ok(_) => Level::Warn,
});

/// `None` goes back to stderr.
pub fn set(log: Option<LogFn>, user: *mut c_void, level: Level) {
    let sink = log.map(|log| Sink { log, user, level });
    *SINK.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = sink;
}

fn sink() -> Option<Sink> {
    *SINK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// `text` is only made if somebody listens.
pub fn log(level: Level, label: &str, text: impl FnOnce() -> String) {
    let sink = sink();
    let limit = sink.map_or_else(|| *STDERR, |sink| sink.level);
    if level > limit {
        return;
    }
    let label = if label.is_empty() { "diffcache" } else { label };
    let line = format!("{label}: {}", text()).replace('\0', " ");
    match sink {
        Some(Sink { log, user, .. }) => {
            let line = CString::new(line).unwrap_or_default();
            // The host promised a callback that takes these arguments; no lock is held.
            unsafe { log(user, level as u32, line.as_ptr()) };
        }
        None => {
            let line = format!("{line}\n");
            // Not `eprintln!`, which panics where stderr is closed.
            let written = unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
            let _ = written;
        }
    }
}
