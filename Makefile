# libdiffcache by name. `cargo build --release` alone builds the library; this file installs it, tests it and shows it.

SHELL     := bash
PREFIX    ?= /usr/local
LIBDIR    ?= lib
CARGO     ?= cargo
TARGET    := $(abspath $(or $(CARGO_TARGET_DIR),target))
VERSION   := $(shell sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
# What the SONAME carries: major.minor while major is 0, then major alone.
SOVERSION := $(shell echo $(VERSION) | sed -E 's/^(0\.[0-9]+|[0-9]+)\..*/\1/')
HOST       = $(shell rustc -vV | sed -n 's/^host: //p')
JOBS      := $(shell getconf _NPROCESSORS_ONLN)

# One folder for every cargo started below, and the tools that .ci/bootstrap may have put there.
export CARGO_TARGET_DIR := $(TARGET)
export PATH := $(TARGET)/tools/bin:$(PATH)
export CMAKE_GENERATOR := Ninja

.DEFAULT_GOAL := build
.NOTPARALLEL:
.PHONY: help build install demo test bench header ptx gpu-test gpu-bench clean \
        install-files demo-program tools-demo tools-test tools-bench lint softcuda test-rust test-cuda test-ptx \
        prefix test-plain test-instructions test-valgrind run-valgrind test-sanitize

help: ## list the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z][a-z-]*\):.*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 17
	@echo "variables: PREFIX=$(PREFIX) LIBDIR=$(LIBDIR) DESTDIR=$(DESTDIR) CARGO_TARGET_DIR=$(TARGET)"

build: ## the library (default): libdiffcache.so and libdiffcache.a in target/release
	$(CARGO) build --release --lib

# ---- install ------------------------------------------------------------------------------------------------------

install: build install-files ## headers, libraries, pkg-config file and CMake package into PREFIX (and below DESTDIR)

FROM = $(TARGET)/release
INTO = $(DESTDIR)$(PREFIX)
# From LIBDIR back up to PREFIX: this is what makes the installed tree relocatable.
UP   = $(shell echo $(LIBDIR) | sed 's|[^/][^/]*|..|g')
# $(call fill,template,file below LIBDIR)
fill = sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@SOVERSION@|$(SOVERSION)|g' -e 's|@UP@|$(UP)|g' $(1) \
       | install -m 644 /dev/stdin "$(INTO)/$(LIBDIR)/$(2)"

install-files:
	install -d "$(INTO)/include" "$(INTO)/$(LIBDIR)/pkgconfig" "$(INTO)/$(LIBDIR)/cmake/diffcache"
	install -p -m 644 include/diffcache.h bindings/cpp/diffcache.hpp "$(INTO)/include"
	install -p -m 755 $(FROM)/libdiffcache.so "$(INTO)/$(LIBDIR)/libdiffcache.so.$(VERSION)"
	ln -sf libdiffcache.so.$(VERSION) "$(INTO)/$(LIBDIR)/libdiffcache.so.$(SOVERSION)"
	ln -sf libdiffcache.so.$(SOVERSION) "$(INTO)/$(LIBDIR)/libdiffcache.so"
	install -p -m 644 $(FROM)/libdiffcache.a "$(INTO)/$(LIBDIR)"
	$(call fill,bindings/pkgconfig/diffcache.pc.in,pkgconfig/diffcache.pc)
	$(call fill,bindings/cmake/diffcacheConfig.cmake.in,cmake/diffcache/diffcacheConfig.cmake)
	$(call fill,bindings/cmake/diffcacheConfigVersion.cmake.in,cmake/diffcache/diffcacheConfigVersion.cmake)

# ---- demo ---------------------------------------------------------------------------------------------------------

# Where the demo's model and its cache run: cpu, or cuda, which takes a GPU and its driver, and nothing else.
BACKEND ?= cpu

demo: demo-program ## sample a small diffusion model with every method: a table and a picture (BACKEND=cuda: on a GPU)
	$(TARGET)/demo/digits/digits --compare --backend $(BACKEND) --out $(TARGET)/demo/contact-sheet.png
	@echo "The samples of some settings, and their differences: $(TARGET:$(CURDIR)/%=%)/demo/contact-sheet.png"

demo-program: tools-demo prefix
	cmake --log-level=WARNING -S examples -B $(TARGET)/demo -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=$(TARGET)/prefix >/dev/null
	cmake --build $(TARGET)/demo --target digits

# ---- tests --------------------------------------------------------------------------------------------------------

test: tools-test lint test-ptx test-rust test-cuda test-plain test-instructions test-valgrind test-sanitize ## all tests: Rust, then C and C++, on both backends, under valgrind and sanitizers

# Installs what is missing; silent when nothing is.
tools-demo:
	@.ci/bootstrap $(TARGET)/tools cmake ninja
tools-test:
	@.ci/bootstrap $(TARGET)/tools cmake ninja valgrind pkg-config rustfmt clippy

lint:
	@if $(CARGO) fmt --version >/dev/null 2>&1; then set -x; $(CARGO) fmt --all --check; else echo "SKIPPED: format (no rustfmt)"; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1; then set -x; $(CARGO) clippy --workspace --all-targets -- -D warnings; \
	else echo "SKIPPED: lints (no clippy)"; fi
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --quiet

# The kernels' PTX is what its sources compile to, and every GPU it is for has an assembler that takes it; kernels/sass.md says what
# comes of it.
test-ptx:
	scripts/ptx.py --check
	scripts/sass.py --check

test-rust:
	$(CARGO) test --workspace

# Stands in for the CUDA driver: runs the real PTX on the CPU, and is strict where a GPU is silent.
SOFTCUDA := $(TARGET)/softcuda
softcuda:
	$(CARGO) build --release -p softcuda
	@mkdir -p $(SOFTCUDA)
	@ln -sf ../release/libsoftcuda.so $(SOFTCUDA)/libcuda.so.1

# The same tests once more, on the CUDA backend; and the kernels for Turing, on the oldest driver, in another order of its streams.
test-cuda: softcuda
	DC_TEST_BACKEND=cuda LD_LIBRARY_PATH=$(SOFTCUDA) $(CARGO) test --tests
	SOFTCUDA_CC=7.5 SOFTCUDA_DRIVER=10010 SOFTCUDA_SEED=1 \
	    DC_TEST_BACKEND=cuda LD_LIBRARY_PATH=$(SOFTCUDA) $(CARGO) test --test ops --test launches --test vectors

# The C and C++ programs are an outside project: they see an installed prefix and never this source tree.
prefix: build
	@rm -rf $(TARGET)/prefix
	@$(MAKE) --no-print-directory -s install-files PREFIX=$(TARGET)/prefix DESTDIR= LIBDIR=lib

# $(call ctest,flavour,prefix,cmake options,ctest options)
define ctest
	@echo "---- C and C++: $(1)"
	cmake --log-level=WARNING -S tests/capi -B $(TARGET)/capi/$(1) -DCMAKE_PREFIX_PATH=$(2) $(3) >/dev/null
	cmake --build $(TARGET)/capi/$(1)
	cd $(TARGET)/capi/$(1) && ctest --output-on-failure --no-tests=error -j $(JOBS) $(4)
endef

# Heavy tests and those of the installed files say nothing more under valgrind or a sanitizer.
ONCE     := -LE '^(slow|install|dialect|counts)$$'
GUARDED  := -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDC_GUARDED=ON
VALGRIND := valgrind;-q;--error-exitcode=99;--leak-check=full;--errors-for-leak-kinds=definite
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

# The C programs run on both backends, and once more on a driver that has no device, where the distribution has one.
test-plain: tools-test prefix softcuda
	@.ci/bootstrap $(TARGET)/libcuda libcuda
	$(call ctest,plain,$(TARGET)/prefix,-DCMAKE_BUILD_TYPE=Release -DDC_SOFTCUDA=$(SOFTCUDA) \
	    $$(test -e $(TARGET)/libcuda/libcuda.so.1 && echo -DDC_LIBCUDA=$(TARGET)/libcuda))

# What each call costs, in instructions; `scripts/instructions.py PREFIX --write` accepts what it finds.
test-instructions: tools-test prefix
	@if command -v valgrind >/dev/null; then set -x; scripts/instructions.py $(TARGET)/prefix; \
	else echo "SKIPPED: instructions of each call (no valgrind)"; fi

test-valgrind: tools-test prefix
	@if command -v valgrind >/dev/null; then $(MAKE) --no-print-directory run-valgrind; \
	else echo "SKIPPED: C and C++ under valgrind (no valgrind)"; fi
run-valgrind: export DIFFCACHE_TEST_LIGHT = 1
run-valgrind:
	$(call ctest,valgrind,$(TARGET)/prefix,$(GUARDED) "-DCMAKE_CROSSCOMPILING_EMULATOR=$(VALGRIND)",$(ONCE))

# The library itself is built with AddressSanitizer too. Stable compilers carry it behind RUSTC_BOOTSTRAP; with an explicit
# target, build scripts are left alone.
test-sanitize: asan = $(TARGET)/asan
test-sanitize: tools-test
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$(asan) $(CARGO) build --release --lib --target $(HOST)
	nm -D $(asan)/$(HOST)/release/libdiffcache.so | grep -q __asan_report # it is in there
	@$(MAKE) --no-print-directory -s install-files FROM=$(asan)/$(HOST)/release PREFIX=$(asan)/prefix DESTDIR= LIBDIR=lib
	$(call ctest,sanitize,$(asan)/prefix,$(GUARDED) "-DCMAKE_C_FLAGS=$(SANITIZE)" "-DCMAKE_CXX_FLAGS=$(SANITIZE)",$(ONCE))

# ---- benchmarks ---------------------------------------------------------------------------------------------------

# A Python that has torch and diffusers. Set it to one that you have, and nothing is downloaded.
BENCH_PYTHON ?= $(TARGET)/bench-venv/python/bin/python
FIGURES := $(TARGET)/figures

bench: export DC_FIGURES = $(FIGURES)/rows.tsv
bench: export DIFFCACHE_SO = $(TARGET)/release/libdiffcache.so
bench: tools-bench demo-program ## every figure beside its target and its rival, in one table: docs/performance.md says what they mean
	@rm -rf $(FIGURES) && mkdir -p $(FIGURES)
	$(CARGO) bench
	$(TARGET)/demo/digits/digits --bench
	$$(command -v $(BENCH_PYTHON) || echo python3) -B benches/eager.py $(DIFFCACHE_SO)
	@echo && scripts/bench_table.py $(DC_FIGURES) $(FIGURES)/table.md
	@scripts/scaling_chart.py $(FIGURES)/scaling.tsv $(FIGURES)/scaling.svg
	@echo "The same in Markdown, and a chart: $(FIGURES:$(CURDIR)/%=%)/table.md, scaling.svg"

# The packages that the recordings in tests/conformance were made with.
tools-bench: tools-demo
ifeq ($(origin BENCH_PYTHON),file)
	@.ci/bootstrap $(TARGET)/bench-venv venv tests/conformance/requirements.txt
endif

# ---- the rest -----------------------------------------------------------------------------------------------------

# On a machine with cargo but no GPU these build target/gpu, and say where to take it. See scripts/gpu.
gpu-test: tools-test ## the same tests on a real GPU, and kernels and demo under compute-sanitizer
	scripts/gpu/build.sh
	scripts/gpu/test.sh

gpu-bench: tools-test ## figures from a real GPU, into docs/gpu-figures.md
	scripts/gpu/build.sh
	scripts/gpu/bench.sh

ptx: ## compile kernels/*.cu to kernels/ptx anew, and its machine code's table (no GPU and no CUDA toolkit needed)
	scripts/ptx.py
	scripts/sass.py

header: ## write include/diffcache.h anew from the Rust documentation
	DC_WRITE_HEADER=1 $(CARGO) test --test header

clean: ## remove target/
	rm -rf $(TARGET)
