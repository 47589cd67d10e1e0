// diffcache.hpp: diffcache.h for C++11 and later. Header only; link the same library.
//
//     diffcache::Engine engine;                               // what the engine is: once, by its author
//     engine.n_blocks = 57;
//     engine.hooks = DC_HOOK_EACH;
//     diffcache::Options options("fbcache,threshold=0.1");    // what the user wants: text, per request
//     diffcache::Cache cache(engine, options);
//
//     diffcache::Run run(cache, n_steps);
//     for (uint32_t step = 0; step < n_steps; step++)
//         run.evaluate(step, [&](diffcache::Pass &pass) {
//             load_input(x);
//             for (uint32_t i = 0; i < 57; i++)
//                 pass.block(i, x, [&] { run_block(i); });
//         });
//
// Layers and guidance in the same manner: pass.layer(i, DC_KIND_SPATIAL, out, [&] { ... }) where block(...) stands, and
// run.uncond(step, cond, uncond, [&] { ... }) after the pass of the conditional branch.
//
// Setting up throws `Error`; sampling never does. A failure there only means that the library stood aside and the engine
// computed: the image is right, and `status()` says why it took longer.
//
// The structures are those of diffcache.h, whose manual holds here too; `get()` gives the handle for any call that has no
// method of its own.
#ifndef DIFFCACHE_HPP
#define DIFFCACHE_HPP

#include "diffcache.h"

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace diffcache {

/// A call of the set-up failed. `what()` is the library's text.
class Error : public std::runtime_error {
public:
    /// Of the call that has just failed in this thread.
    explicit Error(dc_status_t status)
        : std::runtime_error(std::string(dc_status_name(status)) + ": " + dc_last_error()), status_(status) {}

    dc_status_t status() const noexcept { return status_; }

private:
    dc_status_t status_;
};

/// Throws unless `status` is DC_OK.
inline void check(dc_status_t status)
{
    if (status != DC_OK) throw Error(status);
}

/// What the engine is, with the library's defaults.
struct Engine : dc_engine_t {
    Engine() { check(dc_engine_init(this, sizeof(dc_engine_t))); }
};

/// What the user wants. Parses as dc_options_parse does: a preset, then any keys. Empty is the preset `none`.
struct Options : dc_options_t {
    explicit Options(const std::string &text = std::string())
    {
        check(dc_options_init(this, sizeof(dc_options_t), nullptr));
        parse(text);
    }

    /// All or nothing: on an error these options are what they were.
    Options &parse(const std::string &text)
    {
        if (!text.empty()) check(dc_options_parse(this, text.c_str()));
        return *this;
    }

    /// The canonical text, which `parse` reads back.
    std::string text() const
    {
        std::size_t length = 0;
        check(dc_options_format(this, nullptr, 0, &length));
        std::string text(length + 1, '\0');
        check(dc_options_format(this, &text[0], text.size(), &length));
        text.resize(length);
        return text;
    }
};

/// A view of dense data, the last dimension fastest.
inline dc_tensor_t tensor(void *data, dc_dtype_t dtype, std::initializer_list<int64_t> shape) noexcept
{
    dc_tensor_t view = dc_tensor_t();
    view.data = data;
    view.dtype = dtype;
    for (int64_t extent : shape) {
        if (view.ndim < DC_MAX_DIMS) view.shape[view.ndim] = extent;
        view.ndim++; // too many are for the library to refuse
    }
    return view;
}

inline dc_tensor_t tensor(float *data, std::initializer_list<int64_t> shape) noexcept
{
    return tensor(data, DC_F32, shape);
}

/// The tensors of one call: one, an array of them, or a vector. Borrowed for the call.
class Tensors {
public:
    Tensors(const dc_tensor_t &one) noexcept : data_(&one), size_(1) {}
    template <std::size_t N>
    Tensors(const dc_tensor_t (&array)[N]) noexcept : data_(array), size_(N) {}
    Tensors(const std::vector<dc_tensor_t> &vector) noexcept : data_(vector.data()), size_(vector.size()) {}
    Tensors(const dc_tensor_t *data, std::size_t size) noexcept : data_(data), size_(size) {}

    const dc_tensor_t *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }

private:
    const dc_tensor_t *data_;
    std::size_t size_;
};

/// The cache. A default-constructed one is "caching off": everything computes. Outlives its runs and passes.
class Cache {
public:
    Cache() noexcept : handle_(nullptr), uncond_branch_(1) {}
    Cache(const dc_engine_t &engine, const dc_options_t &options) : handle_(nullptr), uncond_branch_(engine.uncond_branch)
    {
        check(dc_cache_create(&engine, &options, &handle_));
    }
    ~Cache() { dc_cache_destroy(handle_); }

