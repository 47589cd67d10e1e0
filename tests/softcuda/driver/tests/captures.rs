//! Stream capture: what a capture allows, and what breaks it.

mod support;

use softcuda::*;
use std::ffi::c_int;
use support::*;

const GLOBAL: c_int = 0;
const THREAD_LOCAL: c_int = 1;
const RELAXED: c_int = 2;

const UNSUPPORTED: c_int = 900;
const INVALIDATED: c_int = 901;
const IMPLICIT: c_int = 906;

fn status(stream: usize) -> c_int {
    got(|status| unsafe { cuStreamIsCapturing(stream, status) })
}

fn begin(stream: usize, mode: c_int) {
    ok(cuStreamBeginCapture_v2(stream, mode));
}

/// The nodes of the graph, or why there is none.
fn end(stream: usize) -> Result<usize, c_int> {
    let mut graph = 1;
    match unsafe { cuStreamEndCapture(stream, &mut graph) } {
        0 => {
            let nodes = got(|count| unsafe { cuGraphGetNodes(graph, std::ptr::null_mut(), count) });
            ok(cuGraphDestroy(graph));
            assert_eq!(cuGraphDestroy(graph), INVALID_VALUE);
            Ok(nodes)
        }
        code => {
            assert_eq!(graph, 0);
            Err(code)
        }
    }
}

fn exchange(mode: c_int) -> c_int {
    let mut mode = mode;
    ok(unsafe { cuThreadExchangeStreamCaptureMode(&mut mode) });
    mode
}

#[test]
fn captured_work_is_recorded_and_not_run() {
    let _alone = alone();
    context();
    let (stream, address) = (stream(), memory(4));
    ok(cuMemsetD32_v2(address, 1, 1));
    ok(cuCtxSynchronize());
    begin(stream, RELAXED);
    assert_eq!(status(stream), 1);
    ok(set(address, 2, 1, stream));
    ok(launch(kernel(kernels::ADD_ONE, "add_one"), 1, 32, stream, &[address, 1]));
    assert_eq!(end(stream), Ok(2));
    assert_eq!(status(stream), 0);
    ok(cuStreamSynchronize(stream));
    assert_eq!(read(address, 1).unwrap(), [1]);
}

#[test]
fn waiting_for_a_capturing_stream_breaks_its_capture() {
    let _alone = alone();
    context();
    let calls: [fn(usize) -> c_int; 3] = [
        |stream| cuStreamSynchronize(stream),
        |stream| cuStreamQuery(stream),
        |_| cuCtxSynchronize(),
    ];
    for call in calls {
        let stream = stream();
        begin(stream, RELAXED);
        assert_eq!(call(stream), UNSUPPORTED);
        assert_eq!(status(stream), 2);
        assert_eq!(set(memory(4), 0, 1, stream), INVALIDATED);
        assert_eq!(end(stream), Err(INVALIDATED));
        assert_eq!(status(stream), 0);
    }
}

#[test]
fn an_event_recorded_in_a_capture_is_not_waited_for() {
    let _alone = alone();
    context();
    for call in
        [|event| cuEventSynchronize(event), |event| cuEventQuery(event)] as [fn(usize) -> c_int; 2]
    {
        let stream = stream();
        begin(stream, RELAXED);
        assert_eq!(call(recorded(stream)), 907);
        assert_eq!(end(stream), Err(INVALIDATED));
    }
}

#[test]
fn asking_whether_a_stream_captures_disturbs_nothing() {
    let _alone = alone();
    context();
    let (blocking, other) = (blocking_stream(), stream());
    begin(blocking, GLOBAL);
    assert_eq!((status(blocking), status(other)), (1, 0));
    let mut unknown = 0;
    assert_eq!(unsafe { cuStreamIsCapturing(NULL_STREAM, &mut unknown) }, IMPLICIT);
    assert_eq!(end(blocking), Ok(0));
    assert_eq!(status(NULL_STREAM), 0);
}

#[test]
fn the_null_stream_beside_a_capture_of_a_blocking_stream_breaks_it() {
    let _alone = alone();
    context();
    let (address, blocking, independent) = (memory(4), blocking_stream(), stream());
    begin(blocking, RELAXED);
    assert_eq!(set(address, 0, 1, NULL_STREAM), IMPLICIT);
    assert_eq!(end(blocking), Err(INVALIDATED));
    begin(independent, RELAXED);
    ok(set(address, 0, 1, NULL_STREAM));
    assert_eq!(end(independent), Ok(0));
    assert_eq!(cuStreamBeginCapture_v2(NULL_STREAM, RELAXED), UNSUPPORTED);
}

type Call = Box<dyn Fn() -> c_int>;

/// Calls that a capture may forbid.
fn unsafe_calls() -> Vec<(&'static str, Call)> {
    let (address, other, event) = (memory(4), stream(), event());
    vec![
        ("cuMemAlloc", Box::new(|| unsafe { cuMemAlloc_v2(&mut 0, 4) })),
        ("cuMemFree", Box::new(move || cuMemFree_v2(address))),
        ("cuMemHostAlloc", Box::new(|| unsafe { cuMemHostAlloc(&mut std::ptr::null_mut(), 4, 0) })),
        ("cuModuleLoadData", Box::new(|| load(kernels::ADD_ONE).err().unwrap_or(0))),
        ("cuStreamSynchronize", Box::new(move || cuStreamSynchronize(other))),
        ("cuStreamQuery", Box::new(move || cuStreamQuery(other))),
        ("cuEventSynchronize", Box::new(move || cuEventSynchronize(event))),
        ("cuEventQuery", Box::new(move || cuEventQuery(event))),
        ("cuMemcpyDtoH", Box::new(move || read(address, 1).err().unwrap_or(0))),
    ]
}

