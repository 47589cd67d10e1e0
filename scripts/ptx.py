#!/usr/bin/env python3
"""Compiles the kernels to the PTX that is checked in; needs no GPU and no CUDA toolkit.

    scripts/ptx.py            write it anew
    scripts/ptx.py --check    fail if that would change a byte, or if an assembler spills or refuses a file

Each family of the library's kernels (kernels/*.cu) becomes two modules: one for every GPU since Turing (sm75), and
one for those since Ampere (sm80), which round to bf16 in hardware. The demo's kernels are f32 and need the first alone.

The compiler writes its own version of PTX at the top of a module, and a driver refuses what is newer than itself; the
kernels need nothing newer than the versions in TARGETS, so these are written instead. Assemblers check every
instruction against the version a file claims.

The compiler and the assemblers are wheels, pinned by scripts/requirements-ptx.txt and unpacked below target/.
"""

import argparse
import ctypes
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
DEMO = ROOT / "examples" / "digits"
REQUIREMENTS = ROOT / "scripts" / "requirements-ptx.txt"
TOOLS = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "ptx-tools"

# name: architecture to compile for, version of PTX to claim
TARGETS = {"sm75": ("compute_75", "6.3"), "sm80": ("compute_80", "7.0")}

# wheel of an assembler: for each target, the GPUs to assemble for
ASSEMBLERS = {
    "nvidia_cuda_nvcc_cu11": {"sm75": ["75"], "sm80": ["80", "86"]},
    "nvidia_cuda_nvcc_cu12": {
        "sm75": ["75", "80", "86", "89", "90", "100", "103", "120", "121"],
        "sm80": ["80", "86", "89", "90", "100", "103", "120", "121"],
    },
}

# Products are rounded before they are added, as on the host.
OPTIONS = ["--std=c++17", "--fmad=false", "-default-device", "--diag-suppress=186"]


def fetch_tools():
    """Downloads and unpacks the wheels, unless those that are there come from the requirements as they are."""
    stamp = TOOLS / "requirements.txt"
    if stamp.exists() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return
    if subprocess.run([ROOT / ".ci" / "bootstrap", TOOLS, "wheels", REQUIREMENTS]).returncode:
        raise SystemExit(f"no compiler: the wheels of {REQUIREMENTS} could not be downloaded")
    for wheel in TOOLS.glob("*.whl"):
        # Each into a folder of its own: the two assemblers have the same path.
        folder = TOOLS / wheel.name.split("-")[0]
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
        for tool in [*folder.rglob("bin/ptxas"), *folder.rglob("bin/nvdisasm")]:
            tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    stamp.write_bytes(REQUIREMENTS.read_bytes())


def find_tool(wheel, pattern):
    return next((TOOLS / wheel).rglob(pattern))


class Nvrtc:
    """NVIDIA's run-time compiler, which needs no host compiler and no headers."""

    def __init__(self):
        wheel = "nvidia_cuda_nvrtc_cu12"
        # NVRTC asks for its built-in declarations by file name alone; what is loaded already is found.
        ctypes.CDLL(str(find_tool(wheel, "libnvrtc-builtins.so.*")), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(find_tool(wheel, "libnvrtc.so.*")))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def call(self, function, *arguments):
        status = getattr(self.library, function)(*arguments)
        if status:
            raise RuntimeError(f"{function}: {self.library.nvrtcGetErrorString(status).decode()}")

    def text(self, program, what):
        """One of the texts that a program has: its PTX or the compiler's messages."""
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.value.decode()

    def compile(self, source, headers, architecture):
        """The PTX of file `source`, which may include `headers` by name."""

        def strings(values):
            return (ctypes.c_char_p * len(values))(*values)

        program = ctypes.c_void_p()
        self.call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.read_bytes(),
            source.name.encode(),
            len(headers),
            strings([header.read_bytes() for header in headers]),
            strings([header.name.encode() for header in headers]),
        )
        options = [f"--gpu-architecture={architecture}", *OPTIONS]
        try:
            self.call("nvrtcCompileProgram", program, len(options), strings([o.encode() for o in options]))
            return self.text(program, "PTX")
        finally:
            messages = self.text(program, "ProgramLog")
            if messages:
                print(messages, file=sys.stderr)
            self.call("nvrtcDestroyProgram", ctypes.byref(program))


