/* Whose memory a tensor is: what is not the device's is refused by name, unless the engine says so. */
#include "tape.h"

/* A pass over four blocks of one tensor, computed on whatever thread and device; its end. */
static dc_status_t pass_over(dc_cache_t *cache, uint32_t step, float *data, void *stream)
{
    dc_tensor_t x = floats(data, TAPE_N);
    dc_pass_t pass = pass_of(step, 0);
    pass.stream = stream;
    (void)dc_cache_begin_pass(cache, &pass);
    for (uint32_t i = 0; i < TAPE_BLOCKS; i++) {
        CHECK(dc_cache_before_block(cache, i, &x, NULL, 1) == DC_COMPUTE);
        dc_cache_after_block(cache, i, &x, 1);
    }
    return dc_cache_end_pass(cache);
}

static dc_cache_t *a_cuda_cache(int device)
{
    dc_engine_t engine = an_engine(TAPE_BLOCKS, 1);
    engine.backend = DC_BACKEND_CUDA;
    engine.device = device;
    dc_cache_t *cache = a_cache(&engine, TAPE_METHOD);
    begin_run(cache, TAPE_STEPS);
    return cache;
}

static void host_memory_is_refused_by_name(void)
{
    float *heap = calloc(TAPE_N, sizeof *heap);
    char address[32];
    CHECK(heap != NULL);
    snprintf(address, sizeof address, "%#zx", (size_t)heap);
    dc_cache_t *cache = a_cuda_cache(0);
    CHECK_STATUS(pass_over(cache, 0, heap, NULL), DC_ERR_ARG);
    CHECK_SAYS("host memory");
    CHECK_SAYS("device 0");
    CHECK_SAYS("DC_TENSOR_HOST"); /* what would be right */
    CHECK(strstr(dc_last_error(), address) != NULL);
    CHECK(newest(cache).reason == DC_REASON_ERROR);
    dc_cache_destroy(cache);
    free(heap);
}

static void managed_memory_is_the_devices(const cuda_t *driver, void *primary)
{
    void *data;
    CUDA_OK(driver->CtxSetCurrent(primary));
    CUDA_OK(driver->MemAllocManaged(&data, TAPE_N * sizeof(float), CUDA_ATTACH_GLOBAL));
    memset(data, 0, TAPE_N * sizeof(float));
    dc_cache_t *cache = a_cuda_cache(0);
    CHECK_OK(pass_over(cache, 0, data, NULL));
    dc_cache_destroy(cache);
    CUDA_OK(driver->MemFree(data));
}

/* ---- tensors in host memory beside those of the device ---- */

static void run_beside(tape_t *tape, void *stream, float beside[TAPE_STEPS * TAPE_N])
{
    tape->beside = malloc(TAPE_STEPS * TAPE_N * sizeof *beside);
    CHECK(tape->beside != NULL);
    give_cache(tape, TAPE_METHOD); /* both are measured */
    begin_run(tape->cache, TAPE_STEPS);
    for (uint32_t step = 0; step < TAPE_STEPS; step++) tape_pass(tape, step, stream);
    memcpy(beside, tape->beside, TAPE_STEPS * TAPE_N * sizeof *beside); /* no waiting: it is done at once */
    dc_cache_destroy(tape->cache);
}

static void a_host_tensor_is_measured_and_restored_beside_a_devices(const cuda_t *driver, void *primary)
{
    static float wanted[TAPE_STEPS * TAPE_N], got[TAPE_STEPS * TAPE_N];
    tape_t host = a_tape(NULL, NULL, 0), device = a_tape(driver, primary, 0);
    void *stream = a_stream(&device);
    run_beside(&host, NULL, wanted);
    CHECK(strchr(host.decisions, 's') != NULL && strchr(host.decisions + 1, 'C') != NULL);
    run_beside(&device, stream, got);
    tape_is(&device, host.decisions);
    CHECK(memcmp(got, wanted, sizeof got) == 0);
    end_stream(&device, stream);
    end_tape(&device);
    end_tape(&host);
}

/* ---- two devices ---- */

static void memory_of_another_device_is_refused_by_both_names(const tape_t *second)
{
    dc_cache_t *cache = a_cuda_cache(0);
    CHECK_STATUS(pass_over(cache, 0, second->x, NULL), DC_ERR_ARG);
    CHECK_SAYS("device 0");
    CHECK_SAYS("device 1");
    dc_cache_destroy(cache);
}

static void a_stream_of_another_device_is_refused_by_both_names(const tape_t *first, const tape_t *second)
{
    void *stream = a_stream(second);
    for (int known = 0; known < 2; known++) { /* its own device from the start, or from its first pass on */
        dc_cache_t *cache = a_cuda_cache(known ? 0 : -1);
        void *own = a_stream(first);
        CHECK_OK(pass_over(cache, 0, first->x, own));
        CHECK_STATUS(pass_over(cache, 1, first->x, stream), DC_ERR_DEVICE);
        CHECK_SAYS("device 1");
        CHECK_SAYS("0");
        CHECK_OK(pass_over(cache, 2, first->x, own));
        dc_cache_destroy(cache);
        tape_settle(first);
        end_stream(first, own);
    }
    end_stream(second, stream);
}

static void two_caches_on_two_devices_run_in_turns(tape_t *first, tape_t *second)
{
    char decisions[TAPE_STEPS + 1];
    tape_t *tapes[2] = {first, second};
    void *streams[2] = {a_stream(first), a_stream(second)};
    tape_on_cpu(decisions);
    for (int k = 0; k < 2; k++) {
        give_cache(tapes[k], TAPE_METHOD);
        begin_run(tapes[k]->cache, TAPE_STEPS);
    }
    for (uint32_t step = 0; step < TAPE_STEPS; step++)
        for (int k = 0; k < 2; k++) tape_pass(tapes[k], step, streams[k]);
    for (int k = 0; k < 2; k++) {
        tape_is(tapes[k], decisions);
        dc_cache_destroy(tapes[k]->cache);
        end_stream(tapes[k], streams[k]);
    }
}

int main(void)
{
    const cuda_t *driver = cuda();
    void *primaries[2];
    int devices;
    CUDA_OK(driver->PrimaryCtxRetain(&primaries[0], 0));
    host_memory_is_refused_by_name();
    managed_memory_is_the_devices(driver, primaries[0]);
    a_host_tensor_is_measured_and_restored_beside_a_devices(driver, primaries[0]);
    CUDA_OK(driver->DeviceGetCount(&devices));
    if (devices < 2) {
        printf("one device only: what is about two is left out\n");
        return 0;
    }
    CUDA_OK(driver->PrimaryCtxRetain(&primaries[1], 1));
    tape_t first = a_tape(driver, primaries[0], 0), second = a_tape(driver, primaries[1], 1);
    memory_of_another_device_is_refused_by_both_names(&second);
    a_stream_of_another_device_is_refused_by_both_names(&first, &second);
    two_caches_on_two_devices_run_in_turns(&first, &second);
    end_tape(&first);
    end_tape(&second);
    return 0;
}