    Cache(Cache &&other) noexcept : handle_(other.handle_), uncond_branch_(other.uncond_branch_)
    {
        other.handle_ = nullptr;
    }
    Cache &operator=(Cache &&other) noexcept
    {
        std::swap(handle_, other.handle_);
        std::swap(uncond_branch_, other.uncond_branch_);
        return *this;
    }
    Cache(const Cache &) = delete;
    Cache &operator=(const Cache &) = delete;

    explicit operator bool() const noexcept { return handle_ != nullptr; }
    dc_cache_t *get() const noexcept { return handle_; }

    /// Gives cached memory back, in the order of `stream`. Between passes.
    void trim(void *stream = nullptr) { check(dc_cache_trim(handle_, stream)); }

    /// From any thread, at any time.
    dc_stats_t stats() const
    {
        dc_stats_t stats = dc_stats_t();
        stats.struct_size = static_cast<uint32_t>(sizeof stats);
        check(dc_cache_stats(handle_, &stats));
        return stats;
    }

    /// The records of this run, oldest first. From any thread, at any time.
    std::vector<dc_trace_t> trace() const
    {
        std::size_t exist = 0;
        check(dc_cache_trace(handle_, nullptr, sizeof(dc_trace_t), 0, &exist));
        std::vector<dc_trace_t> records(exist);
        check(dc_cache_trace(handle_, records.data(), sizeof(dc_trace_t), records.size(), &exist));
        if (exist < records.size()) records.resize(exist); // a new run began in between
        return records;
    }

private:
    friend class Run;

    dc_cache_t *handle_;
    uint32_t uncond_branch_;
};

/// What became of a pass.
enum class Outcome {
    keep,   ///< The output is right.
    discard ///< Throw the output away and run the pass again with DC_PASS_COMPUTE.
};

/// One evaluation of the model. Ends when it goes out of scope, also by an exception of the engine's.
class Pass {
public:
    Pass(const Cache &cache, const dc_pass_t &pass) noexcept : Pass(cache.get(), pass) {}
    ~Pass()
    {
        if (open_) close();
    }

    Pass(Pass &&other) noexcept : handle_(other.handle_), open_(other.open_), status_(other.status_)
    {
        other.open_ = false;
    }
    Pass(const Pass &) = delete;
    Pass &operator=(const Pass &) = delete;

    /// Calls `work` unless the library already has what it would leave in `x`. True if it was called.
    template <class Work>
    bool block(uint32_t index, Tensors x, Work &&work)
    {
        return run(index, x, nullptr, x, std::forward<Work>(work));
    }

    /// As above for work that reads `in` and writes `out`: `in` stands as it is. As many tensors in one as in the other.
    template <class Work>
    bool block(uint32_t index, Tensors in, Tensors out, Work &&work)
    {
        if (in.size() != out.size()) throw std::invalid_argument("diffcache: a block has as many tensors in as out");
        return run(index, in, out.data(), out, std::forward<Work>(work));
    }

    /// Calls `work` unless the library puts into `out` what it would leave there. True if it was called.
    template <class Work>
    bool layer(uint32_t number, dc_kind_t kind, Tensors out, Work &&work)
    {
        if (dc_cache_before_layer(open(), number, kind, out.data(), out.size()) != DC_COMPUTE) return false;
        std::forward<Work>(work)();
        dc_cache_after_layer(open(), number, out.data(), out.size());
        return true;
    }

    /// Settles the pass before its first skippable block; any other wish than DC_UNDECIDED overrules the method.
    dc_action_t decide(dc_action_t wish = DC_UNDECIDED) noexcept { return dc_cache_decide(open(), wish); }

    /// What block `unit` of this pass, or DC_LAYER(number), will be answered, if that is certain.
    dc_action_t peek(uint32_t unit) const noexcept { return dc_cache_peek(open(), nullptr, unit); }

    /// Ends the pass, once.
    DC_NODISCARD Outcome end() noexcept
    {
        if (open_) close();
        return status_ == DC_ERR_DISCARD ? Outcome::discard : Outcome::keep;
    }

    /// After `end`: DC_OK, DC_ERR_DISCARD, or why the cache stood aside. Before: what opening the pass said.
    dc_status_t status() const noexcept { return status_; }

private:
    friend class Run;

