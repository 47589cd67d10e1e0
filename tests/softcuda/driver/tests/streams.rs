//! Streams and events: when work runs, and what comes before what.

mod support;

use softcuda::*;
use support::*;

const POISON: u32 = u32::MAX;

fn value(host: *const u32) -> u32 {
    // SAFETY: pinned memory of the test's own.
    unsafe { host.read_volatile() }
}

/// Queues a copy of the first number at `address` to pinned memory.
fn fetch(address: u64, stream: usize) -> *const u32 {
    let host = pinned(1);
    ok(unsafe { cuMemcpyDtoHAsync_v2(host.cast(), address, 4, stream) });
    host
}

#[test]
fn work_runs_when_something_waits_for_it_and_not_before() {
    context();
    let (stream, address) = (stream(), memory(4));
    ok(set(address, 7, 1, stream));
    let host = fetch(address, stream);
    assert_eq!(value(host), POISON, "nobody has waited");
    ok(cuStreamSynchronize(stream));
    assert_eq!(value(host), 7);
}

#[test]
fn a_stream_does_not_hold_work_without_end() {
    context();
    let (stream, address) = (stream(), memory(4));
    ok(set(address, 1, 1, stream));
    let host = fetch(address, stream);
    for _ in 0..20_000 {
        ok(set(address, 2, 1, stream));
    }
    assert_eq!(value(host), 1, "the oldest work has run");
    let late = fetch(address, stream);
    assert_eq!(value(late), POISON, "the newest has not");
}

#[test]
fn a_wait_for_one_stream_runs_no_other() {
    context();
    let (one, other, address) = (stream(), stream(), memory(8));
    ok(set(address, 1, 1, one));
    ok(set(address + 4, 2, 1, other));
    let (first, second) = (fetch(address, one), fetch(address + 4, other));
    ok(cuStreamSynchronize(one));
    assert_eq!((value(first), value(second)), (1, POISON));
    ok(cuCtxSynchronize());
    assert_eq!(value(second), 2);
}

#[test]
fn an_event_is_done_when_the_work_before_it_is() {
    context();
    let (stream, address) = (stream(), memory(4));
    ok(cuEventQuery(event())); // never recorded
    ok(set(address, 1, 1, stream));
    let host = fetch(address, stream);
    let event = recorded(stream);
    ok(set(address, 2, 1, stream));
    let late = fetch(address, stream);
    assert_eq!(cuEventQuery(event), NOT_READY);
    ok(cuEventSynchronize(event));
    ok(cuEventQuery(event));
    assert_eq!((value(host), value(late)), (1, POISON));
    assert_eq!(cuStreamQuery(stream), NOT_READY);
}

#[test]
fn a_loop_that_polls_comes_to_an_end() {
    context();
    let (stream, address) = (stream(), memory(4));
    for i in 0..5 {
        ok(set(address, i, 1, stream));
    }
    let event = recorded(stream);
    let polls = (0..100).take_while(|_| cuEventQuery(event) == NOT_READY).count();
    assert!((1..100).contains(&polls));
    ok(set(address, 1, 1, stream));
    let polls = (0..100).take_while(|_| cuStreamQuery(stream) == NOT_READY).count();
    assert!((1..100).contains(&polls));
}

#[test]
fn an_event_recorded_again_is_where_it_was_last_recorded() {
    context();
    let (stream, address) = (stream(), memory(4));
    let event = recorded(stream);
    ok(cuEventSynchronize(event));
    ok(set(address, 1, 1, stream));
    let host = fetch(address, stream);
    ok(cuEventRecord(event, stream));
    assert_eq!(cuEventQuery(event), NOT_READY);
    ok(cuEventSynchronize(event));
    assert_eq!(value(host), 1);
}

