//! What a test can choose from outside: the environment, read at the first call into the library.

use std::{ffi::c_int, str::FromStr};

pub struct Settings {
    /// `SOFTCUDA_DEVICES`; with 0, `cuInit` finds no device.
    pub devices: usize,
    /// `SOFTCUDA_CC`, "8.0" or "75": compute capability as 80 or 75.
    pub capability: u32,
    /// `SOFTCUDA_DRIVER`: 12040 is CUDA 12.4.
    pub driver: c_int,
    /// `SOFTCUDA_NO_POOLS`: a device without stream-ordered allocation.
    pub pools: bool,
    /// `SOFTCUDA_STUB`: the library of the toolkit that is there only to link against.
    pub stub: bool,
    /// `SOFTCUDA_REUSE`: a new stream has the handle of the one destroyed last, as may happen with any driver.
    pub reuse: bool,
    /// `SOFTCUDA_EAGER`: work runs when it is queued.
    pub eager: bool,
    /// `SOFTCUDA_SEED`: of the order between streams, and of blocks and warps. 0 is the laziest order.
    pub seed: u64,
    /// `SOFTCUDA_QUIET`: faults are not told on stderr.
    pub quiet: bool,
    /// `SOFTCUDA_MEMORY`: bytes per device.
    pub memory: u64,
    /// `SOFTCUDA_FAIL`, "cuMemAllocAsync:3:2,...": see [`crate::injection`].
    pub failures: Vec<(String, u64, c_int)>,
}

impl Settings {
    pub fn from_environment() -> Settings {
        Settings {
            devices: number("SOFTCUDA_DEVICES", 2),
            capability: text("SOFTCUDA_CC").replace('.', "").parse().unwrap_or(80),
            driver: number("SOFTCUDA_DRIVER", 12040),
            pools: !flag("SOFTCUDA_NO_POOLS"),
            stub: flag("SOFTCUDA_STUB"),
            reuse: flag("SOFTCUDA_REUSE"),
            eager: flag("SOFTCUDA_EAGER"),
            seed: number("SOFTCUDA_SEED", 0),
            quiet: flag("SOFTCUDA_QUIET"),
            memory: number("SOFTCUDA_MEMORY", 4 << 30),
            failures: text("SOFTCUDA_FAIL").split(',').filter_map(failure).collect(),
        }
    }

    /// The newest PTX the driver's assembler knows, as (major, minor).
    pub fn ptx_version(&self) -> (u32, u32) {
        let (major, minor) = (self.driver as u32 / 1000, self.driver as u32 % 1000 / 10);
        match (major, minor) {
            (..=9, _) => (6, 0),
            (10, minor) => (6, 3 + minor),
            (12, 5 | 6) => (8, 5),
            (12, 7) => (8, 6),
            (12, 8) => (8, 7),
            (12, 9) => (8, 8),
            (major, minor) => (major - 4, minor),
        }
    }

    /// Whether the driver of this version has the function. Its symbol is there either way: a caller
    /// that probes for symbols is tested with one renamed in a copy of the library.
    pub fn has(&self, function: &str) -> bool {
        let since = match function {
            "cuMemAllocAsync" | "cuMemFreeAsync" => 11020,
            "cuDeviceGetUuid_v2" => 11040,
            "cuModuleGetLoadingMode" => 11070,
            "cuCtxGetId" => 12000,
            _ => 0,
        };
        self.driver >= since
    }

    pub fn has_pools(&self) -> bool {
        self.pools && self.has("cuMemAllocAsync")
    }
}

fn text(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn flag(name: &str) -> bool {
    !matches!(text(name).as_str(), "" | "0")
}

fn number<T: FromStr>(name: &str, otherwise: T) -> T {
    text(name).parse().unwrap_or(otherwise)
}

fn failure(text: &str) -> Option<(String, u64, c_int)> {
    let mut parts = text.trim().split(':');
    Some((parts.next()?.to_string(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