    Pass(dc_cache_t *handle, const dc_pass_t &pass) noexcept
        : handle_(handle), open_(true), status_(dc_cache_begin_pass(handle, &pass)) {}

    dc_cache_t *open() const noexcept { return open_ ? handle_ : nullptr; } // after the end: caching off

    void close() noexcept
    {
        open_ = false;
        status_ = dc_cache_end_pass(handle_);
    }

    template <class Work>
    bool run(uint32_t index, Tensors in, const dc_tensor_t *destination, Tensors out, Work &&work)
    {
        if (dc_cache_before_block(open(), index, in.data(), destination, in.size()) != DC_COMPUTE) return false;
        std::forward<Work>(work)();
        dc_cache_after_block(open(), index, out.data(), out.size());
        return true;
    }

    dc_cache_t *handle_;
    bool open_;
    dc_status_t status_;
};

/// One sampling run, from noise to image. One at a time for each cache.
class Run {
public:
    Run(const Cache &cache, uint32_t n_steps) noexcept : Run(cache, of_steps(n_steps)) {}
    Run(const Cache &cache, const dc_run_t &run) noexcept
        : handle_(cache.get()), uncond_branch_(cache.uncond_branch_), status_(dc_cache_begin_run(cache.get(), &run)) {}
    ~Run() { dc_cache_end_run(handle_); }

    Run(const Run &) = delete;
    Run &operator=(const Run &) = delete;

    /// DC_OK, or why this run computes everything (DC_ERR_MEMORY: over the budget).
    dc_status_t status() const noexcept { return status_; }

    Pass pass(uint32_t step) noexcept { return pass(of_step(step)); }
    Pass pass(const dc_pass_t &pass) noexcept { return Pass(handle_, pass); }

    /// Runs `body(Pass &)`, which starts from the step's input, and runs it again with everything computed should the
    /// library ask for that. Returns DC_OK, or why the cache stood aside; the output is right either way.
    template <class Body>
    dc_status_t evaluate(const dc_pass_t &description, Body &&body)
    {
        dc_pass_t again = description;
        {
            Pass pass(handle_, description);
            body(pass);
            if (pass.end() == Outcome::keep) return pass.status();
        }
        again.flags |= DC_PASS_COMPUTE;
        Pass pass(handle_, again);
        body(pass);
        (void)(pass.end() == Outcome::keep); // nothing was skipped, so nothing can be wrong
        return pass.status();
    }
    template <class Body>
    dc_status_t evaluate(uint32_t step, Body &&body)
    {
        return evaluate(of_step(step), std::forward<Body>(body));
    }

    /// Guidance, between passes: calls `work`, which evaluates the unconditional branch, unless the library puts `uncond`
    /// together from `cond`. True if it was called. `description` names the engine's uncond_branch.
    template <class Work>
    bool uncond(const dc_pass_t &description, const dc_tensor_t &cond, const dc_tensor_t &uncond, Work &&work)
    {
        if (dc_cache_before_uncond(handle_, &description, &cond, &uncond) != DC_COMPUTE) return false;
        std::forward<Work>(work)();
        (void)dc_cache_after_uncond(handle_, &description, &cond, &uncond); // an error shows in Cache::stats
        return true;
    }
    template <class Work>
    bool uncond(uint32_t step, const dc_tensor_t &cond, const dc_tensor_t &uncond, Work &&work)
    {
        return this->uncond(of_uncond(step), cond, uncond, std::forward<Work>(work));
    }

    /// What `uncond` of a coming step will do, if that is certain: DC_SKIP = leave the branch out of a stacked pass.
    dc_action_t peek_uncond(const dc_pass_t &description) const noexcept
    {
        return dc_cache_peek(handle_, &description, DC_UNCOND);
    }
    dc_action_t peek_uncond(uint32_t step) const noexcept { return peek_uncond(of_uncond(step)); }

private:
    static dc_run_t of_steps(uint32_t n_steps) noexcept
    {
        dc_run_t run = DC_RUN_INIT;
        run.n_steps = n_steps;
        return run;
    }
    static dc_pass_t of_step(uint32_t step) noexcept
    {
        dc_pass_t pass = DC_PASS_INIT;
        pass.step = step;
        return pass;
    }
    dc_pass_t of_uncond(uint32_t step) const noexcept
    {
        dc_pass_t pass = of_step(step);
        pass.branches[0] = uncond_branch_;
        return pass;
    }

    dc_cache_t *handle_;
    uint32_t uncond_branch_;
    dc_status_t status_;
};

} // namespace diffcache

#endif