#[test]
fn the_time_between_two_events_is_known_when_both_have_happened() {
    context();
    let (stream, address) = (stream(), memory(4));
    let timed = || got(|event| unsafe { cuEventCreate(event, 0) });
    let (start, end) = (timed(), timed());
    let mut time = -1.0;
    assert_eq!(
        unsafe { cuEventElapsedTime(&mut time, start, end) },
        INVALID_HANDLE,
        "never recorded"
    );
    ok(cuEventRecord(start, stream));
    ok(set(address, 1, 1, stream));
    ok(cuEventRecord(end, stream));
    assert_eq!(unsafe { cuEventElapsedTime(&mut time, start, end) }, NOT_READY);
    ok(cuEventSynchronize(end));
    ok(unsafe { cuEventElapsedTime(&mut time, start, end) });
    assert!(time > 0.0);
    let untimed = recorded(stream);
    ok(cuEventSynchronize(untimed));
    assert_eq!(unsafe { cuEventElapsedTime(&mut time, start, untimed) }, INVALID_HANDLE);
}

#[test]
fn a_stream_waits_for_what_the_event_stood_for_at_the_call() {
    context();
    let (one, other, address) = (stream(), stream(), memory(8));
    ok(set(address, 1, 1, one));
    let event = recorded(one);
    ok(cuStreamWaitEvent(other, event, 0));
    ok(cuEventRecord(event, other)); // moves the event, not the wait
    ok(cuEventDestroy_v2(event));
    let host = fetch(address, other);
    ok(cuStreamSynchronize(other));
    assert_eq!(value(host), 1);
}

#[test]
fn a_chain_through_many_streams_runs_in_order() {
    context();
    let (streams, address) = ([stream(), stream(), stream()], memory(4));
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    ok(set(address, 0, 1, streams[0]));
    for i in 0..300 {
        ok(launch(add_one, 1, 32, streams[i % 3], &[address, 1]));
        ok(cuStreamWaitEvent(streams[(i + 1) % 3], recorded(streams[i % 3]), 0));
    }
    let host = fetch(address, streams[0]);
    ok(cuStreamSynchronize(streams[0]));
    assert_eq!(value(host), 300);
}

#[test]
fn the_null_stream_orders_with_blocking_streams_both_ways() {
    for null in [0, 1] {
        context();
        let (blocking, address) = (blocking_stream(), memory(4));
        ok(set(address, 1, 1, blocking));
        let host = fetch(address, null);
        ok(set(address, 2, 1, null));
        let after = fetch(address, blocking);
        ok(cuStreamSynchronize(blocking));
        assert_eq!((value(host), value(after)), (1, 2));
    }
}

#[test]
fn the_per_thread_stream_is_a_blocking_stream_of_the_threads_own() {
    let context = context();
    let address = memory(4);
    ok(set(address, 1, 1, 2));
    let host = fetch(address, NULL_STREAM);
    ok(cuStreamSynchronize(NULL_STREAM));
    assert_eq!(value(host), 1);
    ok(set(address, 2, 1, 2));
    std::thread::spawn(move || {
        ok(cuCtxPushCurrent_v2(context));
        ok(cuStreamQuery(2)); // this thread's has nothing to do
    })
    .join()
    .unwrap();
    assert_eq!(cuStreamQuery(2), NOT_READY);
}

#[test]
fn the_null_stream_does_not_order_with_non_blocking_streams() {
    context();
    let (stream, address) = (stream(), memory(4));
    ok(set(address, 1, 1, stream));
    assert_eq!(read(address, 1), Ok(vec![POISON]), "the write has not run");
    assert_eq!(
        cuStreamSynchronize(stream),
        ILLEGAL_ADDRESS,
        "and when it does, the two have raced"
    );
}

#[test]
fn a_missing_wait_between_two_streams_is_a_data_race() {
    context();
    let (producer, consumer, address) = (stream(), stream(), memory(4096));
    let add_one = kernel(kernels::ADD_ONE, "add_one");
    ok(set(address, 1, 1024, producer));
    ok(launch(add_one, 8, 128, consumer, &[address, 1024]));
    ok(cuStreamSynchronize(producer));
    assert_eq!(cuStreamSynchronize(consumer), ILLEGAL_ADDRESS);
}