def modules():
    """What there is to be: source, target, and the module's path below ROOT."""
    families = [(source, target, KERNELS / "ptx") for source in sorted(KERNELS.glob("*.cu")) for target in TARGETS]
    for source, target, folder in [*families, (DEMO / "maths.cu", "sm75", DEMO)]:
        yield source, target, (folder / f"{source.stem}.{target}.ptx").relative_to(ROOT)


def write_modules(root):
    """Compiles every module into its place below `root`."""
    nvrtc = Nvrtc()
    headers = sorted(KERNELS.glob("*.cuh"))
    for source, target, path in modules():
        architecture, version = TARGETS[target]
        ptx = nvrtc.compile(source, headers, architecture)
        # The compiler's banner names its build, and its comments would be a third of the file.
        banner = f"// Written by scripts/ptx.py from {source.relative_to(ROOT)}, with NVRTC {nvrtc.version}.\n\n"
        body = ptx[ptx.index("\n.version ") + 1 :]
        body = re.sub(r"^\.version .*", f".version {version}", body)
        body = re.sub(r"^\s*//.*\n", "", body, flags=re.MULTILINE)
        # Local memory: a run-time index into an array of a thread's own. A call: a function that was not inlined.
        slow = re.search(r"^\s*(\.local|call)\b", body, re.MULTILINE)
        if slow:
            raise SystemExit(f"{source.name} for {target} has a {slow[1]}")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(banner + body.rstrip() + "\n")


def is_as_checked_in(fresh):
    """Compares the modules below folder `fresh` with those of the repository."""
    checked_in = {path.relative_to(ROOT) for folder in (KERNELS / "ptx", DEMO) for path in folder.glob("*.ptx")}
    stale = checked_in.symmetric_difference(path for _, _, path in modules())
    stale |= {path for path in checked_in - stale if (ROOT / path).read_bytes() != (fresh / path).read_bytes()}
    for path in sorted(stale):
        print(f"{path} is not what the sources compile to: run scripts/ptx.py")
    return not stale


def assembles(module):
    """Whether every assembler takes `module` for every GPU without spilling; says so in a line."""
    target = module.name.split(".")[1]
    registers, complaints = [], []
    for wheel, gpus in ASSEMBLERS.items():
        ptxas = find_tool(wheel, "bin/ptxas")
        for gpu in gpus[target]:
            command = [ptxas, "-v", f"-arch=sm_{gpu}", "-o", os.devnull, module]
            run = subprocess.run(command, capture_output=True, text=True)
            registers += [int(count) for count in re.findall(r"Used (\d+) registers", run.stderr)]
            spills = sum(int(count) for count in re.findall(r"(\d+) bytes spill", run.stderr))
            stack = sum(int(count) for count in re.findall(r"(\d+) bytes stack frame", run.stderr))
            if run.returncode:
                complaints.append(f"sm_{gpu} ({wheel}):\n{run.stderr}")
            elif spills or stack:
                complaints.append(f"sm_{gpu} ({wheel}): {spills} bytes of spills, {stack} of stack")
    print(f"{module.name}: at most {max(registers, default=0)} registers,", "; ".join(complaints) or "no spills")
    return not complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; compare and assemble")
    check = parser.parse_args().check
    fetch_tools()
    if not check:
        write_modules(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_modules(Path(folder))
        fine = is_as_checked_in(Path(folder))
        for _, _, path in modules():
            fine &= assembles(Path(folder) / path)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
