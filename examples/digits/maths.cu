// The model's arithmetic on a CUDA device: the kernels behind maths_cuda.c, one for each operation of maths.h. Plain
// f32, no headers and no libraries; compiled to maths.sm75.ptx, which the demo carries with it, so that it needs a
// driver and no toolkit.

// exp within 2 ulp, as on the CPU: 2^n times the polynomial of Cephes on -ln2/2..ln2/2.
static __device__ __forceinline__ float exponential(float x)
{
    x = fminf(fmaxf(x, -87.0f), 88.0f);
    int n = __float2int_rn(x * 1.44269504f);
    float f = fmaf((float)n, 2.12194440e-4f, fmaf((float)n, -0.693359375f, x));
    float p = 1.9875691500e-4f;
    p = fmaf(p, f, 1.3981999507e-3f);
    p = fmaf(p, f, 8.3334519073e-3f);
    p = fmaf(p, f, 4.1665795894e-2f);
    p = fmaf(p, f, 1.6666665459e-1f);
    p = fmaf(p, f, 5.0000001201e-1f);
    p = fmaf(p, f * f, f) + 1.0f;
    return p * __int_as_float((n + 127) << 23);
}

// Sine and cosine of 0..2000: what is left of the angle beside quarter turns, which are taken away in three parts.
static __device__ __forceinline__ void sine_cosine(float angle, float *sine, float *cosine)
{
    int turns = __float2int_rn(angle * 0.636619772f);
    float r = fmaf((float)turns, -1.57079601e+00f, angle);
    r = fmaf((float)turns, -3.13916473e-07f, r);
    r = fmaf((float)turns, -5.39030253e-15f, r);
    float square = r * r;
    float s = fmaf(fmaf(fmaf(-1.95152959e-4f, square, 8.33216087e-3f), square, -1.66666546e-1f), r * square, r);
    float c = fmaf(fmaf(fmaf(2.44331571e-5f, square, -1.38873163e-3f), square, 4.16666457e-2f), square, -0.5f);
    c = fmaf(c, square, 1.0f);
    float first = turns & 1 ? c : s, second = turns & 1 ? s : c;
    *sine = turns & 2 ? -first : first;
    *cosine = (turns + 1) & 2 ? -second : second;
}

static __device__ __forceinline__ int position() { return (int)(blockIdx.x * blockDim.x + threadIdx.x); }

// y[rows][out] = x[rows][in] * weight[in][out] + bias[out]. A block of 256 threads makes a tile of 64 x 64, a thread 4
// x 4 of it; x and weight pass through shared memory 16 terms at a time. The terms are added in their order, as on the
// CPU.
enum { TILE = 64, DEPTH = 16, EACH = 4 };

extern "C" __global__ void __launch_bounds__(256)
    linear(int rows, int in, int out, const float *x, const float *weight, const float *bias, float *y)
{
    __shared__ __align__(16) float columns_of_x[DEPTH][TILE + EACH], rows_of_weight[DEPTH][TILE];
    int thread = threadIdx.x, first_row = blockIdx.y * TILE, first_column = blockIdx.x * TILE;
    int row = thread / (TILE / EACH) * EACH, column = thread % (TILE / EACH) * EACH;
    float sum[EACH][EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++)
            sum[i][j] = first_column + column + j < out ? bias[first_column + column + j] : 0.0f;

    for (int begin = 0; begin < in; begin += DEPTH) {
        for (int i = thread; i < TILE * DEPTH; i += 256) {
            int r = first_row + i / DEPTH, p = begin + i % DEPTH;
            columns_of_x[i % DEPTH][i / DEPTH] = r < rows && p < in ? x[r * in + p] : 0.0f;
        }
        for (int i = thread; i < TILE * DEPTH; i += 256) {
            int p = begin + i / TILE, c = first_column + i % TILE;
            rows_of_weight[i / TILE][i % TILE] = p < in && c < out ? weight[p * out + c] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int p = 0; p < DEPTH; p++) {
            float4 a = *(const float4 *)&columns_of_x[p][row], b = *(const float4 *)&rows_of_weight[p][column];
            float left[EACH] = {a.x, a.y, a.z, a.w}, right[EACH] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++)
                    sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++)
            if (first_row + row + i < rows && first_column + column + j < out)
                y[(first_row + row + i) * out + first_column + column + j] = sum[i][j];
}

