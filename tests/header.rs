//! `include/diffcache.h` is what cbindgen makes of `src/capi`, and says the same as Rust.
//! `make header` (`DC_WRITE_HEADER=1 cargo test --test header`) writes it anew.
use diffcache::capi;
use std::fmt::Write;
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The header as a person would have typed it: cbindgen's output without Rust's safety sections,
/// which are for Rust's callers, and with every declaration on one line if it fits.
fn tidy(header: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    let mut safety = false;
    for line in header.lines().map(str::trim_end) {
        let comment = line.starts_with("//");
        if line == "// # Safety" {
            safety = true;
            out.pop_if(|last| last == "//");
        }
        safety &= comment;
        match out.last_mut() {
            _ if safety => {}
            // DC_API, DC_NODISCARD and arguments that cbindgen put on lines of their own.
            Some(last) if last.starts_with("DC_API") && !last.ends_with(';') => {
                let line = line.trim_start();
                let width = last.lines().next_back().map_or(0, str::len) + line.len();
                let space = if width < 96 { " " } else { "\n        " };
                last.push_str(space);
                last.push_str(line);
            }
            _ => out.push(line.to_owned()),
        }
    }
    let text = out.join("\n") + "\n";
    let text = text.replace("(struct dc_", "(dc_").replace(" struct dc_", " dc_");
    let text = text.replace("typedef dc_", "typedef struct dc_");
    let text = text.replace("const dc_tensor_t *in_,", "const dc_tensor_t *in,");
    text.replace("4294967295", "UINT32_MAX").replace("4294967294", "(UINT32_MAX - 1)")
}

#[test]
fn the_header_is_generated_from_the_docs() {
    let config =
        cbindgen::Config::from_file(format!("{ROOT}/cbindgen.toml")).expect("cbindgen.toml");
    let mut header = Vec::new();
    cbindgen::Builder::new()
        .with_src(format!("{ROOT}/src/capi/types.rs"))
        .with_src(format!("{ROOT}/src/capi/functions.rs"))
        .with_config(config)
        .generate()
        .expect("src/capi is plain enough for cbindgen")
        .write(&mut header);
    let header = tidy(&String::from_utf8(header).expect("text"));
    let path = format!("{ROOT}/include/diffcache.h");
    if std::env::var_os("DC_WRITE_HEADER").is_some() {
        std::fs::write(&path, &header).expect("include/ is writable");
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == header, "include/diffcache.h is stale: run `make header`");
}

#[test]
fn the_version_is_the_crates() {
    let parts = [capi::DC_VERSION_MAJOR, capi::DC_VERSION_MINOR, capi::DC_VERSION_PATCH];
    assert_eq!(parts.map(|part| part.to_string()).join("."), env!("CARGO_PKG_VERSION"));
    let [major, minor, patch] = parts;
    assert_eq!(capi::dc_version_number(), major * 10_000 + minor * 100 + patch);
}

/// One `_Static_assert` for the size and each offset of a struct.
macro_rules! layout {
    ($c:ident, $type:ident { $($field:ident),* $(,)? }) => {{
        let name = stringify!($type);
        assert_that(&mut $c, &format!("sizeof({name}) == {}", size_of::<capi::$type>()));
        $(
            let offset = std::mem::offset_of!(capi::$type, $field);
            assert_that(&mut $c, &format!("offsetof({name}, {}) == {offset}", stringify!($field)));
        )*
    }};
}

/// One for each named value.
macro_rules! values {
    ($c:ident, $($name:ident),* $(,)?) => {
        $(assert_that(&mut $c, &format!("(long long){0} == {1}LL", stringify!($name), capi::$name));)*
    };
}

fn assert_that(c: &mut String, claim: &str) {
    writeln!(c, "_Static_assert({claim}, \"{claim}\");").expect("a string takes any text");
}