#[test]
fn unsafe_calls_break_a_capture_of_mode_global_from_any_thread() {
    let _alone = alone();
    let context = context();
    let count = unsafe_calls().len();
    for i in 0..count {
        let stream = stream();
        begin(stream, GLOBAL);
        std::thread::spawn(move || {
            ok(cuCtxPushCurrent_v2(context));
            exchange(RELAXED);
            let calls = unsafe_calls();
            exchange(GLOBAL);
            let (name, call) = &calls[i];
            assert_eq!(call(), UNSUPPORTED, "{name}");
        })
        .join()
        .unwrap();
        assert_eq!(status(stream), 2);
        assert_eq!(end(stream), Err(INVALIDATED));
    }
}

#[test]
fn a_thread_that_is_relaxed_may_make_them() {
    let _alone = alone();
    context();
    let (stream, calls) = (stream(), unsafe_calls());
    begin(stream, GLOBAL);
    assert_eq!(exchange(RELAXED), GLOBAL);
    for (name, call) in calls.iter().filter(|(name, _)| *name != "cuMemFree") {
        assert!([0, NOT_READY].contains(&call()), "{name}");
    }
    assert_eq!(exchange(GLOBAL), RELAXED);
    assert_eq!(end(stream), Ok(0));
}

#[test]
fn a_thread_local_capture_minds_its_own_thread_only() {
    let _alone = alone();
    let context = context();
    let stream = stream();
    begin(stream, THREAD_LOCAL);
    std::thread::spawn(move || {
        ok(cuCtxPushCurrent_v2(context));
        memory(4);
    })
    .join()
    .unwrap();
    assert_eq!(status(stream), 1);
    let mut address = 0;
    assert_eq!(unsafe { cuMemAlloc_v2(&mut address, 4) }, UNSUPPORTED);
    assert_eq!(end(stream), Err(INVALIDATED));
}

#[test]
fn stream_ordered_calls_on_other_streams_are_safe() {
    let _alone = alone();
    context();
    let (capturing, other) = (stream(), stream());
    begin(capturing, GLOBAL);
    let address = memory_on(other, 4);
    ok(set(address, 1, 1, other));
    ok(cuMemFreeAsync(address, other));
    let event = recorded(other);
    assert_eq!(end(capturing), Ok(0));
    ok(cuEventSynchronize(event));
}

#[test]
fn a_capturing_stream_does_not_wait_for_work_outside() {
    let _alone = alone();
    context();
    let (capturing, other) = (stream(), stream());
    let event = recorded(other);
    begin(capturing, RELAXED);
    assert_eq!(cuStreamWaitEvent(capturing, event, 0), 905);
    assert_eq!(end(capturing), Err(INVALIDATED));
}

#[test]
fn a_capture_takes_in_streams_by_events_and_wants_them_back() {
    let _alone = alone();
    context();
    let (origin, side, address) = (stream(), stream(), memory(8));
    let fork = || {
        begin(origin, RELAXED);
        ok(set(address, 1, 1, origin));
        ok(cuStreamWaitEvent(side, recorded(origin), 0));
        assert_eq!(status(side), 1);
        ok(set(address + 4, 1, 1, side));
    };
    fork();
    assert_eq!(end(side), Err(903), "it began in another stream");
    assert_eq!(end(origin), Err(INVALIDATED));
    fork();
    assert_eq!(end(origin), Err(904), "not joined");
    assert_eq!(status(side), 0);
    fork();
    ok(cuStreamWaitEvent(origin, recorded(side), 0));
    assert_eq!(end(origin), Ok(4));
}

#[test]
fn a_capture_ends_in_its_own_thread_unless_relaxed() {
    let _alone = alone();
    let context = context();
    for (mode, outcome) in [(THREAD_LOCAL, Err(908)), (RELAXED, Ok(0))] {
        let stream = stream();
        begin(stream, mode);
        assert_eq!(cuStreamBeginCapture_v2(stream, mode), 401, "it is capturing");
        let ended = std::thread::spawn(move || {
            ok(cuCtxPushCurrent_v2(context));
            end(stream)
        });
        assert_eq!(ended.join().unwrap(), outcome);
        if outcome.is_err() {
            assert_eq!(end(stream), Err(INVALIDATED));
        }
        assert_eq!(end(stream), Err(401), "it is not capturing");
    }
}

#[test]
fn memory_of_a_graph_is_not_there_before_its_launch() {
    let _alone = alone();
    context();
    let stream = stream();
    begin(stream, GLOBAL);
    let address = memory_on(stream, 4);
    assert_eq!(end(stream), Ok(1));
    assert_eq!(set(address, 0, 1, stream), INVALID_VALUE);
    assert!(fault().contains("graph"), "{}", fault());
}