// A block for each head of each picture, a thread for each token. Shared memory: keys and values, and a row of scores
// for each thread, one longer than it must be, so that the threads meet different banks.
extern "C" __global__ void attention(int tokens, int heads, int width, const float *qkv, float *out)
{
    extern __shared__ float shared[];
    int picture = blockIdx.x / heads, size = width / heads, token = threadIdx.x;
    int begin = picture * tokens, offset = blockIdx.x % heads * size;
    float *keys = shared, *values = keys + tokens * size, *scores = values + tokens * size + token * (tokens + 1);
    float scale = sqrtf((float)size);
    for (int i = token; i < tokens * size; i += blockDim.x) {
        const float *row = qkv + (begin + i / size) * 3 * width + offset + i % size;
        keys[i] = row[width] / scale;
        values[i] = row[2 * width];
    }
    __syncthreads();

    const float *query = qkv + (begin + token) * 3 * width + offset;
    float top = -3.0e38f, total = 0.0f;
    for (int j = 0; j < tokens; j++) {
        float sum = 0.0f;
        for (int i = 0; i < size; i++)
            sum = fmaf(query[i], keys[j * size + i], sum);
        scores[j] = sum;
        top = fmaxf(top, sum);
    }
    for (int j = 0; j < tokens; j++)
        total += scores[j] = exponential(scores[j] - top);
    for (int j = 0; j < tokens; j++)
        scores[j] /= total;
    for (int i = 0; i < size; i++) {
        float sum = 0.0f;
        for (int j = 0; j < tokens; j++)
            sum = fmaf(scores[j], values[j * size + i], sum);
        out[(begin + token) * width + offset + i] = sum;
    }
}

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int distance = 16; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

// A warp for each row. `rows` are one picture's, `all` those of all pictures.
extern "C" __global__ void normalise(int all, int rows, int columns, const float *x, const float *scale,
                                     const float *shift, int stride, float *out)
{
    int row = position() / 32, lane = threadIdx.x % 32;
    if (row >= all)
        return;
    x += row * columns, out += row * columns;
    scale += row / rows * stride, shift += row / rows * stride;
    float sum = 0.0f, squares = 0.0f;
    for (int j = lane; j < columns; j += 32)
        sum += x[j];
    float mean = warp_sum(sum) / (float)columns;
    for (int j = lane; j < columns; j += 32)
        squares += (x[j] - mean) * (x[j] - mean);
    float factor = 1.0f / sqrtf(warp_sum(squares) / (float)columns + 1e-5f);
    for (int j = lane; j < columns; j += 32)
        out[j] = (x[j] - mean) * factor * (1.0f + scale[j]) + shift[j];
}

// The rest: a thread for each of `count` elements.

extern "C" __global__ void add_gated(int count, int rows, int columns, const float *gate, int stride, const float *y,
                                     float *x)
{
    int i = position();
    if (i < count)
        x[i] = fmaf(gate[i / columns / rows * stride + i % columns], y[i], x[i]);
}

extern "C" __global__ void add(int count, int period, const float *y, float *x)
{
    int i = position();
    if (i < count)
        x[i] += y[i % period];
}

extern "C" __global__ void add_chosen(int count, int columns, const float *table, const int *index, float *x)
{
    int i = position();
    if (i < count)
        x[i] += table[index[i / columns] * columns + i % columns];
}

extern "C" __global__ void permute(int count, int period, const float *x, const int *order, float *out)
{
    int i = position();
    if (i < count)
        out[i] = x[i - i % period + order[i % period]];
}

extern "C" __global__ void silu(int count, float *x)
{
    int i = position();
    if (i < count)
        x[i] /= 1.0f + exponential(-x[i]);
}

extern "C" __global__ void gelu(int count, float *x)
{
    int i = position();
    if (i < count)
        x[i] /= 1.0f + exponential(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
}

extern "C" __global__ void waves(int count, int half, const float *t, const float *frequency, float *out)
{
    int i = position(), picture = i / half;
    if (i < count)
        sine_cosine(1000.0f * t[picture] * frequency[i % half], &out[i + (picture + 1) * half],
                    &out[i + picture * half]);
}

extern "C" __global__ void advance(int count, float dt, float guidance, const float *uncond, const float *cond,
                                   float *x)
{
    int i = position();
    if (i < count)
        x[i] = fmaf(dt, fmaf(guidance, cond[i] - uncond[i], uncond[i]), x[i]);
}