#[test]
fn c_lays_the_structs_out_as_rust_does() {
    let mut c = String::from("#include \"diffcache.h\"\n");
    layout!(c, dc_tensor_t { data, dtype, ndim, shape, stride, flags, id, reserved });
    layout!(
        c,
        dc_engine_t {
            struct_size,
            magic,
            backend,
            device,
            hooks,
            flags,
            n_blocks,
            n_layers,
            n_branches,
            measure,
            n_threads,
            max_stacked,
            memory_budget,
            mem_alloc,
            mem_free,
            mem_user,
            reduce,
            reduce_user,
            label,
            uncond_branch,
            reserved0,
        }
    );
    layout!(
        c,
        dc_options_t {
            struct_size,
            magic,
            preset,
            rule,
            scope,
            estimator,
            on_residual,
            compat,
            lagged,
            share,
            fill,
            history_dtype,
            max_age,
            front_blocks,
            back_blocks,
            order,
            warmup_steps,
            warmup_interval,
            last_steps,
            max_consecutive,
            max_total,
            threshold,
            max_error,
            max_run_error,
            max_gain,
            every,
            cond_only,
            window,
            kind_every,
            kind_layers,
            kind_window,
            mlp_at,
            n_mlp_at,
            mlp_skips,
            weight,
            scale,
            guide_every,
            guide_max_growth,
            guide_window,
            guide_low,
            guide_high,
            guide_low_window,
            guide_high_window,
            mask_len,
            reserved1,
            mask,
            n_table,
            reserved0,
            table,
        }
    );
    layout!(c, dc_shape_t { hook, kind, branch, count, tensors, n, reserved0 });
    layout!(
        c,
        dc_run_t {
            struct_size,
            n_steps,
            first_step,
            end_step,
            timesteps,
            timestep_max,
            n_shapes,
            shapes,
            stream,
        }
    );
    layout!(c, dc_pass_t { struct_size, step, n_branches, branches, flags, timestep, stream });
    layout!(
        c,
        dc_stats_t {
            struct_size,
            first_error,
            passes,
            passes_skipped,
            blocks_computed,
            blocks_skipped,
            layers_computed,
            layers_skipped,
            uncond_computed,
            uncond_skipped,
            not_finite,
            discarded,
            errors,
            bytes_held,
            bytes_peak,
            allocations,
            wait_ns,
            threshold,
            change_p5,
            change_p50,
            change_p95,
        }
    );
    layout!(
        c,
        dc_trace_t { step, branch, unit, action, reason, timestep, change, accumulated, threshold }
    );
    values!(
        c,
        DC_VERSION_MAJOR,
        DC_VERSION_MINOR,
        DC_VERSION_PATCH,
        DC_MAX_DIMS,
        DC_MAX_TENSORS,
        DC_MAX_BRANCHES,
        DC_MAX_KINDS,
        DC_MAX_STEPS,
        DC_MAX_TABLE,
        DC_NONE,
        DC_AUTO,
        DC_MODEL,
        DC_UNCOND,
        DC_HOOK_BLOCKS,
        DC_HOOK_EACH,
        DC_HOOK_LAYERS,
        DC_HOOK_MODEL,
        DC_HOOK_GUIDE,
        DC_ENGINE_KEEPS_INPUT,
        DC_TENSOR_HOST,
        DC_PASS_LAST,
        DC_PASS_COMPUTE,
        DC_PASS_FORGET,
        DC_PASS_TIMESTEP,
        DC_OK,
        DC_ERR_ARG,
        DC_ERR_STATE,
        DC_ERR_HANDLE,
        DC_ERR_BUSY,
        DC_ERR_SHAPE,
        DC_ERR_MEMORY,
        DC_ERR_DEVICE,
        DC_ERR_UNSUPPORTED,
        DC_ERR_VERSION,
        DC_ERR_INTERNAL,
        DC_ERR_CAPTURE,
        DC_ERR_DISCARD,
        DC_COMPUTE,
        DC_SKIP,
        DC_UNDECIDED,
        DC_BACKEND_CPU,
        DC_BACKEND_CUDA,
        DC_F32,
        DC_F16,
        DC_BF16,
        DC_RULE_NONE,
        DC_RULE_CHANGE,
        DC_RULE_SCHEDULE,
        DC_KIND_SPATIAL,
        DC_KIND_TEMPORAL,
        DC_KIND_CROSS,
        DC_KIND_MLP,
        DC_SCOPE_STACK,
        DC_SCOPE_MODEL,
        DC_SCOPE_BLOCK,
        DC_SCOPE_LAYERS,
        DC_ESTIMATOR_HOLD,
        DC_ESTIMATOR_TAYLOR,
        DC_ESTIMATOR_NEWTON,
        DC_ESTIMATOR_HERMITE,
        DC_ESTIMATOR_LINEAR,
        DC_ESTIMATOR_FOCA,
        DC_COMPAT_NONE,
        DC_COMPAT_DIFFUSERS,
        DC_COMPAT_PAPER,
        DC_LOG_OFF,
        DC_LOG_ERROR,
        DC_LOG_WARN,
        DC_LOG_INFO,
        DC_LOG_DEBUG,
        DC_REASON_NONE,
        DC_REASON_WARMUP,
        DC_REASON_LAST,
        DC_REASON_NO_HISTORY,
        DC_REASON_RULE,
        DC_REASON_MAX_CONSECUTIVE,
        DC_REASON_MAX_TOTAL,
        DC_REASON_MAX_ERROR,
        DC_REASON_NOT_FINITE,
        DC_REASON_SHAPE,
        DC_REASON_MEMORY,
        DC_REASON_CAPTURE,
        DC_REASON_VETO,
        DC_REASON_ENGINE,
        DC_REASON_SHARED,
        DC_REASON_ERROR,
        DC_REASON_AGE,
        DC_REASON_INTERVAL,
        DC_REASON_WINDOW,
        DC_REASON_UNLISTED,
        DC_REASON_GUIDANCE,
        DC_REASON_TIMESTEP,
    );
    // Frozen for ever.
    for claim in [
        "sizeof(dc_tensor_t) == 128",
        "DC_OK == 0 && DC_ERR_ARG == -1 && DC_ERR_CAPTURE == -11 && DC_ERR_DISCARD == -100",
        "DC_COMPUTE == 0 && DC_SKIP == 1 && DC_UNDECIDED == 2",
        "DC_F32 == 1 && DC_F16 == 2 && DC_BF16 == 3",
    ] {
        assert_that(&mut c, claim);
    }
    let file = format!("{}/layout.c", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&file, c).expect("cargo's folder is writable");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-fsyntax-only", "-I"]).arg(format!("{ROOT}/include")).arg(&file);
    assert!(cc.status().expect("a C compiler").success());
}

