//! The bugs a CUDA backend is likely to have, put in on purpose: each must be caught. The kernel is a
//! reduction over several blocks in which the last one done adds up.

mod support;

use softcuda::*;
use support::{kernels::SUM, *};

const ELEMENTS: usize = 1000;
const BLOCKS: u32 = 3;
const EXPECTED: f64 = (ELEMENTS * (ELEMENTS - 1) / 2) as f64;

/// All that one reduction needs, on the device.
struct Reduction {
    function: usize,
    x: u64,
    partials: u64,
    counter: u64,
    result: *const f64,
}

impl Reduction {
    /// Sums 0, 1, 2, ...
    fn new(ptx: &str) -> Reduction {
        context();
        let numbers: Vec<u32> = (0..ELEMENTS).map(|i| (i as f32).to_bits()).collect();
        let reduction = Reduction {
            function: kernel(ptx, "sum"),
            x: memory(ELEMENTS * 4),
            partials: memory(BLOCKS as usize * 8),
            counter: memory(4),
            result: pinned(2).cast(),
        };
        write(reduction.x, &numbers, NULL_STREAM);
        ok(cuMemsetD32_v2(reduction.counter, 0, 1));
        ok(cuCtxSynchronize());
        reduction
    }

    fn launch(&self, stream: usize) {
        let params = [self.x, ELEMENTS as u64, self.partials, self.counter, self.result as u64];
        ok(launch(self.function, BLOCKS, 128, stream, &params));
    }

    /// Whether the sum is right, or the fault.
    fn run(&self) -> Result<bool, (i32, String)> {
        // SAFETY: pinned memory of this reduction's own.
        unsafe { self.result.cast_mut().write(f64::NAN) };
        self.launch(NULL_STREAM);
        match cuStreamSynchronize(NULL_STREAM) {
            0 => Ok(unsafe { self.result.read_volatile() } == EXPECTED),
            code => Err((code, fault())),
        }
    }
}

/// The fault the changed kernel is caught with.
fn caught(from: &str, to: &str) -> (i32, String) {
    let (code, fault) =
        Reduction::new(&kernels::changed(SUM, from, to)).run().expect_err("a fault");
    for part in ["kernel sum", "block (", "warp ", "PTX line "] {
        assert!(fault.contains(part), "{part:?} in {fault:?}");
    }
    (code, fault)
}

#[test]
fn the_kernel_is_right_as_it_is() {
    let reduction = Reduction::new(SUM);
    for _ in 0..3 {
        assert_eq!(reduction.run(), Ok(true));
    }
}

#[test]
fn a_missing_barrier_before_shared_memory_is_read() {
    let (code, fault) = caught("bar.sync 0; // every warp has stored its sum", "");
    assert_eq!(code, LAUNCH_FAILED);
    assert!(fault.contains("SharedRace"), "{fault}");
}

#[test]
fn a_missing_barrier_before_the_block_knows_whether_it_is_the_last() {
    let (code, fault) =
        caught("bar.sync 0; // every warp may know whether the block is the last", "");
    assert_eq!(code, LAUNCH_FAILED);
    assert!(fault.contains("SharedRace"), "{fault}");
}

#[test]
fn a_tail_that_reads_one_element_too_many() {
    let (code, fault) = caught("setp.ge.u32 %p1, %r6, %r1;", "setp.gt.u32 %p1, %r6, %r1;");
    assert_eq!(code, ILLEGAL_ADDRESS);
    assert!(fault.contains("4 bytes past the end of the 4000 bytes"), "{fault}");
}

#[test]
fn a_tail_that_leaves_out_an_element() {
    let changed = kernels::changed(
        SUM,
        "setp.ge.u32 %p1, %r6, %r1;",
        "add.s32 %r18, %r6, 1;\nsetp.ge.u32 %p1, %r18, %r1;",
    );
    assert_eq!(Reduction::new(&changed).run(), Ok(false));
}

#[test]
fn a_counter_that_is_not_reset() {
    let reduction = Reduction::new(&kernels::changed(SUM, "st.global.u32 [%rd3], %r18;", ""));
    assert_eq!(reduction.run(), Ok(true), "the first launch goes well");
    assert_eq!(reduction.run(), Ok(false), "in the second no block is the last");
}

#[test]
fn a_counter_that_starts_as_it_was_allocated() {
    let reduction = Reduction::new(SUM);
    let fresh = Reduction { counter: memory(4), ..reduction };
    assert_eq!(fresh.run(), Ok(false));
}

#[test]
fn a_shuffle_that_lanes_without_elements_do_not_reach() {
    let skip = "mov.f32 %f1, 0f00000000;\nsetp.ge.u32 %p1, %r6, %r1;\n@%p1 bra STORED;";
    let reduction = Reduction::new(&kernels::changed(SUM, "mov.f32 %f1, 0f00000000;", skip));
    let params = [reduction.x, 5, reduction.partials, reduction.counter, reduction.result as u64];
    ok(launch(reduction.function, 1, 128, NULL_STREAM, &params));
    assert_eq!(cuStreamSynchronize(NULL_STREAM), LAUNCH_FAILED);
    assert!(fault().contains("Deadlock"), "{}", fault());
}

#[test]
fn a_missing_event_wait_between_producer_and_kernel() {
    let reduction = Reduction::new(SUM);
    let (producer, consumer) = (stream(), stream());
    ok(set(reduction.x, 0, ELEMENTS, producer));
    reduction.launch(consumer);
    ok(cuStreamSynchronize(consumer));
    assert_eq!(cuStreamSynchronize(producer), ILLEGAL_ADDRESS);
    assert!(fault().contains("data race") && fault().contains("sum"), "{}", fault());
}

#[test]
fn a_result_read_before_its_event() {
    let reduction = Reduction::new(SUM);
    let stream = stream();
    reduction.launch(stream);
    let event = recorded(stream);
    let result = || unsafe { reduction.result.read_volatile() };
    assert!(result().is_nan(), "nobody has waited");
    ok(cuEventSynchronize(event));
    assert_eq!(result(), EXPECTED);
}

#[test]
fn two_launches_in_flight_that_share_a_counter() {
    let reduction = Reduction::new(SUM);
    let (one, other) = (stream(), stream());
    reduction.launch(one);
    reduction.launch(other);
    ok(cuStreamSynchronize(one));
    assert_eq!(cuStreamSynchronize(other), ILLEGAL_ADDRESS);
}

#[test]
fn scratch_freed_on_another_stream_than_uses_it() {
    let reduction = Reduction::new(SUM);
    let (one, other) = (stream(), stream());
    let scratch = Reduction { partials: memory_on(one, BLOCKS as usize * 8), ..reduction };
    scratch.launch(one);
    ok(cuMemFreeAsync(scratch.partials, one));
    ok(cuStreamSynchronize(one)); // so it is right

    let scratch = Reduction { partials: memory_on(one, BLOCKS as usize * 8), ..scratch };
    scratch.launch(one);
    assert!([0, ILLEGAL_ADDRESS].contains(&cuMemFreeAsync(scratch.partials, other)));
    assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
}

#[test]
fn work_on_the_null_stream_instead_of_the_engines() {
    let reduction = Reduction::new(SUM);
    let engine = stream();
    ok(set(reduction.x, 0, ELEMENTS, engine));
    reduction.launch(NULL_STREAM);
    ok(cuStreamSynchronize(engine));
    assert_eq!(cuStreamSynchronize(NULL_STREAM), ILLEGAL_ADDRESS);
}