#[test]
fn a_race_is_found_whichever_side_ran_first() {
    for wait_for_reader in [true, false] {
        context();
        let (writer, reader, address) = (stream(), stream(), memory(4));
        ok(set(address, 1, 1, NULL_STREAM));
        ok(cuCtxSynchronize());
        fetch(address, reader);
        ok(set(address, 2, 1, writer));
        let first = if wait_for_reader { reader } else { writer };
        ok(cuStreamSynchronize(first));
        assert_eq!(cuCtxSynchronize(), ILLEGAL_ADDRESS);
    }
}

#[test]
fn readers_and_disjoint_writers_do_not_race() {
    context();
    let (one, other, address) = (stream(), stream(), memory(8));
    ok(set(address, 1, 1, one));
    ok(set(address + 4, 2, 1, other));
    ok(cuCtxSynchronize());
    fetch(address, one);
    fetch(address, other);
    ok(cuCtxSynchronize());
}

#[test]
fn a_host_wait_orders_what_comes_after_it() {
    context();
    let (one, other, address) = (stream(), stream(), memory(4));
    ok(set(address, 1, 1, one));
    ok(cuStreamSynchronize(one));
    ok(set(address, 2, 1, other));
    while cuStreamQuery(other) == NOT_READY {}
    let host = fetch(address, one);
    ok(cuStreamSynchronize(one));
    assert_eq!(value(host), 2);
}

#[test]
fn events_order_streams_of_two_devices() {
    context_on(0);
    let (one, first) = (stream(), memory(4));
    let host = pinned(1);
    ok(set(first, 5, 1, one));
    ok(unsafe { cuMemcpyDtoHAsync_v2(host.cast(), first, 4, one) });
    let event = recorded(one);
    context_on(1);
    let (other, second) = (stream(), memory(4));
    ok(cuStreamWaitEvent(other, event, 0));
    ok(unsafe { cuMemcpyHtoDAsync_v2(second, host.cast(), 4, other) });
    let back = fetch(second, other);
    ok(cuStreamSynchronize(other));
    assert_eq!(value(back), 5);
    assert_eq!(
        cuEventRecord(event, other),
        INVALID_HANDLE,
        "an event is recorded in its own context only"
    );
}

#[test]
fn a_destroyed_stream_finishes_its_work() {
    context();
    let (stream, address) = (stream(), memory(4));
    ok(set(address, 9, 1, stream));
    let host = fetch(address, stream);
    ok(cuStreamDestroy_v2(stream));
    assert_eq!(cuStreamSynchronize(stream), INVALID_HANDLE);
    ok(cuCtxSynchronize());
    assert_eq!(value(host), 9);
}

#[test]
fn handles_that_are_none_are_refused() {
    context();
    let stream = stream();
    assert_eq!(cuStreamSynchronize(stream + 1), INVALID_HANDLE);
    assert_eq!(cuStreamDestroy_v2(NULL_STREAM), INVALID_HANDLE);
    assert_eq!(cuEventRecord(stream, stream), INVALID_HANDLE);
    assert_eq!(cuEventSynchronize(0), INVALID_HANDLE);
    assert_eq!(cuStreamWaitEvent(stream, 12345, 0), INVALID_HANDLE);
    let event = event();
    ok(cuEventDestroy_v2(event));
    assert_eq!(cuEventDestroy_v2(event), INVALID_HANDLE);
    let mut place = 0;
    assert_eq!(unsafe { cuStreamCreate(&mut place, 8) }, INVALID_VALUE);
}

#[test]
fn threads_may_call_at_the_same_time() {
    let context = context();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            std::thread::spawn(move || {
                ok(cuCtxPushCurrent_v2(context));
                let (stream, address) = (stream(), memory(4));
                for i in 0..200 {
                    ok(set(address, worker * 1000 + i, 1, stream));
                    let host = fetch(address, stream);
                    ok(cuStreamSynchronize(stream));
                    assert_eq!(value(host), worker * 1000 + i);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}