/// Padding would let garbage of the caller's stack decide whether two structs are equal.
#[test]
fn the_structs_have_no_padding() {
    let general = 8 + 24 + 18 * 4 + 4 * 8;
    let layers = 2 * 4 + 2 * 8 + 8 * (4 + 4 + 2 * 8) + 16 * 8 + 2 * 4 + 2 * 8 + 8;
    let guidance = 2 * 4 + 2 * 8 + 2 * 8 + 4 * 8;
    let options = general + layers + guidance + 8 + 256 + 8 + 256 * 8;
    assert_eq!(size_of::<capi::dc_options_t>(), options);
    assert_eq!(size_of::<capi::dc_tensor_t>(), 8 + 8 + 12 * 8 + 8 + 8);
}

#[test]
fn the_shared_library_exports_the_headers_functions_and_nothing_else() {
    let header = std::fs::read_to_string(format!("{ROOT}/include/diffcache.h")).expect("a header");
    let mut declared: Vec<_> = header
        .lines()
        .filter(|line| line.starts_with("DC_API"))
        .filter_map(|line| line.split('(').next()?.split([' ', '*']).next_back())
        .collect();
    declared.sort_unstable();
    assert!(declared.len() >= 20, "{declared:?}");

    let library = test_library();
    let nm = Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output().expect("nm");
    let symbols = String::from_utf8(nm.stdout).expect("text");
    let mut exported: Vec<_> =
        symbols.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    assert_eq!(exported, declared);

    let readelf = Command::new("readelf").arg("-d").arg(&library).output().expect("readelf");
    let dynamic = String::from_utf8(readelf.stdout).expect("text");
    let minor = capi::DC_VERSION_MINOR;
    assert!(dynamic.contains(&format!("Library soname: [libdiffcache.so.0.{minor}]")), "{dynamic}");
}

/// The cdylib that cargo built beside this test.
fn test_library() -> std::path::PathBuf {
    let exe = std::env::current_exe().expect("a running test");
    let deps = exe.parent().expect("target/<profile>/deps");
    let newest = |folder: &std::path::Path| {
        let entries = std::fs::read_dir(folder).ok()?.filter_map(Result::ok);
        let libraries = entries.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("libdiffcache") && name.ends_with(".so")
        });
        libraries.max_by_key(|path| path.metadata().and_then(|data| data.modified()).ok())
    };
    newest(deps).or_else(|| newest(deps.parent()?)).expect("cargo test builds the cdylib")
}
